"""kill -9 of the one process over SQLite, again and again under 32 clients."""

from __future__ import annotations

import asyncio

from tests.faults.clients import TURN_SECONDS, TURNS, Load
from tests.faults.storm import HOLD_SECONDS, NODES, SETTLE_CALLS, STORM_SECONDS, World
from tests.faults.verdict import check_entries, check_everything


async def test_what_was_acknowledged_is_there_and_nothing_is_there_twice(lone: World) -> None:
    await lone.register()
    async with Load(lone.ipam.target, lone.identity.target, lone.seed, NODES) as load:
        await load.more(SETTLE_CALLS)
        await lone.storm(STORM_SECONDS, lone.members, pause=(0.1, 0.8))
        await load.more(SETTLE_CALLS)
        await load.stop()
        counted = await check_everything(load, hold_seconds=HOLD_SECONDS)
    print(lone.kills, "kills,", counted)
    assert lone.kills >= 3
    assert counted["acknowledged"] > 1000


async def test_what_is_used_is_never_collected_and_other_identities_not_at_once(
    lone_identity: World,
) -> None:
    target, only = lone_identity.identity.target, ("numbers", "passing", "passing")
    async with Load(target, target, lone_identity.seed, only=only, pace=0.02) as load:
        # Until all groups of label sets have had their turn once more.
        await asyncio.sleep(TURN_SECONDS * (TURNS + 3))
        await load.stop()
        counted = await check_entries(load)
    print(counted)
    assert counted["collected"] >= 1
