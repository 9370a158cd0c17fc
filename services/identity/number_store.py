"""Free numbers from SQL: the cursor of a space of numbers, and the search for those that nobody has."""

from __future__ import annotations

from sqlalchemy import Table, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.identity import problems
from services.identity.numbers import Space, first_gap

# How many used numbers one step of the search for a free one reads.
SEARCH_PAGE = 1024


class NumberStore:
    """Gives out the numbers of a space: those that are not the `id` of a row of `used`.

    `cursor` is a table of one row whose `next_id` says where the search starts; see `numbers` on rotation.
    `remedy` says what helps when none is left.
    """

    def __init__(self, space: Space, used: Table, cursor: Table, remedy: str) -> None:
        self.space = space
        self._remedy = remedy
        self._cursor = select(
            cursor.c.next_id, select(used.c.id).where(used.c.id == cursor.c.next_id).exists().label("used")
        )
        self._used_between = (
            select(used.c.id)
            .where(used.c.id.between(bindparam("start"), bindparam("end")))
            .order_by(used.c.id)
            .limit(SEARCH_PAGE)
        )
        self._move_cursor = update(cursor).where(cursor.c.singleton == 1)

    async def take(self, connection: AsyncConnection) -> int:
        """The next free number in rotation, to be used before the next call.

        Raises ResourceExhausted (IDENTITIES_EXHAUSTED).
        """
        cursor = (await connection.execute(self._cursor)).one()
        for start, end in self.space.rotation(cursor.next_id):
            at_hand = start == cursor.next_id and not cursor.used
            number = start if at_hand else await self._free(connection, start, end)
            if number is not None:
                await connection.execute(self._move_cursor, {"next_id": number + 1})
                return number
        raise problems.identities_exhausted(self.space.first, self.space.last, self._remedy)

    async def take_many(self, connection: AsyncConnection, count: int) -> list[int]:
        """As many free numbers, in rotation. Raises ResourceExhausted (IDENTITIES_EXHAUSTED)."""
        cursor = (await connection.execute(self._cursor)).one()
        found: list[int] = []
        for start, end in self.space.rotation(cursor.next_id):
            while start <= end and len(found) < count:
                page = await self._page(connection, start, end)
                # Past the page's last number nothing is known, unless the page is the last one.
                upto = end if len(page) < SEARCH_PAGE else page[-1]
                used = set(page)
                for number in range(start, upto + 1):
                    if number not in used:
                        found.append(number)
                        if len(found) == count:
                            break
                start = upto + 1
        if len(found) < count:
            raise problems.identities_exhausted(self.space.first, self.space.last, self._remedy)
        await connection.execute(self._move_cursor, {"next_id": found[-1] + 1})
        return found

    async def _free(self, connection: AsyncConnection, start: int, end: int) -> int | None:
        while start <= end:
            page = await self._page(connection, start, end)
            number = first_gap(start, page)
            if number > end:
                return None
            if len(page) < SEARCH_PAGE or number <= page[-1]:
                return number
            start = number
        return None

    async def _page(self, connection: AsyncConnection, start: int, end: int) -> list[int]:
        rows = await connection.execute(self._used_between, {"start": start, "end": end})
        return list(rows.scalars().all())
