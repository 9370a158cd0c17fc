"""Watchers under fire, over whatever store and replicas they are given."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

from cli.lab.postgres import Postgres
from services.chassis.db import Database
from tests.faults.checker import Violation
from tests.faults.clients import Load
from tests.faults.servers import Replica
from tests.faults.storm import SETTLE_CALLS, SETTLE_SECONDS, World
from tests.faults.verdict import check_entries
from tests.faults.watcher import ENTRIES, IDENTITIES, Log, Watcher, keep_log, watching

# How many events are kept: a watcher that falls behind for a moment is compacted away.
KEEP: Final = 40


async def torture(
    world: World, database: Database, seconds: float, victims: Sequence[Replica | Postgres]
) -> None:
    """Storm, compaction and slow watchers at once; then every claim of every watcher is checked."""
    service = world.identity
    await keep_log(database)
    targets = [service.target, *(service.one(number) for number in range(len(service.members)))]
    logs = [Log(database, table, KEEP) for table in (ENTRIES, IDENTITIES)]
    watchers = {
        log.table.feed: [
            Watcher(log.table, targets, random.Random(f"{world.seed}-{number}"), slow)
            for number, slow in enumerate((0.0, 0.0, 0.1, 0.6))
        ]
        for log in logs
    }
    everyone = [watcher for each in watchers.values() for watcher in each]
    only = ("numbers", "entries", "passing")
    async with watching(logs, everyone), Load(service.target, service.target, world.seed, only=only) as load:
        await load.more(SETTLE_CALLS)
        await world.storm(seconds, victims, pause=(0.2, 1.0))
        # Whoever resumes from long ago is told that it has to begin anew.
        for followers in watchers.values():
            followers[0].forget()
        await load.more(SETTLE_CALLS)
        await load.stop()
        for each in everyone:
            # Hundreds of small messages may be on their way to a slow one: now it takes them.
            each.slow = 0.0
        await _caught_up(world, logs, watchers)
    for log in logs:
        # Unused identities went on being collected while the watchers caught up.
        await log.read()
    claims = sum(log.check(watchers[log.table.feed]) for log in logs)
    counted = await check_entries(load)
    restarted = sum(watcher.restarted for watcher in everyone)
    resumed = sum(watcher.resumed for watcher in everyone)
    print(
        f"{world.kills} kills, {world.server_kills} of the server, {counted}, {claims} claims checked,"
        f" {resumed} times resumed, {restarted} of them from a snapshot,"
        f" revisions {[log.revision for log in logs]}"
    )
    assert restarted >= len(logs) and resumed > restarted and claims > 100


async def _caught_up(world: World, logs: list[Log], watchers: dict[str, list[Watcher]]) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    for log in logs:
        await log.read()
        while behind := [each for each in watchers[log.table.feed] if each.revision < log.revision]:
            await asyncio.sleep(0.02)
            if time.monotonic() > deadline:
                told = [(each.revision, each.target[-12:], each.resumed) for each in behind]
                world.tell_tasks()
                raise Violation(f"watchers of {log.table.feed} never come to {log.revision}: {told}")
