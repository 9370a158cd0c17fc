"""The ipcache in SQL: every change of an entry is an event of the ipcache feed.

Changes that arrive together are read, planned one after the other in memory, and written by one handful of
statements: a cluster's loaders publish an entry for each pod that starts.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database, Group
from services.chassis.errors import FimbriaError
from services.chassis.feed import Feed
from services.chassis.statements import Sql, SqlOfKeys
from services.identity import problems
from services.identity.ipcache import Changes, Entry, plan_publish, plan_withdraw
from services.identity.reserved import is_reserved
from services.identity.schema import identities, ipcache, prefixes
from services.identity.use_store import touch

# Of a sort_key of IPv4 and of IPv6: its keys sort among each other, so that each family is read by itself.
KEY_LENGTHS = (5, 17)
# Changes of more entries than this are written by themselves, so that small ones need not wait for them.
TOGETHER = 500

# A long list in IN would make PostgreSQL scan the table.
_BY_KEYS = SqlOfKeys(
    "WITH wanted (sort_key) AS (VALUES {keys})"
    " SELECT e.prefix, e.identity, e.node, e.tunnel, e.owner, e.identity_revision, e.revision"
    " FROM wanted AS w JOIN ipcache AS e ON e.sort_key = w.sort_key",
    "(CAST(? AS BYTEA))",
    (b"",),
)
_ALL = select(ipcache)
_BY_NODE = select(ipcache).where(ipcache.c.node == bindparam("of_node"))
_PAST = (
    select(ipcache)
    .where(ipcache.c.sort_key > bindparam("after"), func.length(ipcache.c.sort_key) == bindparam("length"))
    .order_by(ipcache.c.sort_key)
)
_REVISIONS = tuple(
    SqlOfKeys(f"SELECT id, revision FROM {table.name} WHERE id IN ({{keys}})", "?", (-1,))
    for table in (identities, prefixes)
)
_PUT = Sql(
    "INSERT INTO ipcache (sort_key, prefix, identity, node, tunnel, owner, identity_revision, revision)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (sort_key) DO UPDATE SET identity = excluded.identity, node = excluded.node,"
    " tunnel = excluded.tunnel, owner = excluded.owner,"
    " identity_revision = excluded.identity_revision, revision = excluded.revision"
)
_REMOVE = Sql("DELETE FROM ipcache WHERE sort_key = ?")


@dataclass(frozen=True, slots=True)
class _Change:
    """A publication (`entries`, with `replace_node` all that the node has) or a withdrawal of `prefixes`."""

    node: str
    trace: str
    entries: Sequence[Entry] | None = None
    replace_node: bool = False
    prefixes: Sequence[str] = ()

    @property
    def size(self) -> int:
        return len(self.prefixes) if self.entries is None else len(self.entries)

    def named(self) -> Iterable[str]:
        """The prefixes that it speaks of."""
        return self.prefixes if self.entries is None else (entry.prefix for entry in self.entries)


@dataclass(slots=True)
class _Table:
    """The entries that a batch speaks of, as they are after each of its changes, and what is to write."""

    entries: dict[str, Entry]
    changed: dict[str, None] = field(default_factory=dict)
    events: list[tuple[str, bytes, bool, str]] = field(default_factory=list)
    # Position in `events` of the newest event of a prefix.
    newest: dict[str, int] = field(default_factory=dict)
    # Identities that an entry had before and has not now.
    left: set[int] = field(default_factory=set)

    def apply(self, changes: Changes, trace: str) -> None:
        # Removals come first: the last event of a replacement is the one after which nothing stale is left.
        for entry in changes.removals:
            self._note(entry.prefix, b"", True, trace)
            self.left.add(self.entries.pop(entry.prefix).identity)
        for entry in changes.puts:
            self._note(entry.prefix, encode_entry(entry), False, trace)
            before = self.entries.get(entry.prefix)
            if before is not None and before.identity != entry.identity:
                self.left.add(before.identity)
            self.entries[entry.prefix] = entry

    def _note(self, prefix: str, payload: bytes, deleted: bool, trace: str) -> None:
        self.changed[prefix] = None
        self.newest[prefix] = len(self.events)
        self.events.append((prefix, payload, deleted, trace))


class IpCacheStore:
    """What each prefix means, by the rules of `services.identity.ipcache`."""

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._feed = feed
        self._changes: Group[_Change, tuple[int, Sequence[Entry]]] = Group(database, self._change_together)

    async def publish(
        self, node: str, entries: Sequence[Entry], *, replace_node: bool, trace: str
    ) -> tuple[int, Sequence[Entry]]:
        """Publishes `entries` for `node`; with `replace_node` its other entries are withdrawn.

        Returns the ipcache revision that holds the result, and the entries of other nodes that were taken
        over. `identity_revision` of the entries is filled in here. Raises NotFound (IDENTITY_NOT_FOUND).
        """
        return await self._change(_Change(node, trace, entries, replace_node))

    async def withdraw(self, node: str, prefixes: Sequence[str], *, trace: str) -> int:
        """Removes those of `prefixes` that `node` still owns; the ipcache revision that shows it."""
        revision, _ = await self._change(_Change(node, trace, prefixes=prefixes))
        return revision

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

    @asynccontextmanager
    async def snapshot(self, size: int) -> AsyncIterator[tuple[int, AsyncIterator[Sequence[Any]]]]:
        """The ipcache revision of one snapshot, and the rows of its entries, `size` at a time."""
        async with self._database.read() as connection:
            yield await self._feed.revision_at(connection), _pages(connection, size)

    async def _change(self, change: _Change) -> tuple[int, Sequence[Entry]]:
        if change.size <= TOGETHER and not change.replace_node:
            return await self._changes.submit(change)

        async def operation(connection: AsyncConnection) -> tuple[int, Sequence[Entry]]:
            (result,) = await self._change_together(connection, [change])
            if isinstance(result, FimbriaError):
                raise result
            return result

        return await self._database.write(operation)

    async def _change_together(
        self, connection: AsyncConnection, changes: Sequence[_Change]
    ) -> Sequence[tuple[int, Sequence[Entry]] | FimbriaError]:
        revisions = await _identity_revisions(connection, changes)
        table = _Table(await _read(connection, changes))
        results: list[tuple[int, Sequence[Entry]] | FimbriaError] = []
        for change in changes:
            try:
                planned = _plan(change, table.entries, revisions)
            except FimbriaError as refusal:
                results.append(refusal)
                continue
            table.apply(planned, change.trace)
            results.append((len(table.events), planned.taken_over))
        if table.events:
            before = await self._feed.append_changes(connection, table.events) - len(table.events)
            await _write(connection, table, before + 1)
        else:
            before = await self._feed.revision_at(connection)
        # Each is told the revision up to which its own change goes; one that changes nothing, what it found.
        return [
            result if isinstance(result, FimbriaError) else (before + result[0], result[1])
            for result in results
        ]


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


async def _pages(connection: AsyncConnection, size: int) -> AsyncIterator[Sequence[Any]]:
    # One statement that is read as it goes: for each page of its own PostgreSQL would sort the table.
    async for rows in (await connection.stream(_ALL)).partitions(size):
        yield rows


def _plan(change: _Change, table: Mapping[str, Entry], revisions: Mapping[int, int]) -> Changes:
    if change.entries is None:
        named = dict.fromkeys(change.prefixes)
        return plan_withdraw(change.node, [table[prefix] for prefix in named if prefix in table])
    wanted = []
    for index, entry in enumerate(change.entries):
        if entry.identity not in revisions and not is_reserved(entry.identity):
            raise problems.identity_not_found(entry.identity, f"entries[{index}].identity")
        wanted.append(replace(entry, identity_revision=revisions.get(entry.identity, 0)))
    replaced = [e for e in table.values() if e.node == change.node] if change.replace_node else ()
    return plan_publish(wanted, table, replaced=replaced)


async def _write(connection: AsyncConnection, table: _Table, first: int) -> None:
    """Writes the entries as they are after all changes; `first` is the revision of the first event."""
    gone = [(sort_key(prefix),) for prefix in table.changed if prefix not in table.entries]
    rows = [
        _to_row(replace(table.entries[prefix], revision=first + table.newest[prefix]))
        for prefix in table.changed
        if prefix in table.entries
    ]
    await _REMOVE.run_each(connection, gone)
    await _PUT.run_each(connection, rows)
    await touch(connection, [number for number in table.left if not is_reserved(number)])


async def _identity_revisions(connection: AsyncConnection, changes: Sequence[_Change]) -> dict[int, int]:
    """Of all identities that the changes name and that exist, but for reserved ones."""
    numbers = {entry.identity for change in changes for entry in change.entries or ()}
    revisions: dict[int, int] = {}
    wanted = sorted(number for number in numbers if not is_reserved(number))
    for statement in _REVISIONS:
        missing = [(number,) for number in wanted if number not in revisions]
        revisions.update((number, revision) for number, revision in await statement.rows(connection, missing))
    return revisions


async def _read(connection: AsyncConnection, changes: Sequence[_Change]) -> dict[str, Entry]:
    """The present entries of all prefixes that the changes name, and of all nodes that they replace."""
    found: dict[str, Entry] = {}
    keys = {(sort_key(prefix),) for change in changes for prefix in change.named()}
    for row in await _BY_KEYS.rows(connection, sorted(keys)):
        found[row[0]] = Entry(*row)
    for node in {change.node for change in changes if change.replace_node}:
        rows = (await connection.execute(_BY_NODE, {"of_node": node})).all()
        found.update((row.prefix, _from_row(row)) for row in rows)
    return found


def _to_row(entry: Entry) -> tuple[Any, ...]:
    return (
        sort_key(entry.prefix),
        entry.prefix,
        entry.identity,
        entry.node,
        entry.tunnel,
        entry.owner,
        entry.identity_revision,
        entry.revision,
    )


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
