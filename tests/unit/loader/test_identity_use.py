"""What the identity service is told of the node's identities, and what its answers lead to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import pytest

from services.loader.endpoints.identity_use import RECENT_SECONDS, IdentityUse
from services.loader.node import NodeRuntime
from tests.unit.loader.node_under_test import NodeUnderTest, add, only, request
from tests.unit.loader.waiting import until


@pytest.fixture
async def running(node: NodeUnderTest) -> AsyncIterator[NodeUnderTest]:
    """A node that reports, and has settled."""
    task = asyncio.create_task(node.uses.run(node.manager.refresh))
    await until(lambda: node.uses.settled)
    yield node
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def identities(node: NodeUnderTest) -> dict[str, int]:
    return {endpoint.record.spec.container_id: endpoint.record.identity for endpoint in node.registry}


async def test_what_comes_and_goes_is_reported_soon(running: NodeUnderTest) -> None:
    await running.cni.add(add())
    await until(lambda: running.services.reported[-1] == (256,))
    await running.cni.delete(request("DEL"))
    await until(lambda: running.services.reported[-1] == ())


async def test_a_pod_with_the_same_identity_is_no_news(running: NodeUnderTest) -> None:
    await running.cni.add(add("c1"))
    await until(lambda: running.services.reported[-1] == (256,))
    before = len(running.services.reported)
    await running.cni.add(add("c2", netns="/run/netns/other"))
    await asyncio.sleep(0.05)
    assert len(running.services.reported) == before


async def test_reports_come_thrice_a_lease(node: NodeUnderTest) -> None:
    node.services.lease = 0.03
    task = asyncio.create_task(node.uses.run(node.manager.refresh))
    await until(lambda: len(node.services.reported) >= 5)
    task.cancel()


async def test_what_is_being_given_is_in_use(node: NodeUnderTest) -> None:
    now = 0.0
    uses = IdentityUse(node.registry, node.services, clock=lambda: now)
    uses.resolved(300)
    assert uses.used() == {300}
    now = RECENT_SECONDS + 1
    assert uses.used() == frozenset()


async def test_another_filter_moves_the_endpoints_that_it_concerns(running: NodeUnderTest) -> None:
    await running.cni.add(add("c1", app="web"))
    await running.cni.add(add("c2", app="client", netns="/run/netns/client"))
    assert identities(running) == {"c1": 256, "c2": 257}
    running.services.ignored = {"k8s:app=web"}
    running.services.filter_revision = 2
    running.uses._reported = frozenset()
    running.uses.changed()
    await until(lambda: not running.uses.settled)
    await until(lambda: identities(running) == {"c1": 258, "c2": 257})
    await until(lambda: running.uses.settled)
    row = next(row for row in running.kernel.attached() if row.endpoint_id == 1)
    assert row.identity == 258
    assert running.services.published["10.0.0.2/32"] == 258


async def test_a_pod_made_while_the_filter_changes_is_asked_for_again(running: NodeUnderTest) -> None:
    running.links.gate.clear()
    making = asyncio.create_task(running.cni.add(add()))
    await until(lambda: "resolve" in running.services.calls)
    running.services.ignored = {"k8s:app=web"}
    running.services.filter_revision = 2
    running.uses._reported = frozenset({1})
    running.uses.changed()
    await until(lambda: running.uses.epoch == 2 and running.uses.settled)
    running.links.gate.set()
    await making
    await until(lambda: only(running).record.identity == 257)


async def test_no_identity_is_shared_before_it_is_known_to_be_right(node: NodeUnderTest) -> None:
    node.ipcache.state.connected = True
    await node.cni.add(add("c1"))
    await node.cni.add(add("c2", netns="/run/netns/other"))
    assert node.services.calls.count("resolve") == 2
    node.uses.settled = True
    await node.cni.add(add("c3", netns="/run/netns/third"))
    assert node.services.calls.count("resolve") == 2


async def test_an_identity_that_is_gone_is_resolved_again(running: NodeUnderTest) -> None:
    await running.cni.add(add())
    await until(lambda: running.services.reported[-1] == (256,))
    running.services.identities = {("k8s:app=other",): 257}
    running.uses._reported = frozenset()
    running.uses.changed()
    await until(lambda: only(running).record.identity == 258)
    await until(lambda: running.services.published["10.0.0.2/32"] == 258)


async def test_while_the_service_is_away_nothing_changes(running: NodeUnderTest) -> None:
    await running.cni.add(add())
    before = only(running).record
    running.services.down = True
    running.uses._reported = frozenset()
    running.uses.changed()
    await until(lambda: "down" in running.uses.problem)
    assert only(running).record == before
    running.services.down = False
    await until(lambda: running.uses.problem == "")
    assert running.uses.state.connected


async def test_what_cannot_be_resolved_again_is_tried_until_it_can(running: NodeUnderTest) -> None:
    await running.cni.add(add())
    running.services.ignored = {"k8s:app=web"}
    running.services.filter_revision = 2
    running.services.fail = {"resolve"}
    running.uses._reported = frozenset()
    running.uses.changed()
    await until(lambda: "resolved again" in running.uses.problem)
    running.services.fail = set()
    await until(lambda: only(running).record.identity == 257 and running.uses.settled)
    assert running.uses.problem == ""


async def test_what_cannot_be_published_for_its_identity_is_resolved_again(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    node.services.identities = {("k8s:app=other",): 257}
    runtime = SimpleNamespace(
        publication=node.publication, registry=node.registry, uses=node.uses, manager=node.manager
    )
    node.publication.outdated.set()
    task = asyncio.create_task(NodeRuntime.publish_all(cast(NodeRuntime, runtime)))
    await until(lambda: not node.publication.outdated.is_set() and only(node).record.identity == 258)
    await until(lambda: node.services.published == {"10.0.0.2/32": 258})
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_refused_publication_of_a_new_pod_asks_for_all_again(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    node.publication.outdated.clear()
    node.ipcache.state.connected = node.uses.settled = True
    node.services.identities.clear()
    await node.cni.add(add("c2", netns="/run/netns/two"))
    await until(node.publication.outdated.is_set)
