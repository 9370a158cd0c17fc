from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis import feed as feed_module
from services.chassis.db import Database
from services.chassis.errors import OutOfRange
from services.chassis.feed import POLL_SECONDS, TAIL_BYTES, Feed, FeedBatch, FeedEvent


async def append(db: Database, feed: Feed, key: str, payload: bytes = b"x", deleted: bool = False) -> int:
    async def operation(conn: AsyncConnection) -> int:
        return await feed.append(conn, key, payload, deleted, trace=f"trace-of-{key}")

    return await db.write(operation)


async def take(watch: AsyncIterator[FeedBatch], count: int) -> list[FeedEvent]:
    """The next ``count`` events."""
    events: list[FeedEvent] = []
    async with asyncio.timeout(10):
        while len(events) < count:
            batch = await anext(watch)
            assert not batch.events or batch.revision == batch.events[-1].revision
            events += batch.events
    return events


async def test_revisions_count_from_one_per_feed(db: Database) -> None:
    nodes, pools = Feed(db, "nodes"), Feed(db, "pools")
    assert [await append(db, nodes, key) for key in "abc"] == [1, 2, 3]
    assert await append(db, pools, "p") == 1
    assert (nodes.revision, pools.revision) == (3, 1)


async def test_a_watch_delivers_what_was_and_what_comes(db: Database) -> None:
    feed = Feed(db, "nodes")
    await append(db, feed, "a", b"1")
    await append(db, feed, "a", b"", deleted=True)
    watch = feed.watch(0)
    assert await take(watch, 2) == [
        FeedEvent(1, "a", b"1", False, "trace-of-a"),
        FeedEvent(2, "a", b"", True, "trace-of-a"),
    ]
    waiting = asyncio.create_task(take(watch, 1))
    await asyncio.sleep(0.01)
    await append(db, feed, "b")
    assert [event.key for event in await waiting] == ["b"]


async def test_a_watch_resumes_after_a_revision_also_in_a_new_process(
    db: Database, url: str, migrations: Path
) -> None:
    feed = Feed(db, "nodes")
    for number in range(10):
        await append(db, feed, str(number))
    assert [event.revision for event in await take(feed.watch(7), 3)] == [8, 9, 10]
    await db.close()
    async with await Database.open(url, migrations) as reopened:
        again = Feed(reopened, "nodes")
        assert again.revision == 10
        assert [event.revision for event in await take(again.watch(7), 3)] == [8, 9, 10]
        assert await append(reopened, again, "next") == 11


async def test_a_failed_operation_leaves_no_gap(db: Database) -> None:
    feed = Feed(db, "nodes")

    async def failing(conn: AsyncConnection) -> None:
        await feed.append(conn, "never", b"")
        raise ValueError("no")

    writes = [append(db, feed, "a"), db.write(failing), append(db, feed, "b")]
    await asyncio.gather(*writes, return_exceptions=True)
    assert [(event.revision, event.key) for event in await take(feed.watch(0), 2)] == [(1, "a"), (2, "b")]


async def test_several_events_of_one_operation_arrive_in_its_order(db: Database) -> None:
    feed = Feed(db, "nodes")

    async def operation(conn: AsyncConnection) -> int:
        return await feed.append_all(conn, [("a", b"1", False), ("b", b"2", False), ("a", b"", True)], "t")

    assert await db.write(operation) == 3
    events = await take(feed.watch(0), 3)
    assert [(event.revision, event.key, event.deleted) for event in events] == [
        (1, "a", False),
        (2, "b", False),
        (3, "a", True),
    ]


async def test_commit_order_is_revision_order_with_writers_in_two_processes(
    db: Database, other: Database
) -> None:
    ours, theirs = Feed(db, "nodes"), Feed(other, "nodes")
    watches = [ours.watch(0), theirs.watch(0)]
    readers = [asyncio.create_task(take(watch, 120)) for watch in watches]
    await asyncio.gather(
        *(append(db, ours, f"ours-{number}") for number in range(60)),
        *(append(other, theirs, f"theirs-{number}") for number in range(60)),
    )
    first, second = await asyncio.gather(*readers)
    assert [event.revision for event in first] == list(range(1, 121))
    assert first == second
    assert {event.key for event in first} == {f"{who}-{n}" for who in ("ours", "theirs") for n in range(60)}


