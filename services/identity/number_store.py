"""Free numbers from SQL: the cursor of a space of numbers, and the search for those that nobody has.

Most of the time the numbers past the cursor are free, and a look at a few of them is enough. In a space that
is nearly full it is not: then all free numbers are looked up once and remembered, and from there on each is
only asked for by name, until none of them is left. So the price of a number does not grow with how full the
space is.
"""

from __future__ import annotations

from bisect import bisect_left

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.statements import Sql, SqlOfKeys
from services.identity.chunks import CHUNK
from services.identity.numbers import Space

# How many more numbers than four times those that are needed the first look takes in.
MARGIN = 64


class NumberStore:
    """Gives out the numbers of a space: those that are not the `id` of a row of `used`.

    `cursor` is a table of one row whose `next_id` says where the search starts; see `numbers` on rotation.
    """

    def __init__(self, space: Space, used: Table, cursor: Table) -> None:
        self.space = space
        # Numbers that were free when they were looked up, ascending; others may have taken them since.
        self._free: list[int] = []
        # The cursor and what is used of the numbers just past it, in one statement for the common case.
        self._past_cursor = Sql(
            f"SELECT c.next_id, u.id FROM {cursor.name} AS c LEFT JOIN {used.name} AS u"
            " ON u.id >= c.next_id AND u.id < c.next_id + CAST(? AS INTEGER) WHERE c.singleton = 1"
        )
        self._used_between = Sql(f"SELECT id FROM {used.name} WHERE id BETWEEN ? AND ?")
        self._used_of = SqlOfKeys(f"SELECT id FROM {used.name} WHERE id IN ({{keys}})", "?", (-1,))
        self._count = Sql(f"SELECT count(*) FROM {used.name} WHERE id BETWEEN ? AND ?")
        self._move_cursor = Sql(f"UPDATE {cursor.name} SET next_id = ? WHERE singleton = 1")

    async def take_many(self, connection: AsyncConnection, count: int) -> list[int]:
        """Up to `count` free numbers in rotation, fewer when there are no more. Inside a write."""
        if count == 0:
            return []
        window = 4 * count + MARGIN
        rows = await self._past_cursor.rows(connection, window)
        stored: int = rows[0][0]
        used = {number for _, number in rows}
        cursor = self.space.clamp(stored)
        if cursor != stored:
            used = await self._between(connection, cursor, cursor + window - 1)
        end = min(cursor + window - 1, self.space.last)
        found = [number for number in range(cursor, end + 1) if number not in used][:count]
        if len(found) < count:
            after = found[-1] + 1 if found else cursor
            found += await self._remembered(connection, after, count - len(found), {*found})
        if len(found) < count and await self.taken(connection) + len(found) < self.space.capacity:
            after = found[-1] + 1 if found else cursor
            self._free = await self._search(connection, {*found})
            found += await self._remembered(connection, after, count - len(found), {*found})
        if found:
            await self._move_cursor.run(connection, found[-1] + 1)
        return found

    async def taken(self, connection: AsyncConnection) -> int:
        """How many numbers of the space stand for something."""
        ((taken,),) = await self._count.rows(connection, self.space.first, self.space.last)
        return int(taken)

    async def _remembered(
        self, connection: AsyncConnection, cursor: int, count: int, taken: set[int]
    ) -> list[int]:
        """The same from the free numbers that are remembered; those that are used by now are forgotten."""
        found: list[int] = []
        at = bisect_left(self._free, cursor)
        while self._free and len(found) < count:
            at = at if at < len(self._free) else 0
            some = self._free[at : at + min(CHUNK, count - len(found) + MARGIN)]
            rows = await self._used_of.rows(connection, [(number,) for number in some])
            gone = {*(number for (number,) in rows), *taken}
            asked = 0
            for number in some:
                if len(found) == count:
                    break
                asked += 1
                if number not in gone:
                    found.append(number)
            # What was asked for is in use now, or about to be.
            del self._free[at : at + asked]
        return found

    async def _search(self, connection: AsyncConnection, taken: set[int]) -> list[int]:
        used = await self._between(connection, self.space.first, self.space.last)
        numbers = range(self.space.first, self.space.last + 1)
        return [number for number in numbers if number not in used and number not in taken]

    async def _between(self, connection: AsyncConnection, start: int, end: int) -> set[int]:
        return {number for (number,) in await self._used_between.rows(connection, start, end)}
