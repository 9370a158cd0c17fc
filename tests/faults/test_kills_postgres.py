"""kill -9 of any of three replicas, and of PostgreSQL itself, at random under 32 clients."""

from __future__ import annotations

from tests.faults.clients import Load
from tests.faults.storm import HOLD_SECONDS, NODES, SETTLE_CALLS, STORM_SECONDS, World
from tests.faults.verdict import check_everything


async def test_what_was_acknowledged_is_there_and_nothing_is_there_twice(three: World) -> None:
    assert three.server is not None
    await three.register()
    async with Load(three.ipam.target, three.identity.target, three.seed, NODES) as load:
        await load.more(SETTLE_CALLS)
        await three.storm(STORM_SECONDS / 2, three.members, pause=(0.1, 0.5))
        replicas, unavailable = three.kills, sum(each.unknown for each in load.histories)
        await three.storm(STORM_SECONDS, [*three.members, three.server, three.server], pause=(0.1, 0.8))
        await load.more(SETTLE_CALLS)
        await load.stop()
        counted = await check_everything(load, hold_seconds=HOLD_SECONDS)
    print(three.kills, "kills of replicas,", three.server_kills, "of PostgreSQL,", counted)
    print(unavailable, "calls of unknown outcome after", replicas, "kills of replicas alone")
    assert three.kills >= 4 and three.server_kills >= 1
    assert counted["acknowledged"] > 1000
