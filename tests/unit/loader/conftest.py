"""A node's core, started, with a policy that its policy service has told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.loader.fakes import FakeKernel, FakeLinks, FakeServices
from tests.unit.loader.node_under_test import NodeUnderTest
from tests.unit.loader.policy_service import FakePolicyService, entry, progress, snapshot


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeUnderTest]:
    policy = FakePolicyService()
    for identity in range(256, 260):
        policy.answer(identity, snapshot(0, entry(300)))
    made = NodeUnderTest(tmp_path, FakeKernel(), FakeLinks(), FakeServices(), policy)
    made.start()
    await policy.hear("hello")
    policy.say(progress(1, 10))
    await policy.hear("ack")
    yield made
    await made.stop()
