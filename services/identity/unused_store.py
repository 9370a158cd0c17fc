"""Identities that nobody uses, in SQL: found a page at a time, and removed after looking again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from sqlalchemy import bindparam, delete, exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.identity.chunks import chunks
from services.identity.schema import identity_uses, ipcache
from services.identity.spaces import TABLES

# Identities that one statement looks through: a few milliseconds, in which nothing else runs.
PAGE = 2000

_UNUSED = {
    name: ~exists().where(identity_uses.c.identity == table.c.id)
    & ~exists().where(ipcache.c.identity == table.c.id)
    for name, table in TABLES.items()
}
_PAGE_END = {
    name: select(func.max(page.c.id))
    for name, table in TABLES.items()
    for page in [
        select(table.c.id).where(table.c.id > bindparam("after")).order_by(table.c.id).limit(PAGE).subquery()
    ]
}
_FIND = {
    name: select(table.c.id, table.c.touched).where(
        table.c.id > bindparam("after"), table.c.id <= bindparam("upto"), _UNUSED[name]
    )
    for name, table in TABLES.items()
}
_STILL = {
    name: select(table.c.id, table.c.touched).where(
        table.c.id.in_(bindparam("numbers", expanding=True)), _UNUSED[name]
    )
    for name, table in TABLES.items()
}
_REMOVE = {
    name: delete(table).where(table.c.id.in_(bindparam("numbers", expanding=True)))
    for name, table in TABLES.items()
}


class UnusedStore:
    """The identities of both spaces that no holder uses and no ipcache entry has."""

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._feed = feed

    async def find(self, space: str) -> AsyncIterator[tuple[int, int]]:
        """(number, touched) of each unused identity of a space, each as of some moment during the search."""
        after = 0
        while True:
            async with self._database.read() as connection:
                upto = (await connection.execute(_PAGE_END[space], {"after": after})).scalar()
                if upto is None:
                    return
                rows = (await connection.execute(_FIND[space], {"after": after, "upto": upto})).all()
            after = upto
            for row in rows:
                yield row.id, row.touched
            await asyncio.sleep(0)

    async def remove(self, space: str, due: Sequence[tuple[int, int]]) -> list[int]:
        """Removes those of the (number, touched) that are still unused and have not been touched since.

        In one transaction, in which nobody can begin to use one; each is an event of the identity feed.
        """

        async def operation(connection: AsyncConnection) -> list[int]:
            gone: list[int] = []
            for chunk in chunks(due):
                expected = dict(chunk)
                rows = (await connection.execute(_STILL[space], {"numbers": list(expected)})).all()
                numbers = [row.id for row in rows if row.touched == expected[row.id]]
                if numbers:
                    await connection.execute(_REMOVE[space], {"numbers": numbers})
                    gone += numbers
            if gone:
                await self._feed.append_all(connection, [(str(number), b"", True) for number in gone])
            return gone

        return await self._database.write(operation)