async def test_a_watcher_wakes_at_once_after_a_commit_of_its_own_process(db: Database) -> None:
    feed = Feed(db, "nodes")
    woken: dict[int, float] = {}

    async def watching() -> None:
        nonlocal woken
        async for batch in feed.watch(0):
            woken |= {event.revision: time.perf_counter() for event in batch.events}
            if batch.revision == 20:
                return

    watcher = asyncio.create_task(watching())
    committed: dict[int, float] = {}
    for number in range(20):
        revision = await append(db, feed, str(number))
        committed[revision] = time.perf_counter()
        await asyncio.sleep(0.005)
    await watcher
    delays = sorted(woken[revision] - committed[revision] for revision in committed)
    # Told, not found by polling: most come long before the next poll would have been.
    assert delays[len(delays) // 2] < POLL_SECONDS / 5


async def test_a_watcher_sees_what_another_process_commits(db: Database, other: Database) -> None:
    watch = Feed(db, "nodes").watch(0)
    waiting = asyncio.create_task(take(watch, 1))
    await asyncio.sleep(0.05)
    await append(other, Feed(other, "nodes"), "theirs")
    async with asyncio.timeout(2):
        assert [event.key for event in await waiting] == ["theirs"]


async def test_progress_is_told_when_nothing_happens(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "PROGRESS_SECONDS", 0.02)
    feed = Feed(db, "nodes")
    await append(db, feed, "a")
    assert await anext(feed.watch(1)) == FeedBatch(1)


async def test_a_resumed_watch_may_be_told_at_once_that_it_is_open(db: Database) -> None:
    feed = Feed(db, "nodes")
    await append(db, feed, "a")
    async with asyncio.timeout(2):
        assert await anext(feed.watch(1, announce=True)) == FeedBatch(1)
        assert [event.key for event in (await anext(feed.watch(0, announce=True))).events] == ["a"]


async def test_a_watch_from_before_compaction_is_told_where_to_start(db: Database) -> None:
    feed = Feed(db, "nodes")
    for number in range(10):
        await append(db, feed, str(number))
    assert await feed.compact(keep=3) == 7
    for start in (0, 6):
        with pytest.raises(OutOfRange) as caught:
            await anext(feed.watch(start))
        assert caught.value.reason == "REVISION_COMPACTED"
        assert caught.value.metadata["restart_revision"] == "7"
    assert [event.revision for event in await take(feed.watch(7), 3)] == [8, 9, 10]
    async with db.read() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM feed_event"))).scalar_one() == 3


async def test_compaction_keeps_what_it_is_told_and_never_goes_back(db: Database) -> None:
    feed = Feed(db, "nodes")
    assert await feed.compact(keep=5) == 0
    for number in range(4):
        await append(db, feed, str(number))
    assert await feed.compact(keep=1) == 3
    assert await feed.compact(keep=4) == 3
    assert await append(db, feed, "next") == 5


async def test_a_watcher_overtaken_by_compaction_is_told(db: Database, other: Database) -> None:
    feed = Feed(db, "nodes")
    await append(db, feed, "a")
    watch = feed.watch(0)
    assert len(await take(watch, 1)) == 1
    theirs = Feed(other, "nodes")
    for number in range(5):
        await append(other, theirs, str(number))
    await theirs.compact(keep=1)
    with pytest.raises(OutOfRange) as caught:
        await take(watch, 1)
    assert caught.value.reason == "REVISION_COMPACTED"


async def test_a_revision_from_the_future_is_refused(db: Database) -> None:
    feed = Feed(db, "nodes")
    await append(db, feed, "a")
    with pytest.raises(OutOfRange) as caught:
        await anext(feed.watch(9))
    assert caught.value.reason == "REVISION_UNKNOWN"
    assert caught.value.metadata == {"revision": "9", "restart_revision": "1"}


async def test_a_slow_watcher_gets_everything_from_the_store(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "TAIL_EVENTS", 8)
    feed = Feed(db, "nodes")
    watch = feed.watch(0)
    await append(db, feed, "first")
    assert len(await take(watch, 1)) == 1
    await asyncio.gather(*(append(db, feed, str(number)) for number in range(2000)))
    events = await take(watch, 2000)
    assert [event.revision for event in events] == list(range(2, 2002))


async def test_a_snapshot_and_its_revision_belong_together(db: Database) -> None:
    feed = Feed(db, "nodes")
    await append(db, feed, "a")
    async with db.read() as conn:
        assert await feed.revision_at(conn) == 1
        await append(db, feed, "b")
        assert await feed.revision_at(conn) == 1
    assert feed.revision == 2


async def test_polling_ends_with_the_last_watcher(db: Database) -> None:
    feed = Feed(db, "nodes")
    await append(db, feed, "a")
    watch = feed.watch(0)
    await take(watch, 1)

    def polls() -> list[str]:
        return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "feed-poll-nodes"]

    assert polls() == ["feed-poll-nodes"]
    await watch.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    assert polls() == []


async def test_large_events_are_not_all_kept_in_memory(db: Database) -> None:
    feed = Feed(db, "documents")
    for number in range(6):
        await append(db, feed, f"{number}", b"x" * (TAIL_BYTES // 4))
    assert [event.key for event in feed._tail] == ["2", "3", "4", "5"]
    assert sum(len(event.payload) for event in feed._tail) == feed._tail_bytes == TAIL_BYTES
    assert [event.key for event in await take(feed.watch(0), 6)] == [f"{number}" for number in range(6)]
