# SPDX-License-Identifier: Apache-2.0
"""One node's stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fimbria.policy.v1 import policy_pb2 as pb

from services.policy import subscription
from services.policy.distribution import Distributor, PrefixUpdate, Progress, Revision
from services.policy.enforcement import Enforcement
from services.policy.engine import Subject
from services.policy.selector import Labels


async def hello() -> AsyncIterator[pb.SubscribeRequest]:
    yield pb.SubscribeRequest(hello=pb.Hello(node="node-1"))
    await asyncio.Event().wait()


async def said(*messages: pb.SubscribeRequest) -> AsyncIterator[pb.SubscribeRequest]:
    for message in messages:
        yield message


async def test_subjects_that_a_node_cannot_realize_are_known_by_what_they_are() -> None:
    distributor = Distributor()
    distributor.take_all_identities({300: Labels(["k8s:app=web"]), 301: Labels(["k8s:app=db"])}, 1)
    enforcement = Enforcement({}, lambda name: None, lambda: 0)
    messages = said(
        pb.SubscribeRequest(hello=pb.Hello(node="node-1")),
        pb.SubscribeRequest(watch=pb.WatchSubject(subject=7, identity=300)),
        pb.SubscribeRequest(watch=pb.WatchSubject(subject=8, identity=301)),
        pb.SubscribeRequest(ack=pb.Ack(revision=pb.Revision(), error="full", failed_subjects=[8, 9])),
    )
    async for _ in subscription.serve_subscription(messages, distributor, enforcement):
        pass
    (state,) = enforcement.nodes()
    assert state.failed_subjects == {Subject(301)}
    assert (state.acknowledged.error, state.subscribed) == ("full", False)


async def test_a_node_is_told_now_and_then_that_there_is_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "PROGRESS_SECONDS", 0.01)
    distributor = Distributor(revision=7)
    distributor.take_all_identities({}, 3)
    enforcement = Enforcement({}, lambda name: None, lambda: 0)
    stream = subscription.serve_subscription(hello(), distributor, enforcement)
    whole, *told = [await anext(stream) for _ in range(4)]
    await stream.aclose()  # type: ignore[attr-defined]
    assert isinstance(whole, PrefixUpdate)
    assert all(isinstance(message, Progress) for message in told)
    assert {message.revision for message in told} == {Revision(policy=7, identity=3)}
