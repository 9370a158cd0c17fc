"""What both kinds of store promise of feeds, with several replicas writing and watching."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

import pytest

from services.chassis import feed as feed_module
from services.chassis.db import Database
from services.chassis.errors import OutOfRange
from services.chassis.feed import POLL_SECONDS, Feed, FeedBatch, FeedEvent
from tests.patience import patient
from tests.service.stores.conftest import Store
from tests.service.stores.things import append, take


async def test_replicas_number_and_deliver_events_in_one_order(db: Database, other: Database) -> None:
    ours, theirs = Feed(db, "nodes"), Feed(other, "nodes")
    readers = [
        asyncio.create_task(take(watch, 160)) for watch in (ours.watch(0), ours.watch(0), theirs.watch(0))
    ]
    for start in range(0, 80, 20):
        # Some at once, so that they share transactions, and some with several events.
        await asyncio.gather(
            *(append(db, ours, f"ours-{start + number}") for number in range(20)),
            *(
                append(other, theirs, f"a-{start + number}", f"b-{start + number}")
                for number in range(0, 20, 2)
            ),
        )
    found = await asyncio.gather(*readers)
    assert [each.revision for each in found[0]] == list(range(1, 161))
    assert found[0] == found[1] == found[2]


async def test_a_watch_goes_on_with_another_replica_where_it_was(db: Database, other: Database) -> None:
    ours, theirs = Feed(db, "nodes"), Feed(other, "nodes")
    keys = [f"{number}" for number in range(150)]
    seen: list[FeedEvent] = []
    random.seed(7)

    async def write() -> None:
        for key in keys:
            await (append(db, ours, key) if random.random() < 0.5 else append(other, theirs, key))

    writing = asyncio.create_task(write())
    feeds = [ours, theirs]
    async with asyncio.timeout(patient(30.0)):
        while len(seen) < len(keys):
            watch = random.choice(feeds).watch(seen[-1].revision if seen else 0)
            seen += await take(watch, min(random.randint(1, 20), len(keys) - len(seen)))
            await watch.aclose()  # type: ignore[attr-defined]
    await writing
    assert [event.revision for event in seen] == list(range(1, len(keys) + 1))
    assert [event.key for event in seen] == keys


async def test_a_new_replica_knows_how_far_the_feed_is_and_resumes(store: Store, db: Database) -> None:
    feed = Feed(db, "nodes")
    await append(db, feed, *"abcdefghij")
    async with store.open() as later:
        again = Feed(later, "nodes")
        assert again.revision == 10
        assert [event.key for event in await take(again.watch(7), 3)] == ["h", "i", "j"]
        assert await append(later, again, "k") == 11


async def test_compaction_by_one_replica_holds_for_all(db: Database, other: Database) -> None:
    ours, theirs = Feed(db, "nodes"), Feed(other, "nodes")
    await append(db, ours, *"abcdefghij")
    assert await theirs.compact(keep=3) == 7
    for feed, start in ((ours, 6), (theirs, 0)):
        with pytest.raises(OutOfRange) as caught:
            await anext(feed.watch(start))
        assert caught.value.reason == "REVISION_COMPACTED"
        assert caught.value.metadata["restart_revision"] == "7"
        assert [event.revision for event in await take(feed.watch(7), 3)] == [8, 9, 10]
    with pytest.raises(OutOfRange) as caught:
        await anext(ours.watch(11))
    assert caught.value.reason == "REVISION_UNKNOWN"


async def test_a_watcher_that_compaction_overtook_is_told(
    db: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is in memory is given out all the same.
    monkeypatch.setattr(feed_module, "TAIL_EVENTS", 8)
    ours, theirs = Feed(db, "nodes"), Feed(other, "nodes")
    await append(db, ours, "a")
    watch = ours.watch(0)
    await take(watch, 1)
    await append(other, theirs, *(str(number) for number in range(1000)))
    await theirs.compact(keep=1)
    with pytest.raises(OutOfRange) as caught:
        while True:
            await take(watch, 1)
    assert caught.value.reason == "REVISION_COMPACTED"


async def test_watchers_of_a_process_share_one_reading_of_what_others_wrote(
    db: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Feed(db, "nodes"), Feed(other, "nodes")
    await append(other, theirs, "first")
    watches = [ours.watch(1, announce=True) for _ in range(20)]
    for watch in watches:
        assert (await anext(watch)).events == ()
    waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
    reads = 0
    read = Feed._read

    async def counted(self: Feed, after: int) -> tuple[FeedEvent, ...]:
        nonlocal reads
        reads += 1
        return await read(self, after)

    monkeypatch.setattr(Feed, "_read", counted)
    await append(other, theirs, "second", "third")
    async with asyncio.timeout(patient(5.0)):
        batches = await asyncio.gather(*waiting)
    assert reads == 1
    assert all(batch is batches[0] for batch in batches)
    assert [event.key for event in batches[0].events] == ["second", "third"]


async def test_more_than_is_kept_in_memory_comes_from_the_store(
    db: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "TAIL_EVENTS", 8)
    ours, theirs = Feed(db, "nodes"), Feed(other, "nodes")
    watch = ours.watch(0)
    await append(db, ours, "first")
    await take(watch, 1)
    for start in range(0, 3000, 500):
        await append(other, theirs, *(str(number) for number in range(start, start + 500)))
        await append(db, ours, "between")
    assert [event.revision for event in await take(watch, 3006)] == list(range(2, 3008))


async def test_two_feeds_of_one_name_in_a_process_hear_of_each_other(db: Database) -> None:
    writer, reader = Feed(db, "nodes"), Feed(db, "nodes")
    watch = reader.watch(0, announce=True)
    assert (await anext(watch)).events == ()
    waiting = asyncio.create_task(take(watch, 1))
    started = time.perf_counter()
    await append(db, writer, "a")
    assert [event.key for event in await waiting] == ["a"]
    assert time.perf_counter() - started < patient(POLL_SECONDS / 2)


async def listening(db: Database) -> None:
    """Once announcements of other replicas arrive."""
    for _ in range(int(patient(5.0) / 0.01)):
        if db.announces:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("announcements do not arrive")


async def delays(watch: AsyncIterator[FeedBatch], db: Database, feed: Feed, count: int) -> list[float]:
    """Seconds from each of `count` commits to the watcher's having it."""
    woken: dict[int, float] = {}

    async def watching() -> None:
        async for batch in watch:
            woken.update({event.revision: time.perf_counter() for event in batch.events})
            if len(woken) == count:
                return

    watcher = asyncio.create_task(watching())
    committed = {}
    for number in range(count):
        committed[await append(db, feed, str(number))] = time.perf_counter()
        await asyncio.sleep(0.01)
    async with asyncio.timeout(patient(10.0)):
        await watcher
    return sorted(woken[revision] - committed[revision] for revision in committed)


async def test_watchers_hear_of_commits_of_other_replicas_soon(
    store: Store, db: Database, other: Database
) -> None:
    ours, theirs = Feed(db, "nodes"), Feed(other, "nodes")
    await append(db, ours, "there")
    watch = ours.watch(0)
    await take(watch, 1)
    if store.kind == "postgresql":
        await listening(db)
    found = await delays(watch, other, theirs, 20)
    if store.kind == "postgresql":
        # Told, not found by looking.
        assert found[len(found) // 2] < patient(POLL_SECONDS / 5)
    assert found[-1] < patient(4 * POLL_SECONDS)
    assert (await delays(ours.watch(21), db, ours, 20))[10] < patient(POLL_SECONDS / 5)
