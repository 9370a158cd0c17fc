"""A node full of endpoints that all have to be regenerated still has time for everything else."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest

from services.loader.endpoints.endpoint import State
from services.loader.endpoints.regeneration import Cause, Level, Progress
from services.loader.policy.entries import EntryKey, EntryValue
from tests.unit.loader.node_under_test import NodeUnderTest, add
from tests.unit.loader.waiting import until

FULL = 110


class Turns:
    """Counts the event loop's turns, and in which of them an endpoint's kernel state was written."""

    def __init__(self, node: NodeUnderTest) -> None:
        self.now = 0
        self.writes: Counter[int] = Counter()
        attach = node.kernel.attach

        def counted(record: object) -> None:
            self.writes[self.now] += 1
            attach(record)  # type: ignore[arg-type]

        node.kernel.attach = counted  # type: ignore[method-assign]
        self._task = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            self.now += 1
            await asyncio.sleep(0)

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
async def full(node: NodeUnderTest) -> NodeUnderTest:
    for number in range(FULL):
        await node.cni.add(add(f"c{number}", netns=f"/run/netns/{number}"))
    assert len(node.registry) == FULL
    return node


async def test_each_turn_of_the_loop_writes_one_endpoint_at_most(full: NodeUnderTest) -> None:
    turns = Turns(full)
    dumps = 0
    walk = full.kernel.walk_policy

    def counted() -> dict[int, dict[EntryKey, EntryValue]]:
        nonlocal dumps
        dumps += 1
        return walk()

    full.kernel.walk_policy = counted  # type: ignore[method-assign]
    await asyncio.gather(*(full.manager.regenerate(each.record.id) for each in full.registry))
    await turns.stop()
    assert sum(turns.writes.values()) == FULL
    assert max(turns.writes.values()) == 1
    assert dumps <= FULL / 2, "those who are worked on together share what is read"


async def test_a_new_endpoint_is_not_kept_waiting_by_a_hundred_others(full: NodeUnderTest) -> None:
    for each in full.registry:
        full.manager.regenerator.submit(each.record.id, Level.RELOAD, Cause.REFRESH)
    await full.cni.add(add("new", netns="/run/netns/new"))
    done = sum(
        full.registry.histories.of(each.record.id)[0].causes == (Cause.REFRESH,) for each in full.registry
    )
    assert done < FULL / 2, "it was ready long before the others were through"
    await until(
        lambda: all(
            full.registry.histories.of(each.record.id)[0].progress is Progress.DONE
            and full.manager.regenerator.pending(each.record.id) is None
            for each in full.registry
        )
    )
    assert {each.status.state for each in full.registry} == {State.READY}


async def test_a_refresh_writes_nothing_where_nothing_differs(full: NodeUnderTest) -> None:
    full.kernel.writes.clear()
    found = await full.refresh.once()
    assert (found.endpoints, found.subjects, found.addresses) == (0, 0, 0)
    assert full.kernel.writes == []


async def test_a_refresh_repairs_what_differs_and_nothing_else(full: NodeUnderTest) -> None:
    first, second, third, *_ = [each.record for each in full.registry]
    del full.kernel.endpoints[first.ifindex]
    full.kernel.hooked.discard(second.ifindex)
    full.kernel.addresses.pop(f"{third.ipv4}/32")
    full.kernel.writes.clear()
    found = await full.refresh.once()
    assert (found.endpoints, found.subjects, found.addresses) == (2, 0, 1)
    await until(lambda: len(full.kernel.endpoints) == FULL)
    await until(lambda: full.kernel.unhooked() == frozenset())
    assert f"{third.ipv4}/32" in full.kernel.addresses
    assert full.kernel.writes.count("attach") == 2
    causes = {each.record.id: full.registry.histories.of(each.record.id)[0].cause for each in full.registry}
    assert {number for number, cause in causes.items() if cause == "refresh"} == {first.id, second.id}


async def test_a_refresh_repairs_a_policy_for_all_who_share_it(full: NodeUnderTest) -> None:
    record = next(iter(full.registry)).record
    row = full.kernel.rows[record.subject]
    entries = dict(full.kernel.entries[row.instance])
    full.kernel.entries[row.instance].clear()
    found = await full.refresh.once()
    assert (found.endpoints, found.subjects, found.addresses) == (0, 1, 0)
    await until(lambda: full.kernel.entries[row.instance] == entries)
    full.kernel.rows[record.subject] = replace(row, ingress_enforced=not row.ingress_enforced)
    assert (await full.refresh.once()).subjects == 1
    await until(lambda: full.kernel.rows[record.subject].ingress_enforced == row.ingress_enforced)
    assert (await full.refresh.once()).subjects == 0


async def test_a_refresh_repairs_prefixes(full: NodeUnderTest) -> None:
    full.kernel.blocks = {"192.0.2.0/24": 7}
    found = await full.refresh.once()
    assert (found.endpoints, found.subjects, found.addresses, found.prefixes) == (0, 0, 0, 1)
    assert full.kernel.blocks == {}
    assert (await full.refresh.once()).prefixes == 0


async def test_a_refresh_lets_go_of_endpoints_whose_devices_are_gone(full: NodeUnderTest) -> None:
    gone = next(iter(full.registry)).record
    del full.links.devices[gone.spec.host_device]
    await full.refresh.once()
    await until(lambda: full.registry.find(gone.id) is None)
    assert gone.ifindex not in full.kernel.endpoints
    assert gone.spec.owner not in full.services.owners
    assert f"{gone.ipv4}/32" not in full.services.published
    assert len(full.registry) == FULL - 1
