"""Events appended together, and compaction in the background."""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.errors import Unavailable
from services.chassis.feed import Feed, FeedEvent, compact_regularly


async def append_all(db: Database, feed: Feed, *keys: str) -> int:
    async def operation(conn: AsyncConnection) -> int:
        return await feed.append_all(conn, [(key, key.encode(), key == "gone") for key in keys], "t")

    return await db.write(operation)


async def test_events_appended_together_have_revisions_in_a_row(db: Database) -> None:
    feed = Feed(db, "things")
    assert await append_all(db, feed, "a") == 1
    assert await append_all(db, feed, "b", "gone", "c") == 4
    expected = (
        FeedEvent(2, "b", b"b", False, "t"),
        FeedEvent(3, "gone", b"gone", True, "t"),
        FeedEvent(4, "c", b"c", False, "t"),
    )
    # The same from the process's tail and from the store.
    for source in (feed, Feed(db, "things")):
        batch = await anext(source.watch(1))
        assert (batch.revision, batch.events) == (4, expected)


async def test_compaction_goes_on_after_a_store_that_could_not_be_written(db: Database) -> None:
    feed = Feed(db, "things")
    await append_all(db, feed, *"abcdef")
    turns = 0
    enough = asyncio.Event()

    class Failing(Feed):
        async def compact(self, keep: int) -> int:
            nonlocal turns
            turns += 1
            if turns == 3:
                enough.set()
            raise Unavailable("locked", reason="DATABASE_BUSY")

    background = asyncio.create_task(compact_regularly([Failing(db, "other"), feed], keep=2, seconds=0))
    await asyncio.wait_for(enough.wait(), 10)
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)
    assert await feed.compact(2) == 4
    assert [event.revision for event in (await anext(Feed(db, "things").watch(4))).events] == [5, 6]
