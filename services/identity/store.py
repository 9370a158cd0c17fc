"""Identities in SQL: every new one is an event of the identity feed. A known set costs a read at most.

Those of prefixes are made by `prefix_store`; here they are only found and listed with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson
from sqlalchemy import bindparam, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.chassis.labels import LabelSet
from services.identity import prefix_store, problems
from services.identity.labelset import digest, encode, reserved_number
from services.identity.model import Identity, reserved_identity
from services.identity.number_store import NumberStore
from services.identity.numbers import Space
from services.identity.reserved import CLUSTER_FIRST, CLUSTER_LAST, is_reserved
from services.identity.schema import identities, identity_cursor

# How many identities are remembered: those of a busy cluster's running workloads, a few MiB at most.
REMEMBERED = 4096

_NUMBERS = NumberStore(
    Space(CLUSTER_FIRST, CLUSTER_LAST),
    identities,
    identity_cursor,
    "let fewer labels be security-relevant",
)

_BY_DIGEST = select(identities.c.id, identities.c.revision).where(identities.c.digest == bindparam("digest"))
_BY_NUMBER = select(identities.c.id, identities.c.labels, identities.c.revision).where(
    identities.c.id == bindparam("number")
)
_PAST = (
    select(identities.c.id, identities.c.labels, identities.c.revision)
    .where(identities.c.id > bindparam("after"))
    .order_by(identities.c.id)
)
_ADD = insert(identities)


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
            if number in prefix_store.SPACE:
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
            rows = (await connection.execute(_PAST.limit(limit), {"after": after})).all()
            left = limit - len(rows) if limit is not None else None
            beyond = await prefix_store.prefixes_past(connection, after, left) if left != 0 else []
        return [*map(_from_row, rows), *beyond], revision

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
            number = await _NUMBERS.take(connection)
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


def _from_row(row: Any) -> Identity:
    return Identity(row.id, _stored_labels(row.labels), row.revision)


def _stored_labels(text: str | bytes) -> LabelSet:
    # What is stored is in normal form already, and a snapshot of thousands should not parse it again.
    return tuple.__new__(LabelSet, orjson.loads(text))
