"""Snapshots that are read once for all who wait for one, and messages encoded once for all watchers."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from fimbria.identity.v1 import identity_pb2

from services.chassis.db import Database
from services.chassis.feed import Feed, FeedEvent
from services.identity.ipcache import Entry
from services.identity.ipcache_store import encode_entry
from services.identity.messages import entries_end, entry_event
from services.identity.streams import Shared, Snapshot, WatchStream


async def test_who_asks_while_one_is_made_shares_the_next() -> None:
    begun: asyncio.Queue[asyncio.Event] = asyncio.Queue()
    numbers = itertools.count(1)

    async def make() -> int:
        number, end = next(numbers), asyncio.Event()
        begun.put_nowait(end)
        await end.wait()
        return number

    shared = Shared(make)
    first = asyncio.create_task(shared.get())
    end = await begun.get()
    later = [asyncio.create_task(shared.get()) for _ in range(5)]
    await asyncio.sleep(0)
    # One of them gives up, which is not the others' affair.
    later.pop().cancel()
    end.set()
    assert await first == 1
    (await begun.get()).set()
    assert await asyncio.gather(*later) == [2] * 4
    last = asyncio.create_task(shared.get())
    (await begun.get()).set()
    assert await last == 3


async def test_a_failure_is_told_to_those_who_share_it_alone() -> None:
    outcomes = [ValueError("no"), 7]

    async def make() -> object:
        outcome = outcomes.pop(0)
        if isinstance(outcome, ValueError):
            raise outcome
        return outcome

    shared = Shared(make)
    results = await asyncio.gather(shared.get(), shared.get(), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert await shared.get() == 7


async def test_events_are_encoded_once_for_all_watchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []

    def encode(event: FeedEvent) -> identity_pb2.WatchIpCacheResponse:
        encoded.append(event.revision)
        return entry_event(event)

    async def nothing() -> Snapshot:
        return Snapshot((), 0)

    async with await Database.open(
        f"sqlite:///{tmp_path}/identity.db", "services.identity.migrations"
    ) as database:
        feed = Feed(database, "ipcache")
        stream = WatchStream(feed, nothing, encode, entries_end)
        entries = [Entry(f"10.0.0.{host}/32", 256, "a", revision=host) for host in range(1, 6)]
        changes = [(entry.prefix, encode_entry(entry), False) for entry in entries]

        async def publish(connection: object) -> int:
            return await feed.append_all(connection, changes)  # type: ignore[arg-type]

        await database.write(publish)
        for start in (1, 2, 1):
            watch = stream.watch(start)
            # What a resumed watch says first is that it is open.
            message = identity_pb2.WatchIpCacheResponse.FromString(await anext(watch))
            assert (message.revision, message.snapshot_complete) == (5, False)
            assert [event.entry.prefix for event in message.events] == [e.prefix for e in entries[start:]]
            await watch.aclose()  # type: ignore[attr-defined]
    assert encoded == [2, 3, 4, 5]
