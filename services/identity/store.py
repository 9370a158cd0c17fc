"""Identities in SQL: every new one is an event of the identity feed, and so is one that is collected.

Those of prefixes are made by `prefix_store`; here they are only found and listed with the others.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database, Group
from services.chassis.errors import FimbriaError
from services.chassis.feed import Feed
from services.chassis.labels import LabelSet
from services.chassis.statements import Sql, SqlOfKeys
from services.identity import prefix_store, problems
from services.identity.labelset import digest, encode, reserved_number
from services.identity.model import Identity, reserved_identity
from services.identity.number_store import NumberStore
from services.identity.numbers import CLUSTER, PREFIXES, Prospect, Space
from services.identity.remembered import LONGEST_SECONDS, Memory
from services.identity.reserved import is_reserved
from services.identity.schema import identities, identity_cursor
from services.identity.use_store import hold, touch

# How many identities are remembered: those of a busy cluster's running workloads, some ten MiB at most.
REMEMBERED = 8192

# A long list in IN would make PostgreSQL scan the table.
_BY_DIGEST = SqlOfKeys(
    "WITH wanted (digest) AS (VALUES {keys})"
    " SELECT i.digest, i.id, i.revision FROM wanted AS w JOIN identities AS i ON i.digest = w.digest",
    "(CAST(? AS BYTEA))",
    (b"",),
)
_BY_NUMBER = select(identities.c.id, identities.c.labels, identities.c.revision).where(
    identities.c.id == bindparam("number")
)
_PAST = (
    select(identities.c.id, identities.c.labels, identities.c.revision)
    .where(identities.c.id > bindparam("after"))
    .order_by(identities.c.id)
)
_ADD = Sql(
    "INSERT INTO identities (id, digest, labels, revision, created_ns, touched) VALUES (?, ?, ?, ?, ?, 1)"
)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A label set that is not remembered: found or made, touched, and used by a holder if one is named."""

    encoded: bytes
    digest: bytes
    holder: str
    trace: str


