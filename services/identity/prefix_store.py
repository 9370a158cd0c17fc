"""Identities of prefixes in SQL. A new one is an event of the identity feed like any other identity."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import bindparam, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.identity import problems
from services.identity.chunks import chunks
from services.identity.labelset import encode
from services.identity.model import Identity
from services.identity.number_store import NumberStore
from services.identity.numbers import PREFIXES, Prospect, Space
from services.identity.prefixes import prefix_identity, reserved_prefix
from services.identity.remembered import LONGEST_SECONDS, Memory
from services.identity.schema import prefix_cursor, prefixes
from services.identity.use_store import hold, touch

# How many prefixes are remembered: those of the policies of a large cluster, a few MiB.
REMEMBERED = 8192

_COLUMNS = (prefixes.c.id, prefixes.c.prefix, prefixes.c.revision)
_BY_PREFIX = select(*_COLUMNS).where(prefixes.c.prefix.in_(bindparam("wanted", expanding=True)))
_BY_NUMBER = select(*_COLUMNS).where(prefixes.c.id == bindparam("number"))
_PAST = select(*_COLUMNS).where(prefixes.c.id > bindparam("after")).order_by(prefixes.c.id)
_ADD = insert(prefixes)


class PrefixStore:
    """Which number stands for which prefix. The arguments are those of `IdentityStore`."""

    def __init__(
        self,
        database: Database,
        feed: Feed,
        clock: Callable[[], int],
        *,
        space: Space = PREFIXES,
        remember_seconds: float = LONGEST_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        prospect: Callable[[Space], Prospect] = lambda space: Prospect(),
    ) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._prospect = prospect
        self.memory: Memory[str] = Memory(REMEMBERED, remember_seconds, monotonic)
        self.numbers = NumberStore(space, prefixes, prefix_cursor)

    async def resolve(self, wanted: Sequence[str], *, holder: str = "", trace: str) -> list[Identity]:
        """The identities of prefixes in canonical text, in their order, made where they are new: all or none.

        A holder uses them from then on. Raises ResourceExhausted (IDENTITIES_EXHAUSTED).
        """
        found: dict[str, Identity] = {}
        for prefix in wanted:
            known = self.memory.find(prefix, holder) or reserved_prefix(prefix)
            if known is not None:
                found[prefix] = known
        missing = [prefix for prefix in dict.fromkeys(wanted) if prefix not in found]
        if missing:
            since = self.memory.monotonic()
            for prefix, identity in (await self._find_or_make(missing, holder, trace)).items():
                found[prefix] = self.memory.keep(prefix, identity, holder, since)
        return [found[prefix] for prefix in wanted]

    async def _find_or_make(self, wanted: Sequence[str], holder: str, trace: str) -> dict[str, Identity]:
        async def operation(connection: AsyncConnection) -> dict[str, Identity]:
            found: dict[str, Identity] = {}
            for chunk in chunks(wanted):
                rows = (await connection.execute(_BY_PREFIX, {"wanted": chunk})).all()
                found.update((row.prefix, _from_row(row)) for row in rows)
            await touch(connection, [identity.number for identity in found.values()])
            new = [prefix for prefix in wanted if prefix not in found]
            if new:
                found |= await self._make(connection, new, trace)
            if holder:
                pairs = [(holder, identity.number) for identity in found.values()]
                await hold(connection, pairs, self._clock())
            return found

        return await self._database.write(operation)

    async def _make(self, connection: AsyncConnection, new: Sequence[str], trace: str) -> dict[str, Identity]:
        numbers = await self.numbers.take_many(connection, len(new))
        if len(numbers) < len(new):
            space, coming = self.numbers.space, self._prospect(self.numbers.space)
            raise problems.identities_exhausted(
                space.first,
                space.last,
                await self.numbers.taken(connection),
                space.remedy,
                unused=coming.unused,
                retry_after=coming.seconds,
            )
        made = [prefix_identity(prefix, number, 0) for prefix, number in zip(new, numbers, strict=True)]
        events = [(str(identity.number), encode(identity.labels), False) for identity in made]
        first = await self._feed.append_all(connection, events, trace) - len(events) + 1
        created_ns = self._clock()
        rows: list[dict[str, Any]] = [
            {"id": number, "prefix": prefix, "revision": revision, "created_ns": created_ns, "touched": 1}
            for revision, (prefix, number) in enumerate(zip(new, numbers, strict=True), start=first)
        ]
        await connection.execute(_ADD, rows)
        return {row["prefix"]: prefix_identity(row["prefix"], row["id"], row["revision"]) for row in rows}


async def read_prefix(connection: AsyncConnection, number: int) -> Identity | None:
    """The identity of a prefix by its number."""
    row = (await connection.execute(_BY_NUMBER, {"number": number})).first()
    return _from_row(row) if row is not None else None


async def prefixes_past(connection: AsyncConnection, after: int, limit: int | None) -> list[Identity]:
    """Up to `limit` identities of prefixes by number past `after`."""
    rows = (await connection.execute(_PAST.limit(limit), {"after": after})).all()
    return [_from_row(row) for row in rows]


def _from_row(row: Any) -> Identity:
    return prefix_identity(row.prefix, row.id, row.revision)
