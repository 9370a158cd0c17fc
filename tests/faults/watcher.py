"""Watchers that move between replicas, and the log of the feed that what they rebuild is held against."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.types.v1 import types_pb2
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.channel import open_channel
from services.chassis.db import Database
from services.chassis.errors import FimbriaError, error_from_rpc
from services.chassis.feed import Feed
from services.identity.ipcache_store import decode_entry
from services.identity.store import decode_identity
from tests.faults.checker import Violation

Row = tuple[Any, ...]
_SINCE: Final = text(
    "SELECT revision, key, payload, deleted FROM event_log WHERE feed = :feed AND revision > :after"
    " ORDER BY revision"
)
# Compaction may take an event away before anybody could look: the store itself keeps a copy of each.
_COPY: Final = "INSERT INTO event_log VALUES (new.feed, new.revision, new.key, new.payload, new.deleted);"
_LOGGED: Final = {
    "sqlite": (
        "CREATE TABLE event_log (feed text, revision bigint, key text, payload blob, deleted boolean)",
        f"CREATE TRIGGER keep_log AFTER INSERT ON feed_event BEGIN {_COPY} END",
    ),
    "postgresql": (
        "CREATE TABLE event_log (feed text, revision bigint, key text, payload bytea, deleted boolean)",
        f"CREATE FUNCTION keep_log() RETURNS trigger AS $$ BEGIN {_COPY} RETURN NEW; END $$ LANGUAGE plpgsql",
        "CREATE TRIGGER keep_log AFTER INSERT ON feed_event FOR EACH ROW EXECUTE FUNCTION keep_log()",
    ),
}


async def keep_log(database: Database) -> None:
    """From now on the store has every event of all its feeds in a table of the test's."""

    async def make(conn: AsyncConnection) -> None:
        for statement in _LOGGED[conn.dialect.name]:
            await conn.exec_driver_sql(statement)

    await database.write(make)


@dataclass(frozen=True)
class Table:
    """Something that can be watched: the feed behind it, how to watch it, and what a row of it is."""

    feed: str
    watch: Callable[[grpc.aio.Channel, int], Any]
    row_of_event: Callable[[Any], tuple[str, Row]]
    row_of_payload: Callable[[str, bytes, int], Row]


def _watch_entries(channel: grpc.aio.Channel, revision: int) -> Any:
    stub = identity_pb2_grpc.IpCacheServiceStub(channel)
    return stub.WatchIpCache(identity_pb2.WatchIpCacheRequest(from_revision=revision))


def _watch_identities(channel: grpc.aio.Channel, revision: int) -> Any:
    stub = identity_pb2_grpc.IdentityServiceStub(channel)
    return stub.WatchIdentities(identity_pb2.WatchIdentitiesRequest(from_revision=revision))


def _entry_row(key: str, payload: bytes, revision: int) -> Row:
    entry = decode_entry(key, payload, revision)
    return (entry.node, entry.identity, revision)


ENTRIES: Final = Table(
    "ipcache",
    _watch_entries,
    lambda event: (event.entry.prefix, (event.entry.node, event.entry.identity, event.entry.revision)),
    _entry_row,
)
IDENTITIES: Final = Table(
    "identities",
    _watch_identities,
    lambda event: (str(event.identity.id), tuple(event.identity.labels)),
    lambda key, payload, revision: tuple(decode_identity(key, payload, revision).labels),
)


@dataclass
class Rebuilt:
    """A table as the events so far make it, with a sum that tells two contents apart in one comparison."""

    rows: dict[str, Row] = field(default_factory=dict)
    sum: int = 0

    def put(self, key: str, row: Row) -> None:
        self.drop(key)
        self.rows[key] = row
        self.sum ^= hash((key, row))

    def drop(self, key: str) -> None:
        had = self.rows.pop(key, None)
        if had is not None:
            self.sum ^= hash((key, had))


