"""The change feed: what changed, in commit order, from any revision that is still kept.

A feed numbers its events 1, 2, 3, … inside the transaction that makes the change, by a counter row that only
one transaction can hold at a time. Commit order is therefore revision order, and a watcher that has seen N
can never miss an event below N, whichever process wrote it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.errors import FimbriaError, OutOfRange
from services.chassis.logs import get_logger

BATCH_EVENTS: Final = 1000
TAIL_EVENTS: Final = 4096
POLL_SECONDS: Final = 0.25
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
        self._revision = db.revisions.get(name, 0)
        # The newest events, contiguous up to _revision: watchers that keep up never read the store.
        self._tail: deque[FeedEvent] = deque(maxlen=TAIL_EVENTS)
        self._changed = asyncio.Event()
        self._watchers = 0
        self._poller: asyncio.Task[None] | None = None

    @property
    def revision(self) -> int:
        """The newest committed revision that this process knows of; 0 when nothing ever happened."""
        return self._revision

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
                events = self._from_tail(after)
                if events is None:
                    events = await self._from_store(after)
                if events:
                    after = events[-1].revision
                    yield FeedBatch(after, events)
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
            self._tail.extend(events)
            self._revision = events[-1].revision
            self._wake()
        else:
            # Another process wrote in between: the tail would have a hole.
            self._observe(events[-1].revision)

    def _observe(self, revision: int) -> None:
        if revision > self._revision:
            self._tail.clear()
            self._revision = revision
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _from_tail(self, after: int) -> tuple[FeedEvent, ...] | None:
        """The events after ``after``, or None when the store has to be asked."""
        if after >= self._revision:
            return ()
        if not self._tail or self._tail[0].revision > after + 1:
            return None
        skip = after + 1 - self._tail[0].revision
        stop = min(len(self._tail), skip + BATCH_EVENTS)
        return tuple(self._tail[position] for position in range(skip, stop))

    async def _from_store(self, after: int) -> tuple[FeedEvent, ...]:
        async with self._db.read() as conn:
            rows = (await conn.execute(_AFTER, {"feed": self._name, "after": after})).all()
            if not rows or rows[0].revision != after + 1:
                self._check_kept(after, (await self._position(conn))[1])
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
            self._poller = asyncio.create_task(self._poll(), name=f"feed-poll-{self._name}", context=context)

    def _leave(self) -> None:
        self._watchers -= 1
        if self._watchers == 0 and self._poller is not None:
            self._poller.cancel()
            self._poller = None

    async def _poll(self) -> None:
        """Notices what other processes commit."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                async with self._db.read() as conn:
                    self._observe((await self._position(conn))[0])
            except FimbriaError as exc:
                # The next round may do better; this process's own commits wake watchers without it.
                log.warning("cannot look for changes by others", feed=self._name, reason=exc.reason)


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
