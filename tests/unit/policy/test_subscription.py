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


async def hello() -> AsyncIterator[pb.SubscribeRequest]:
    yield pb.SubscribeRequest(hello=pb.Hello(node="node-1"))
    await asyncio.Event().wait()


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