@dataclass
class Watcher:
    """Follows a table wherever a replica lets it, and notes what it has at every revision that it is told."""

    table: Table
    targets: Sequence[str]
    random: random.Random
    slow: float = 0.0
    """Seconds that it takes over a message, at most."""
    claims: list[tuple[int, int]] = field(default_factory=list)
    """Revisions and the sum of what it had at each, in the order in which it was told."""
    revision: int = 0
    resumed: int = 0
    restarted: int = 0
    rebuilt: Rebuilt = field(default_factory=Rebuilt)
    target: str = ""
    """Where it watches just now."""
    _forgetful: bool = False

    async def follow(self) -> None:
        """Until it is cancelled. Raises Violation for an answer that no watcher may get."""
        while True:
            self.target = self.random.choice(self.targets)
            async with open_channel(self.target, retry=False) as channel:
                try:
                    await self._stream(channel)
                except grpc.RpcError as error:
                    self._lost(error_from_rpc(error))
            self.resumed += 1
            await asyncio.sleep(self.random.uniform(0.0, 0.1))

    def forget(self) -> None:
        """From the next stream on it has seen no more than the first event."""
        self._forgetful = True

    def _lost(self, failure: FimbriaError) -> None:
        if failure.reason == "REVISION_COMPACTED":
            self.revision = 0
            self.restarted += 1
        elif failure.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            raise Violation(f"a watch of {self.table.feed} from {self.revision} ended with {failure!r}")

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        # A message or a minute later it leaves, and resumes elsewhere.
        left = self.random.randrange(1, 400)
        if self._forgetful and self.revision > 1:
            self._forgetful = False
            self.revision = 1
        whole = self.revision > 0
        if not whole:
            self.rebuilt = Rebuilt()
        stream = self.table.watch(channel, self.revision)
        async for message in stream:
            for event in message.events:
                key, row = self.table.row_of_event(event)
                if event.type == types_pb2.CHANGE_TYPE_DELETE:
                    self.rebuilt.drop(key)
                else:
                    self.rebuilt.put(key, row)
            whole = whole or message.snapshot_complete
            if whole:
                if message.revision < self.revision:
                    raise Violation(f"{self.table.feed}: revision {message.revision} after {self.revision}")
                self.revision = message.revision
                self.claims.append((self.revision, self.rebuilt.sum))
            left -= 1
            if left == 0 or self._forgetful:
                stream.cancel()
                return
            if self.slow:
                await asyncio.sleep(self.random.uniform(0.0, self.slow))


@dataclass
class Log:
    """Every event of a feed; it also lets the feed forget all but the newest, again and again."""

    database: Database
    table: Table
    keep: int
    events: list[tuple[int, str, Row | None]] = field(default_factory=list)
    compacted: int = 0

    @property
    def revision(self) -> int:
        return self.events[-1][0] if self.events else 0

    async def read(self) -> None:
        """Takes in what is new; raises Violation when a revision is missing or stands there twice."""
        async with self.database.read() as conn:
            asked = {"feed": self.table.feed, "after": self.revision}
            rows = (await conn.execute(_SINCE, asked)).all()
        for row in rows:
            if row.revision != self.revision + 1:
                raise Violation(f"{self.table.feed}: revision {row.revision} follows {self.revision}")
            content = None if row.deleted else self.table.row_of_payload(row.key, row.payload, row.revision)
            self.events.append((row.revision, row.key, content))

    async def compact_regularly(self, seconds: float) -> None:
        """As a service does, but much more often. A store that is away is tried next time."""
        while True:
            with contextlib.suppress(FimbriaError):
                self.compacted = await Feed(self.database, self.table.feed).compact(self.keep)
            await asyncio.sleep(seconds)

    def check(self, watchers: Sequence[Watcher]) -> int:
        """Holds every claim against the table at its revision; how many there were. Raises Violation."""
        sums, table = [0], Rebuilt()
        for _, key, row in self.events:
            if row is None:
                table.drop(key)
            else:
                table.put(key, row)
            sums.append(table.sum)
        for number, watcher in enumerate(watchers):
            for position, (revision, claimed) in enumerate(watcher.claims):
                if revision >= len(sums) or sums[revision] != claimed:
                    raise Violation(
                        f"what watcher {number} has rebuilt of {self.table.feed} at revision {revision} (its"
                        f" message {position}) is not what the table was then"
                    )
            if watcher.revision == self.revision and watcher.rebuilt.rows != table.rows:
                raise Violation(f"watcher {number} of {self.table.feed} ends with another table")
        return sum(len(watcher.claims) for watcher in watchers)


@asynccontextmanager
async def watching(logs: Sequence[Log], watchers: Sequence[Watcher]) -> AsyncIterator[None]:
    """Logs and watchers at work beside the block; what one of them finds wrong fails it."""
    tasks = [asyncio.create_task(log.compact_regularly(0.1)) for log in logs]
    tasks += [asyncio.create_task(watcher.follow()) for watcher in watchers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        # One that has ended by itself is the reason of whatever else went wrong.
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(end, Exception):
                raise end
