"""Channels to services: balanced, retried, traced, with deadlines.

A channel made here starts a CLIENT span per call, carries it in the call's metadata, and gives calls without
a deadline one. It hands out gRPC's own call objects, so streams, cancellation and metadata work as documented
there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import grpc
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.chassis import names
from services.chassis.interceptor import INFRASTRUCTURE, call_deadline
from services.chassis.retry import service_config as retry_config
from services.chassis.telemetry import Telemetry, current, trace_context, tracer

DEFAULT_TIMEOUT_SECONDS: Final = 10.0
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A service that restarts is found again within a second, not within gRPC's two minutes; and sooner than a
    # call has been tried for the last time, so that replicas may be started anew one right after the other.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 400),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 1),
    # Services of one network are never behind the machine's web proxy.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(
    target: str,
    *,
    retry: bool = True,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    wait_for_ready: bool = False,
    credentials: grpc.ChannelCredentials | None = None,
    service_config: dict[str, Any] | None = None,
    telemetry: Telemetry | None = None,
) -> grpc.aio.Channel:
    """A channel to a gRPC target (``unix:/path``, ``ipv4:127.0.0.1:4001``, ``dns:///ipam:4000``).

    A target may have several addresses, the replicas of a service: ``ipv4:127.0.0.1:4001,127.0.0.1:4011``,
    ``unix:/one,/two``, or what a name resolves to. Calls take turns over those that serve.

    ``timeout`` in seconds bounds unary calls whose caller gives none; a call made while serving another is
    also bounded by that one's deadline. ``retry`` repeats calls that failed with UNAVAILABLE, up to three
    times within half a second: all of Fimbria's methods are idempotent. ``service_config`` replaces the
    whole gRPC service configuration. Connecting happens on first use, and again by itself.
    """
    config = json.dumps(service_config) if service_config else retry_config(retry=retry, target=target)
    options = (*_OPTIONS, ("grpc.service_config", config))
    if credentials is None:
        inner = grpc.aio.insecure_channel(target, options=options)
    else:
        inner = grpc.aio.secure_channel(target, credentials, options=options)
    return _Channel(inner, target, timeout, wait_for_ready, telemetry)


class _Channel(grpc.aio.Channel):
    """gRPC's channel, whose calls are traced and bounded."""

    def __init__(
        self,
        inner: grpc.aio.Channel,
        target: str,
        timeout: float,
        wait_for_ready: bool,
        telemetry: Telemetry | None,
    ) -> None:
        self._inner = inner
        self.target = target
        self.timeout = timeout
        self.wait_for_ready = wait_for_ready
        self._telemetry = telemetry

    async def __aenter__(self) -> _Channel:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._inner.__aexit__(*exc)

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Method(
            self, method, self._inner.unary_unary(method, *args, **kwargs), many=False, bounded=True
        )

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Method(
            self, method, self._inner.unary_stream(method, *args, **kwargs), many=False, bounded=False
        )

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Method(
            self, method, self._inner.stream_unary(method, *args, **kwargs), many=True, bounded=True
        )

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Method(
            self, method, self._inner.stream_stream(method, *args, **kwargs), many=True, bounded=False
        )

    def start_span(self, name: str, path: str) -> Span:
        source = self._telemetry or current()
        return (source.tracer if source else tracer()).start_span(
            name,
            kind=SpanKind.CLIENT,
            attributes={
                names.RPC_SYSTEM: names.RPC_SYSTEM_GRPC,
                names.RPC_METHOD: path.lstrip("/"),
                names.SERVER_ADDRESS: self.target,
            },
        )

    def record(self, path: str, code: grpc.StatusCode, seconds: float) -> None:
        source = self._telemetry or current()
        if source is not None and source.measures:
            source.client_duration.record(
                seconds,
                {
                    names.RPC_SYSTEM: names.RPC_SYSTEM_GRPC,
                    names.RPC_METHOD: path.lstrip("/"),
                    names.RPC_STATUS: code.name,
                },
            )


class _Method:
    """A multi-callable: calling it starts the call, and its span."""

    def __init__(self, channel: _Channel, path: str, inner: Any, *, many: bool, bounded: bool) -> None:
        self._channel = channel
        self._path = path
        self._name = names.rpc_span_name(path)
        self._traced = not path.startswith(INFRASTRUCTURE)
        self._inner: Callable[..., Any] = inner
        self._many = many
        self._bounded = bounded

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, str | bytes]] | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        options: dict[str, Any] = {
            "timeout": self._timeout(timeout),
            "credentials": credentials,
            "wait_for_ready": self._channel.wait_for_ready if wait_for_ready is None else wait_for_ready,
            "compression": compression,
        }
        if not self._traced:
            return self._inner(request, metadata=_pairs(metadata), **options)
        span = self._channel.start_span(self._name, self._path)
        carried = trace_context(span)
        pairs = [*_pairs(metadata), (names.TRACEPARENT, carried.traceparent)] if carried else _pairs(metadata)
        if carried.tracestate:
            pairs = [*pairs, (names.TRACESTATE, carried.tracestate)]
        started = time.perf_counter()
        try:
            with trace.use_span(span, end_on_exit=False):
                call = self._inner(request, metadata=pairs, **options)
        except BaseException:
            span.end()
            raise

        def finish(done: Any) -> None:
            code = _code(done)
            span.set_attribute(names.RPC_STATUS, code.name)
            if code is grpc.StatusCode.CANCELLED:
                span.add_event("cancelled")
            elif code is not grpc.StatusCode.OK:
                span.set_status(Status(StatusCode.ERROR, code.name))
            span.end()
            self._channel.record(self._path, code, time.perf_counter() - started)

        call.add_done_callback(finish)
        return call

    def _timeout(self, given: float | None) -> float | None:
        if given is None and self._bounded:
            given = self._channel.timeout
        serving = call_deadline.get()
        if not self._bounded or serving is None or serving.at is None:
            return given
        left = max(serving.at - time.monotonic(), 0.0)
        return left if given is None else min(given, left)


def _pairs(metadata: Iterable[tuple[str, str | bytes]] | None) -> Sequence[tuple[str, str | bytes]]:
    return list(metadata or ())


def _code(call: Any) -> grpc.StatusCode:
    """The status code of a call that is done; ``code()`` is a coroutine that then ends at its first step."""
    step = call.code()
    try:
        step.send(None)
    except StopIteration as stop:
        value: grpc.StatusCode = stop.value
        return value
    step.close()
    return grpc.StatusCode.UNKNOWN