class IdentityStore:
    """Which number stands for which label set. `clock` returns Unix time in nanoseconds.

    What has been resolved is remembered for `remember_seconds` after it was touched in the store; see
    `remembered`. `prospect` says what garbage collection is about to free.
    """

    def __init__(
        self,
        database: Database,
        feed: Feed,
        clock: Callable[[], int],
        *,
        space: Space = CLUSTER,
        remember_seconds: float = LONGEST_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        prospect: Callable[[Space], Prospect] = lambda space: Prospect(),
    ) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._prospect = prospect
        self.memory: Memory[LabelSet] = Memory(REMEMBERED, remember_seconds, monotonic)
        self.numbers = NumberStore(space, identities, identity_cursor)
        self._wanted: Group[_Wanted, tuple[int, int]] = Group(database, self._find_or_make)

    async def resolve(self, labels: LabelSet, *, holder: str = "", trace: str) -> Identity:
        """The identity of a label set in normal form, made if it is new; `trace` is its maker's context.

        A holder uses it from then on. Raises ResourceExhausted (IDENTITIES_EXHAUSTED).
        """
        known = self.memory.find(labels, holder)
        if known is not None:
            return known
        reserved = reserved_number(labels)
        if reserved is not None:
            return reserved_identity(reserved)
        since = self.memory.monotonic()
        encoded = encode(labels)
        wanted = _Wanted(encoded, digest(encoded), holder, trace)
        number, revision = await self._wanted.submit(wanted)
        return self.memory.keep(labels, Identity(number, labels, revision), holder, since)

    async def get(self, number: int, field: str) -> Identity:
        """The identity of that number, reserved ones too. Raises NotFound naming `field`."""
        if is_reserved(number):
            return reserved_identity(number)
        async with self._database.read() as connection:
            if number in PREFIXES:
                found = await prefix_store.read_prefix(connection, number)
                if found is None:
                    raise problems.identity_not_found(number, field)
                return found
            row = (await connection.execute(_BY_NUMBER, {"number": number})).first()
        if row is None:
            raise problems.identity_not_found(number, field)
        return _from_row(row)

    async def list(self, *, after: int, limit: int | None) -> tuple[Sequence[Identity], int]:
        """Up to `limit` identities by number past `after`, and the revision they show.

        Those of prefixes come after all of the cluster's.
        """
        async with self._database.read() as connection:
            revision = await self._feed.revision_at(connection)
            return await read_past(connection, after, limit), revision

    @asynccontextmanager
    async def snapshot(self, size: int) -> AsyncIterator[tuple[int, AsyncIterator[Sequence[Identity]]]]:
        """The feed's revision of one snapshot, and its identities by number, `size` at a time."""
        async with self._database.read() as connection:
            yield await self._feed.revision_at(connection), _pages(connection, size)

    async def _find_or_make(
        self, connection: AsyncConnection, wanted: Sequence[_Wanted]
    ) -> Sequence[tuple[int, int] | FimbriaError]:
        """Number and revision of each, in a handful of statements for all."""
        # Of several that want the same new set, the first is its maker.
        by_digest: dict[bytes, _Wanted] = {}
        for each in wanted:
            by_digest.setdefault(each.digest, each)
        found: dict[bytes, tuple[int, int]] = {
            known: (number, revision)
            for known, number, revision in await _BY_DIGEST.rows(connection, [(key,) for key in by_digest])
        }
        await touch(connection, [number for number, _ in found.values()])
        new = [each for each in by_digest.values() if each.digest not in found]
        failure: FimbriaError | None = None
        if new:
            numbers = await self.numbers.take_many(connection, len(new))
            if len(numbers) < len(new):
                failure = await exhausted(connection, self.numbers, self._prospect)
            if numbers:
                found |= await self._make(connection, new[: len(numbers)], numbers)
        pairs = {
            (each.holder, found[each.digest][0]) for each in wanted if each.holder and each.digest in found
        }
        await hold(connection, pairs, self._clock())
        results: list[tuple[int, int] | FimbriaError] = []
        for each in wanted:
            result = found.get(each.digest, failure)
            assert result is not None
            results.append(result)
        return results

    async def _make(
        self, connection: AsyncConnection, new: Sequence[_Wanted], numbers: Sequence[int]
    ) -> dict[bytes, tuple[int, int]]:
        made = list(zip(new, numbers, strict=True))
        events = [(str(number), each.encoded, False, each.trace) for each, number in made]
        first = await self._feed.append_changes(connection, events) - len(events) + 1
        created_ns = self._clock()
        rows: list[tuple[Any, ...]] = [
            (number, each.digest, each.encoded.decode(), revision, created_ns)
            for revision, (each, number) in enumerate(made, start=first)
        ]
        await _ADD.run_each(connection, rows)
        return {each.digest: (number, revision) for revision, (each, number) in enumerate(made, start=first)}


async def exhausted(
    connection: AsyncConnection, numbers: NumberStore, prospect: Callable[[Space], Prospect]
) -> FimbriaError:
    """The error of a space that has too few numbers left."""
    space, coming = numbers.space, prospect(numbers.space)
    return problems.identities_exhausted(
        space.first,
        space.last,
        await numbers.taken(connection),
        space.remedy,
        unused=coming.unused,
        retry_after=coming.seconds,
    )


async def read_past(connection: AsyncConnection, after: int, limit: int | None) -> list[Identity]:
    """Up to `limit` identities by number past `after`, those of prefixes last."""
    rows = (await connection.execute(_PAST.limit(limit), {"after": after})).all()
    left = limit - len(rows) if limit is not None else None
    beyond = await prefix_store.prefixes_past(connection, after, left) if left != 0 else []
    return [*map(_from_row, rows), *beyond]


async def _pages(connection: AsyncConnection, size: int) -> AsyncIterator[Sequence[Identity]]:
    after = 0
    while found := await read_past(connection, after, size):
        yield found
        after = found[-1].number


def decode_identity(key: str, payload: bytes, revision: int) -> Identity:
    """The identity that a feed event tells of."""
    return Identity(int(key), stored_labels(payload), revision)


def stored_labels(text: str | bytes) -> LabelSet:
    """The labels of a row: in normal form, which a snapshot of thousands should not parse again."""
    return tuple.__new__(LabelSet, orjson.loads(text))


def _from_row(row: Any) -> Identity:
    return Identity(row.id, stored_labels(row.labels), row.revision)
