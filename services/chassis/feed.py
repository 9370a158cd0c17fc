"""The change feed: what changed, in commit order, from any revision that is still kept.

A feed numbers its events 1, 2, 3, … inside the transaction that makes the change, by a counter row that only
one transaction can hold at a time. Commit order is therefore revision order, and a watcher that has seen N
can never miss an event below N, whichever process wrote it.

Watchers of one process share what they are given: the newest events are kept in memory, without a hole, and
are read once when another process has written them. Of such commits a process learns by announcement
(PostgreSQL) or by looking every now and then (SQLite, and whenever announcements do not arrive).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.errors import FimbriaError, OutOfRange
from services.chassis.logs import get_logger

BATCH_EVENTS: Final = 1000
TAIL_EVENTS: Final = 4096
# A feed's events may be a hundred bytes each, or documents: whichever bound is met first.
TAIL_BYTES: Final = 1024 * 1024
POLL_SECONDS: Final = 0.25
# While announcements arrive, looking is but a fallback.
ANNOUNCED_POLL_SECONDS: Final = 5.0
PROGRESS_SECONDS: Final = 10.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One change: ``trace`` is the traceparent of whoever made it, or empty."""

    revision: int
    key: str
    payload: bytes
    deleted: bool = False
    trace: str = ""


@dataclass(frozen=True, slots=True)
class FeedBatch:
    """Events in revision order; whoever has taken it has seen everything up to ``revision``.

    A batch without events is progress: nothing happened, and that is known up to ``revision``.
    """

    revision: int
    events: tuple[FeedEvent, ...] = ()


class _Operations(Protocol):
    def create_table(self, table_name: str, *columns: sa.schema.SchemaItem) -> object: ...


def _state_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("feed", sa.String(64), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("compacted", sa.BigInteger, nullable=False),
    ]


def _event_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("feed", sa.String(64), primary_key=True),
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("trace", sa.Text, nullable=False),
    ]


def feed_tables(metadata: sa.MetaData) -> tuple[sa.Table, sa.Table]:
    """The tables ``feed_state`` and ``feed_event``, which all feeds of a store share."""
    state = sa.Table("feed_state", metadata, *_state_columns())
    return state, sa.Table("feed_event", metadata, *_event_columns())


def create_feed_tables(op: _Operations) -> None:
    """Creates the tables in a migration: ``create_feed_tables(op)`` with Alembic's ``op``."""
    op.create_table("feed_state", *_state_columns())
    op.create_table("feed_event", *_event_columns())


_STATE, _EVENT = feed_tables(sa.MetaData())
_NEXT = sa.text("UPDATE feed_state SET revision = revision + :count WHERE feed = :feed RETURNING revision")
_FIRST = sa.text(
    "INSERT INTO feed_state (feed, revision, compacted) VALUES (:feed, :count, 0) RETURNING revision"
)
_INSERT = sa.insert(_EVENT)
_AFTER = (
    sa.select(_EVENT.c.revision, _EVENT.c.key, _EVENT.c.payload, _EVENT.c.deleted, _EVENT.c.trace)
    .where(_EVENT.c.feed == sa.bindparam("feed"), _EVENT.c.revision > sa.bindparam("after"))
    .order_by(_EVENT.c.revision)
    .limit(BATCH_EVENTS)
)
_POSITION = sa.select(_STATE.c.revision, _STATE.c.compacted).where(_STATE.c.feed == sa.bindparam("feed"))
_DROP = sa.delete(_EVENT).where(
    _EVENT.c.feed == sa.bindparam("in_feed"), _EVENT.c.revision <= sa.bindparam("upto")
)
_COMPACTED = (
    sa.update(_STATE).where(_STATE.c.feed == sa.bindparam("in_feed")).values(compacted=sa.bindparam("upto"))
)


