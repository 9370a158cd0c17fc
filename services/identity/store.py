"""Identities in SQL: every new one is an event of the identity feed. A known set costs a read at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.chassis.labels import LabelSet
from services.identity import problems
from services.identity.labelset import digest, encode, reserved_number
from services.identity.model import Identity, reserved_identity
from services.identity.numbers import first_gap, rotation
from services.identity.reserved import CLUSTER_FIRST, CLUSTER_LAST, is_reserved
from services.identity.schema import identities, identity_cursor

# How many identities are remembered: those of a busy cluster's running workloads, a few MiB at most.
REMEMBERED = 4096
# How many used numbers one step of the search for a free one reads.
SEARCH_PAGE = 1024

_BY_DIGEST = select(identities.c.id, identities.c.revision).where(identities.c.digest == bindparam("digest"))
_BY_NUMBER = select(identities.c.id, identities.c.labels, identities.c.revision).where(
    identities.c.id == bindparam("number")
)
_PAST = (
    select(identities.c.id, identities.c.labels, identities.c.revision)
    .where(identities.c.id > bindparam("after"))
    .order_by(identities.c.id)
)
_CURSOR = select(
    identity_cursor.c.next_id,
    select(identities.c.id).where(identities.c.id == identity_cursor.c.next_id).exists().label("used"),
)
_USED_BETWEEN = (
    select(identities.c.id)
    .where(identities.c.id.between(bindparam("start"), bindparam("end")))
    .order_by(identities.c.id)
    .limit(SEARCH_PAGE)
)
_ADD = insert(identities)
_MOVE_CURSOR = update(identity_cursor).where(identity_cursor.c.singleton == 1)


class IdentityStore:
    """Which number stands for which label set. `clock` returns Unix time in nanoseconds."""

    def __init__(self, database: Database, feed: Feed, clock: Callable[[], int]) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        # What is committed here is never changed or removed: remembering it cannot go stale, whoever writes.
        self._remembered: dict[LabelSet, Identity] = {}

    async def resolve(self, labels: LabelSet, *, trace: str) -> Identity:
        """The identity of a label set in normal form, made if it is new; `trace` is its maker's context.

        Raises ResourceExhausted (IDENTITIES_EXHAUSTED).
        """
        reserved = reserved_number(labels)
        if reserved is not None:
            return reserved_identity(reserved)
        known = self._remembered.get(labels)
        if known is not None:
            return known
        return self._remember(await self._find_or_make(labels, trace))

    async def get(self, number: int, field: str) -> Identity:
        """The identity of that number, reserved ones too. Raises NotFound naming `field`."""
        if is_reserved(number):
            return reserved_identity(number)
        async with self._database.read() as connection:
            row = (await connection.execute(_BY_NUMBER, {"number": number})).first()
        if row is None:
            raise problems.identity_not_found(number, field)
        return _from_row(row)

    async def list(self, *, after: int, limit: int | None) -> tuple[Sequence[Identity], int]:
        """Up to `limit` of the cluster's identities by number past `after`, and the revision they show."""
        async with self._database.read() as connection:
            revision = await self._feed.revision_at(connection)
            rows = (await connection.execute(_PAST.limit(limit), {"after": after})).all()
        return [_from_row(row) for row in rows], revision

    def _remember(self, identity: Identity) -> Identity:
        if len(self._remembered) >= REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[identity.labels] = identity
        return identity

    async def _find_or_make(self, labels: LabelSet, trace: str) -> Identity:
        encoded = encode(labels)
        key = digest(encoded)
        async with self._database.read() as connection:
            known = await _find(connection, key, labels)
        if known is not None:
            return known
        created_ns = self._clock()

        async def operation(connection: AsyncConnection) -> Identity:
            # Writes are one after the other: whoever else made it since the read above is visible here.
            known = await _find(connection, key, labels)
            if known is not None:
                return known
            number = await _take_number(connection)
            revision = await self._feed.append(connection, str(number), encoded, trace=trace)
            await connection.execute(
                _ADD,
                {
                    "id": number,
                    "digest": key,
                    "labels": encoded.decode(),
                    "revision": revision,
                    "created_ns": created_ns,
                },
            )
            return Identity(number, labels, revision)

        return await self._database.write(operation)


def decode_identity(key: str, payload: bytes, revision: int) -> Identity:
    """The identity that a feed event tells of."""
    return Identity(int(key), _stored_labels(payload), revision)


async def _find(connection: AsyncConnection, key: bytes, labels: LabelSet) -> Identity | None:
    row = (await connection.execute(_BY_DIGEST, {"digest": key})).first()
    return None if row is None else Identity(row.id, labels, row.revision)


async def _take_number(connection: AsyncConnection) -> int:
    """The next free number in rotation; the cursor then stands behind it."""
    cursor = (await connection.execute(_CURSOR)).one()
    for start, end in rotation(cursor.next_id):
        at_hand = start == cursor.next_id and not cursor.used
        number = start if at_hand else await _free_number(connection, start, end)
        if number is not None:
            await connection.execute(_MOVE_CURSOR, {"next_id": number + 1})
            return number
    raise problems.identities_exhausted(CLUSTER_FIRST, CLUSTER_LAST)


async def _free_number(connection: AsyncConnection, start: int, end: int) -> int | None:
    while start <= end:
        page = (await connection.execute(_USED_BETWEEN, {"start": start, "end": end})).scalars().all()
        number = first_gap(start, page)
        if number > end:
            return None
        if len(page) < SEARCH_PAGE or number <= page[-1]:
            return number
        start = number
    return None


def _from_row(row: Any) -> Identity:
    return Identity(row.id, _stored_labels(row.labels), row.revision)


def _stored_labels(text: str | bytes) -> LabelSet:
    # What is stored is in normal form already, and a snapshot of thousands should not parse it again.
    return tuple.__new__(LabelSet, orjson.loads(text))
