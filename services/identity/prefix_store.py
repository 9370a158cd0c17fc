"""Identities of prefixes in SQL. A new one is an event of the identity feed like any other identity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.identity.labelset import encode
from services.identity.model import Identity
from services.identity.number_store import NumberStore
from services.identity.numbers import Space
from services.identity.prefixes import prefix_identity, reserved_prefix
from services.identity.reserved import PREFIX_FIRST, PREFIX_LAST
from services.identity.schema import prefix_cursor, prefixes

SPACE = Space(PREFIX_FIRST, PREFIX_LAST)
# How many prefixes are remembered: those of the policies of a large cluster, a few MiB.
REMEMBERED = 8192
# Below the least limit on variables of one statement that any supported SQLite has.
CHUNK = 500

_NUMBERS = NumberStore(SPACE, prefixes, prefix_cursor, "let policies name fewer prefixes")
_COLUMNS = (prefixes.c.id, prefixes.c.prefix, prefixes.c.revision)
_BY_PREFIX = select(*_COLUMNS).where(prefixes.c.prefix.in_(bindparam("wanted", expanding=True)))
_BY_NUMBER = select(*_COLUMNS).where(prefixes.c.id == bindparam("number"))
_PAST = select(*_COLUMNS).where(prefixes.c.id > bindparam("after")).order_by(prefixes.c.id)
_ADD = insert(prefixes)


class PrefixStore:
    """Which number stands for which prefix. `clock` returns Unix time in nanoseconds."""

    def __init__(self, database: Database, feed: Feed, clock: Callable[[], int]) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        # What is committed here is never changed or removed: remembering it cannot go stale, whoever writes.
        self._remembered: dict[str, Identity] = {}

    async def resolve(self, wanted: Sequence[str], *, trace: str) -> list[Identity]:
        """The identities of prefixes in canonical text, in their order, made where they are new: all or none.

        Raises ResourceExhausted (IDENTITIES_EXHAUSTED).
        """
        found: dict[str, Identity] = {}
        for prefix in wanted:
            known = reserved_prefix(prefix) or self._remembered.get(prefix)
            if known is not None:
                found[prefix] = known
        missing = [prefix for prefix in dict.fromkeys(wanted) if prefix not in found]
        if missing:
            found |= await self._find_or_make(missing, trace)
        return [found[prefix] for prefix in wanted]

    async def _find_or_make(self, missing: Sequence[str], trace: str) -> dict[str, Identity]:
        async with self._database.read() as connection:
            found = await _find(connection, missing)
        new = [prefix for prefix in missing if prefix not in found]
        if new:
            found |= await self._make(new, trace)
        for prefix, identity in found.items():
            if len(self._remembered) >= REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[prefix] = identity
        return found

    async def _make(self, wanted: Sequence[str], trace: str) -> dict[str, Identity]:
        created_ns = self._clock()

        async def operation(connection: AsyncConnection) -> dict[str, Identity]:
            # Writes are one after the other: what others have made since the search is visible here.
            found = await _find(connection, wanted)
            new = [prefix for prefix in wanted if prefix not in found]
            if not new:
                return found
            numbers = await _NUMBERS.take_many(connection, len(new))
            made = [prefix_identity(prefix, number, 0) for prefix, number in zip(new, numbers, strict=True)]
            events = [(str(identity.number), encode(identity.labels), False) for identity in made]
            first = await self._feed.append_all(connection, events, trace) - len(events) + 1
            rows = [
                {"id": number, "prefix": prefix, "revision": first + at, "created_ns": created_ns}
                for at, (prefix, number) in enumerate(zip(new, numbers, strict=True))
            ]
            await connection.execute(_ADD, rows)
            for at, (prefix, number) in enumerate(zip(new, numbers, strict=True)):
                found[prefix] = prefix_identity(prefix, number, first + at)
            return found

        return await self._database.write(operation)


async def read_prefix(connection: AsyncConnection, number: int) -> Identity | None:
    """The identity of a prefix by its number."""
    row = (await connection.execute(_BY_NUMBER, {"number": number})).first()
    return _from_row(row) if row is not None else None


async def prefixes_past(connection: AsyncConnection, after: int, limit: int | None) -> list[Identity]:
    """Up to `limit` identities of prefixes by number past `after`."""
    rows = (await connection.execute(_PAST.limit(limit), {"after": after})).all()
    return [_from_row(row) for row in rows]


async def _find(connection: AsyncConnection, wanted: Sequence[str]) -> dict[str, Identity]:
    found: dict[str, Identity] = {}
    for chunk in _chunks(wanted):
        rows = (await connection.execute(_BY_PREFIX, {"wanted": chunk})).all()
        found.update((row.prefix, _from_row(row)) for row in rows)
    return found


def _chunks(wanted: Sequence[str]) -> Iterable[list[str]]:
    for start in range(0, len(wanted), CHUNK):
        yield list(wanted[start : start + CHUNK])


def _from_row(row: Any) -> Identity:
    return prefix_identity(row.prefix, row.id, row.revision)