class Feed:
    """One named feed in a store."""

    def __init__(self, db: Database, name: str) -> None:
        self._db = db
        self._name = name
        # What watchers may be given, and what is known to be committed: more than that while others' events
        # are being read.
        self._revision = self._committed_revision = db.revisions.get(name, 0)
        # The newest events, contiguous up to _revision: watchers that keep up never read the store.
        self._tail: deque[FeedEvent] = deque()
        self._tail_bytes = 0
        self._shared: tuple[int, FeedBatch] = (-1, FeedBatch(-1))
        self._changed = asyncio.Event()
        self._watchers = 0
        self._unfollow: Callable[[], None] | None = None
        self._poller: asyncio.Task[None] | None = None
        # Set when there is something to take in; _unheard: others may have committed more than is known.
        self._look = asyncio.Event()
        self._unheard = False

    @property
    def revision(self) -> int:
        """The newest committed revision that this process knows of; 0 when nothing ever happened."""
        return self._committed_revision

    async def append(
        self, conn: AsyncConnection, key: str, payload: bytes, deleted: bool = False, trace: str = ""
    ) -> int:
        """Adds one event inside a write operation and returns its revision, which is final once committed."""
        return await self.append_all(conn, [(key, payload, deleted)], trace)

    async def append_all(
        self, conn: AsyncConnection, changes: Sequence[tuple[str, bytes, bool]], trace: str = ""
    ) -> int:
        """Adds an event for each (key, payload, deleted), in this order, for the price of two statements.

        Returns the revision of the last one; the others have those just before it. ``changes`` is not empty.
        """
        return await self.append_changes(conn, [(*change, trace) for change in changes])

    async def append_changes(
        self, conn: AsyncConnection, changes: Sequence[tuple[str, bytes, bool, str]]
    ) -> int:
        """The same for (key, payload, deleted, trace): changes of several writers in one transaction."""
        counted = {"feed": self._name, "count": len(changes)}
        row = (await conn.execute(_NEXT, counted)).first()
        if row is None:
            row = (await conn.execute(_FIRST, counted)).one()
        last = int(row[0])
        events = [
            FeedEvent(revision, key, payload, deleted, trace)
            for revision, (key, payload, deleted, trace) in enumerate(changes, start=last - len(changes) + 1)
        ]
        await conn.execute(
            _INSERT,
            [
                {
                    "feed": self._name,
                    "revision": event.revision,
                    "key": event.key,
                    "payload": event.payload,
                    "deleted": event.deleted,
                    "trace": event.trace,
                }
                for event in events
            ],
        )
        self._db.after_commit(lambda: self._committed(events))
        self._db.announce(self._name, last)
        return last

    async def revision_at(self, conn: AsyncConnection) -> int:
        """The newest revision in the connection's snapshot: what is read on it is as of this revision."""
        return (await self._position(conn))[0]

    async def watch(self, after: int, *, announce: bool = False) -> AsyncIterator[FeedBatch]:
        """Everything after revision ``after``, in order, without end; never misses, never repeats.

        Yields an empty batch when nothing has happened for 10 s; with ``announce`` also at once, so that
        whoever resumes a watch learns that it is open. Raises OutOfRange: REVISION_COMPACTED when events
        after ``after`` are no longer kept, REVISION_UNKNOWN when the feed has not come that far (its store
        was replaced). Either way the metadata's ``restart_revision`` says where a watch can start, after
        reading the present state.
        """
        async with self._db.read() as conn:
            revision, compacted = await self._position(conn)
        if after > revision:
            raise OutOfRange(
                f"revision {after} of {self._name} has not happened; the newest is {revision}",
                reason="REVISION_UNKNOWN",
                metadata={"revision": after, "restart_revision": revision},
            )
        self._check_kept(after, compacted)
        self._observe(revision)
        self._enter()
        try:
            while True:
                batch = self._from_tail(after)
                if batch is None:
                    batch = await self._from_store(after)
                if batch.events:
                    after = batch.revision
                    yield batch
                elif announce or not await self._wait():
                    yield FeedBatch(after)
                announce = False
        finally:
            self._leave()

    async def compact(self, keep: int) -> int:
        """Drops all but the newest ``keep`` events; returns the oldest revision a watch can start from."""

        async def drop(conn: AsyncConnection) -> int:
            revision, compacted = await self._position(conn)
            upto = revision - keep
            if upto <= compacted:
                return compacted
            await conn.execute(_DROP, {"in_feed": self._name, "upto": upto})
            await conn.execute(_COMPACTED, {"in_feed": self._name, "upto": upto})
            return upto

        return await self._db.write(drop)

    async def _position(self, conn: AsyncConnection) -> tuple[int, int]:
        row = (await conn.execute(_POSITION, {"feed": self._name})).first()
        return (0, 0) if row is None else (int(row.revision), int(row.compacted))

    def _check_kept(self, after: int, compacted: int) -> None:
        if after < compacted:
            raise OutOfRange(
                f"revision {after} of {self._name} is no longer kept; the oldest start is {compacted}",
                reason="REVISION_COMPACTED",
                metadata={"revision": after, "restart_revision": compacted},
            )

    def _committed(self, events: Sequence[FeedEvent]) -> None:
        if events[0].revision == self._revision + 1:
            self._keep(events)
            self._advance(events[-1].revision)
        else:
            # Another process wrote in between: the tail would have a hole.
            self._observe(events[-1].revision)

    def _observe(self, revision: int | None) -> None:
        """Up to `revision` is committed; None: more may be than is known."""
        if revision is None:
            self._unheard = True
            self._look.set()
        elif revision > self._committed_revision:
            self._committed_revision = revision
            if self._watchers:
                self._look.set()
            else:
                # Nobody waits for the events in between; whoever comes reads them.
                self._drop()
                self._advance(revision)

    def _keep(self, events: Sequence[FeedEvent]) -> None:
        """Adds events to the tail, which they follow, and lets go of the oldest beyond its bounds."""
        self._tail.extend(events)
        self._tail_bytes += sum(len(event.payload) for event in events)
        while len(self._tail) > TAIL_EVENTS or self._tail_bytes > TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft().payload)

    def _drop(self) -> None:
        self._tail.clear()
        self._tail_bytes = 0

    def _advance(self, revision: int) -> None:
        self._revision = revision
        self._committed_revision = max(self._committed_revision, revision)
        self._changed.set()
        self._changed = asyncio.Event()

    def _from_tail(self, after: int) -> FeedBatch | None:
        """The events after ``after``, or None when the store has to be asked."""
        if after >= self._revision:
            return FeedBatch(after)
        if not self._tail or self._tail[0].revision > after + 1:
            return None
        # Watchers that keep up all ask for the same.
        asked, batch = self._shared
        if asked == after and batch.revision == min(self._revision, after + BATCH_EVENTS):
            return batch
        skip = after + 1 - self._tail[0].revision
        stop = min(len(self._tail), skip + BATCH_EVENTS)
        events = tuple(self._tail[position] for position in range(skip, stop))
        batch = FeedBatch(events[-1].revision, events)
        self._shared = (after, batch)
        return batch

    async def _from_store(self, after: int) -> FeedBatch:
        events = await self._read(after)
        if not events or events[0].revision != after + 1:
            async with self._db.read() as conn:
                self._check_kept(after, (await self._position(conn))[1])
        return FeedBatch(events[-1].revision if events else after, events)

    async def _read(self, after: int) -> tuple[FeedEvent, ...]:
        """Up to BATCH_EVENTS events after `after` that are still kept."""
        async with self._db.read() as conn:
            rows = (await conn.execute(_AFTER, {"feed": self._name, "after": after})).all()
        return tuple(FeedEvent(r.revision, r.key, r.payload, bool(r.deleted), r.trace) for r in rows)

    async def _wait(self) -> bool:
        """Whether something was committed within PROGRESS_SECONDS."""
        changed = self._changed
        try:
            async with asyncio.timeout(PROGRESS_SECONDS):
                await changed.wait()
        except TimeoutError:
            return False
        return True

    def _enter(self) -> None:
        self._watchers += 1
        if self._poller is None:
            # The poller outlives the watch that starts it, and does not belong to that one's trace.
            context = contextvars.Context()
            self._poller = asyncio.create_task(
                self._follow(), name=f"feed-poll-{self._name}", context=context
            )
            self._unfollow = self._db.follow(self._name, self._observe)
            # What was announced between the watch's first look and now was not heard.
            self._observe(None)

    def _leave(self) -> None:
        self._watchers -= 1
        if self._watchers == 0 and self._poller is not None:
            self._poller.cancel()
            self._poller = None
            if self._unfollow is not None:
                self._unfollow()
                self._unfollow = None
            if self._revision < self._committed_revision:
                self._drop()
                self._advance(self._committed_revision)

    async def _follow(self) -> None:
        """Takes in what other processes commit: when it is announced, and by looking every now and then."""
        while True:
            pause = ANNOUNCED_POLL_SECONDS if self._db.announces else POLL_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await self._look.wait()
            except TimeoutError:
                self._unheard = True
            self._look.clear()
            try:
                if self._unheard:
                    self._unheard = False
                    async with self._db.read() as conn:
                        revision = (await self._position(conn))[0]
                    self._committed_revision = max(self._committed_revision, revision)
                await self._catch_up()
            except Exception as exc:
                # The next round may do better, whatever it was: without this task all watchers stand still.
                reason = exc.reason if isinstance(exc, FimbriaError) else repr(exc)
                log.warning("cannot look for changes by others", feed=self._name, reason=reason)
                await asyncio.sleep(POLL_SECONDS)
                self._observe(None)

    async def _catch_up(self) -> None:
        """Reads what others have committed into the tail, once for all watchers."""
        while (after := self._revision) < (upto := self._committed_revision):
            if upto - after > TAIL_EVENTS:
                # More than is kept in memory: each watcher reads from where it is.
                self._drop()
                self._advance(upto)
                return
            events = await self._read(after)
            if self._revision != after:
                continue
            if not events:
                # Compacted meanwhile: whoever is behind learns that from the store.
                self._drop()
                self._advance(upto)
                return
            if events[0].revision != after + 1:
                self._drop()
            self._keep(events)
            self._advance(events[-1].revision)


async def compact_regularly(feeds: Iterable[Feed], keep: int, seconds: float = 60.0) -> NoReturn:
    """Drops all but the newest ``keep`` events of each feed every ``seconds``: a service's background task.

    A store that cannot be written just now is no reason to stop: the next turn makes up for it.
    """
    feeds = tuple(feeds)
    while True:
        await asyncio.sleep(seconds)
        for feed in feeds:
            try:
                await feed.compact(keep)
            except FimbriaError as exc:
                log.warning("compaction put off", feed=feed._name, reason=exc.reason)
