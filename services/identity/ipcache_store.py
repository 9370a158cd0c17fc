"""The ipcache in SQL: every change of an entry is an event of the ipcache feed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import orjson
from sqlalchemy import LargeBinary, bindparam, delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.identity import problems
from services.identity.ipcache import Changes, Entry, plan_publish, plan_withdraw
from services.identity.reserved import is_reserved
from services.identity.schema import identities, ipcache

# Below the least limit on variables of one statement that any supported SQLite has.
CHUNK = 500
# Of a sort_key of IPv4 and of IPv6: its keys sort among each other, so that each family is read by itself.
KEY_LENGTHS = (5, 17)

T = TypeVar("T")

_BY_KEYS = select(ipcache).where(ipcache.c.sort_key.in_(bindparam("keys", expanding=True)))
_BY_NODE = select(ipcache).where(ipcache.c.node == bindparam("node"))
_PAST = (
    select(ipcache)
    .where(ipcache.c.sort_key > bindparam("after"), func.length(ipcache.c.sort_key) == bindparam("length"))
    .order_by(ipcache.c.sort_key)
)
_REVISIONS = select(identities.c.id, identities.c.revision).where(
    identities.c.id.in_(bindparam("numbers", expanding=True))
)
# Written as text because SQLite and PostgreSQL agree on it word for word, which their constructs do not.
_PUT = text(
    "INSERT INTO ipcache (sort_key, prefix, identity, node, tunnel, owner, identity_revision, revision)"
    " VALUES (:sort_key, :prefix, :identity, :node, :tunnel, :owner, :identity_revision, :revision)"
    " ON CONFLICT (sort_key) DO UPDATE SET identity = excluded.identity, node = excluded.node,"
    " tunnel = excluded.tunnel, owner = excluded.owner,"
    " identity_revision = excluded.identity_revision, revision = excluded.revision"
).bindparams(bindparam("sort_key", type_=LargeBinary))
_REMOVE = delete(ipcache).where(ipcache.c.sort_key == bindparam("key"))


class IpCacheStore:
    """What each prefix means, by the rules of `services.identity.ipcache`."""

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._feed = feed

    async def publish(
        self, node: str, entries: Sequence[Entry], *, replace_node: bool, trace: str
    ) -> tuple[int, Sequence[Entry]]:
        """Publishes `entries` for `node`; with `replace_node` its other entries are withdrawn.

        Returns the ipcache revision that holds the result, and the entries of other nodes that were taken
        over. `identity_revision` of the entries is filled in here. Raises NotFound (IDENTITY_NOT_FOUND).
        """

        async def operation(connection: AsyncConnection) -> tuple[int, Sequence[Entry]]:
            wanted = await _with_identity_revisions(connection, entries)
            current = await _read(connection, [entry.prefix for entry in wanted])
            replaced = await _read_node(connection, node) if replace_node else ()
            changes = plan_publish(wanted, current, replaced=replaced)
            return await self._apply(connection, changes, trace), changes.taken_over

        return await self._database.write(operation)

    async def withdraw(self, node: str, prefixes: Sequence[str], *, trace: str) -> int:
        """Removes those of `prefixes` that `node` still owns; the ipcache revision that shows it."""

        async def operation(connection: AsyncConnection) -> int:
            current = await _read(connection, prefixes)
            return await self._apply(connection, plan_withdraw(node, current.values()), trace)

        return await self._database.write(operation)

    async def list(self, *, node: str, after: str, limit: int | None) -> tuple[Sequence[Entry], int]:
        """Up to `limit` entries by prefix past the prefix `after`, and the feed revision that they show.

        IPv4 comes first. Empty `node` means any.
        """
        past = sort_key(after) if after else b""
        found: list[Entry] = []
        async with self._database.read() as connection:
            revision = await self._feed.revision_at(connection)
            for length in KEY_LENGTHS:
                if len(past) > length or len(found) == limit:
                    continue
                statement = _PAST.limit(None if limit is None else limit - len(found))
                if node:
                    statement = statement.where(ipcache.c.node == node)
                start = {"length": length, "after": past if len(past) == length else b""}
                found += map(_from_row, (await connection.execute(statement, start)).all())
        return found, revision

    async def _apply(self, connection: AsyncConnection, changes: Changes, trace: str) -> int:
        """Writes `changes`; the revision of the last event, or the feed's when nothing changed."""
        # Removals come first: the last event of a replacement is the one after which nothing stale is left.
        events = [(entry.prefix, b"", True) for entry in changes.removals]
        events += [(entry.prefix, encode_entry(entry), False) for entry in changes.puts]
        if not events:
            return await self._feed.revision_at(connection)
        revision = await self._feed.append_all(connection, events, trace)
        if changes.removals:
            await connection.execute(_REMOVE, [{"key": sort_key(entry.prefix)} for entry in changes.removals])
        if changes.puts:
            first = revision - len(changes.puts) + 1
            rows = [_to_row(replace(entry, revision=first + at)) for at, entry in enumerate(changes.puts)]
            await connection.execute(_PUT, rows)
        return revision


def sort_key(prefix: str) -> bytes:
    """The packed address and the prefix length of a normalised prefix."""
    network = ipaddress.ip_network(prefix)
    return network.network_address.packed + bytes((network.prefixlen,))


def encode_entry(entry: Entry) -> bytes:
    """The payload of an entry's event; prefix and revision are the event's own."""
    return orjson.dumps(
        (entry.identity, entry.node, entry.tunnel, entry.owner, entry.identity_revision),
    )


def decode_entry(prefix: str, payload: bytes, revision: int) -> Entry:
    """The inverse of `encode_entry`."""
    identity, node, tunnel, owner, identity_revision = orjson.loads(payload)
    return Entry(prefix, identity, node, tunnel, owner, identity_revision, revision)


async def _with_identity_revisions(connection: AsyncConnection, entries: Sequence[Entry]) -> list[Entry]:
    numbers = {entry.identity for entry in entries if not is_reserved(entry.identity)}
    revisions: dict[int, int] = {}
    for chunk in _chunks(sorted(numbers)):
        rows = (await connection.execute(_REVISIONS, {"numbers": chunk})).all()
        revisions.update((row.id, row.revision) for row in rows)
    for index, entry in enumerate(entries):
        if entry.identity in numbers and entry.identity not in revisions:
            raise problems.identity_not_found(entry.identity, f"entries[{index}].identity")
    return [replace(entry, identity_revision=revisions.get(entry.identity, 0)) for entry in entries]


async def _read(connection: AsyncConnection, prefixes: Iterable[str]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for chunk in _chunks([sort_key(prefix) for prefix in prefixes]):
        rows = (await connection.execute(_BY_KEYS, {"keys": chunk})).all()
        found.update((row.prefix, _from_row(row)) for row in rows)
    return found


async def _read_node(connection: AsyncConnection, node: str) -> list[Entry]:
    return [_from_row(row) for row in (await connection.execute(_BY_NODE, {"node": node})).all()]


def _chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def _to_row(entry: Entry) -> dict[str, Any]:
    return {
        "sort_key": sort_key(entry.prefix),
        "prefix": entry.prefix,
        "identity": entry.identity,
        "node": entry.node,
        "tunnel": entry.tunnel,
        "owner": entry.owner,
        "identity_revision": entry.identity_revision,
        "revision": entry.revision,
    }


def _from_row(row: Any) -> Entry:
    return Entry(
        prefix=row.prefix,
        identity=row.identity,
        node=row.node,
        tunnel=row.tunnel,
        owner=row.owner,
        identity_revision=row.identity_revision,
        revision=row.revision,
    )
