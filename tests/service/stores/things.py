"""What the tests of stores write and read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sqlalchemy import Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed, FeedBatch, FeedEvent
from tests.patience import patient

INSERT = text("INSERT INTO thing (name, count) VALUES (:name, 0)").bindparams(bindparam("name", type_=Text))
COUNT = text("SELECT count FROM thing WHERE name = :name").bindparams(bindparam("name", type_=Text))


async def insert(db: Database, name: str) -> str:
    async def operation(conn: AsyncConnection) -> str:
        await conn.execute(INSERT, {"name": name})
        return name

    return await db.write(operation)


async def names(db: Database) -> list[str]:
    async with db.read() as conn:
        return [row.name for row in await conn.execute(text("SELECT name FROM thing ORDER BY name"))]


async def append(db: Database, feed: Feed, *keys: str) -> int:
    """One event for each key in one transaction; the last one's revision."""

    async def operation(conn: AsyncConnection) -> int:
        return await feed.append_all(conn, [(key, key.encode(), False) for key in keys], "trace")

    return await db.write(operation)


async def take(watch: AsyncIterator[FeedBatch], count: int) -> list[FeedEvent]:
    """The next `count` events."""
    events: list[FeedEvent] = []
    async with asyncio.timeout(patient(15.0)):
        while len(events) < count:
            batch = await anext(watch)
            assert not batch.events or batch.revision == batch.events[-1].revision
            events += batch.events
    return events
