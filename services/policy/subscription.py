# SPDX-License-Identifier: Apache-2.0
"""One node's stream, from its Hello to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from fimbria.policy.v1 import policy_pb2 as pb
from opentelemetry.trace import SpanKind

from services.chassis import names
from services.chassis.feed import PROGRESS_SECONDS
from services.chassis.logs import get_logger
from services.chassis.telemetry import TraceContext, remote_context, tracer
from services.policy import problems
from services.policy.convert import read_node_labels, read_ports
from services.policy.distribution import Distributor, Message, Progress, Subscription, Watch
from services.policy.enforcement import Enforcement
from services.policy.engine import Subject

log = get_logger(__name__)


async def serve_subscription(
    requests: AsyncIterator[pb.SubscribeRequest], distributor: Distributor, enforcement: Enforcement
) -> AsyncIterator[Message]:
    """What the node is to be told, until it ends its stream.

    Raises InvalidArgument for a message out of order, Aborted when the stream is replaced or not read.
    """
    first = await anext(requests, None)
    if first is None:
        return
    if first.WhichOneof("message") != "hello":
        raise problems.field_invalid("message", first.WhichOneof("message"), "hello as the first message")
    node = first.hello.node
    subscription = distributor.subscribe(node)
    enforcement.subscribed(node)
    log.info("node subscribed", node=node)
    reader = asyncio.create_task(_read(requests, subscription, distributor, enforcement))
    try:
        while (message := await _next(subscription, distributor)) is not None:
            yield message
        await reader
    finally:
        reader.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await reader
        if distributor.unsubscribe(subscription):
            enforcement.unsubscribed(node)
            log.info("node unsubscribed", node=node)


async def _next(subscription: Subscription, distributor: Distributor) -> Message | None:
    """The next message; when nothing happens for long, that the node has all there is."""
    while True:
        try:
            async with asyncio.timeout(PROGRESS_SECONDS):
                return await subscription.next()
        except TimeoutError:
            if distributor.identities_known:
                subscription.send(Progress(distributor.revision, TraceContext()))


async def _read(
    requests: AsyncIterator[pb.SubscribeRequest],
    subscription: Subscription,
    distributor: Distributor,
    enforcement: Enforcement,
) -> None:
    """Take the node's messages over; whatever ends this ends the stream."""
    node = subscription.node
    try:
        async for request in requests:
            match request.WhichOneof("message"):
                case "watch":
                    _watch(request.watch, subscription, distributor)
                    enforcement.watches(node, len(subscription.watched))
                case "unwatch":
                    distributor.unwatch(subscription, request.unwatch.subject)
                    enforcement.watches(node, len(subscription.watched))
                case "ack":
                    told = request.ack
                    if told.error:
                        log.warning("node cannot realize policy", node=node, error=told.error)
                    else:
                        distributor.acknowledged(subscription)
                    failed = [
                        watch.subject
                        for number in told.failed_subjects
                        if (watch := subscription.watched.get(number)) is not None
                    ]
                    enforcement.acknowledge(
                        node, told.revision.policy, told.revision.identity, told.error, failed
                    )
                case other:
                    raise problems.field_invalid("message", other, "hello only as the first message")
    finally:
        subscription.end()


def _watch(request: pb.WatchSubject, subscription: Subscription, distributor: Distributor) -> None:
    trace = TraceContext(request.trace.traceparent, request.trace.tracestate)
    answered = _span(request, trace, subscription.node) if trace else (lambda: None)
    distributor.watch(
        subscription,
        Watch(
            request.subject,
            Subject(
                request.identity,
                read_ports(request.named_ports),
                read_node_labels(request.identity, request.labels, "watch.labels"),
            ),
            request.identity_revision,
            trace,
            answered,
        ),
    )


def _span(request: pb.WatchSubject, trace: TraceContext, node: str) -> Callable[[], None]:
    """A server span from the request to its snapshot, as if the watch were a call of its own."""
    span = tracer().start_span(
        names.POLICY_SUBSCRIBE,
        context=remote_context(trace.traceparent, trace.tracestate),
        kind=SpanKind.SERVER,
        attributes={names.IDENTITY: request.identity, names.NODE_NAME: node},
    )
    return span.end
