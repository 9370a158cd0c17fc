"""A service's SQL store: one schema, one writer at a time, in a SQLite file or a PostgreSQL database.

Reads run beside each other, each on a consistent snapshot. Writes go through :meth:`Database.write`:
operations that arrive together share one transaction (group commit), and each returns only when that
transaction is on disk. What has been returned survives ``kill -9``.

An operation runs alone among all writers of the store, in whichever process they are: SQLite has one write
lock, on PostgreSQL the transaction takes a lock of the service's schema first. What it reads therefore does
not change under it. The SQL of the services is portable between the two; see docs/storage.md.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import exc as sa_exc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.backend import (
    Announcements,
    Backend,
    DatabaseOpenError,
    WriteTransaction,
    open_backend,
)
from services.chassis.batch import Operation, Pending, Together, Unit, Waiting, units
from services.chassis.errors import FimbriaError, ResourceExhausted, Unavailable
from services.chassis.logs import get_logger

__all__ = ["Database", "DatabaseOpenError", "Group", "Operation", "Together"]

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

MAX_BATCH: Final = 256
# How many operations may wait. With more, the last would wait for seconds, and memory would have no bound.
MAX_WAITING: Final = 2048
# After a batch in which an operation failed, so many go behind savepoints at once: failures come in showers.
CAUTIOUS_BATCHES: Final = 8
LEAST_RETRY_SECONDS: Final = 0.05
# A batch costs as much as some thirty operations in it: to wait a little for others is a gain for all.
MOST_GATHERING_SECONDS: Final = 0.005
log = get_logger(__name__)

_operation: contextvars.ContextVar[Unit | None] = contextvars.ContextVar("db_operation", default=None)


class Group(Generic[I, R]):
    """Writes of one kind, of which those that arrive together are carried out by one call.

    ``together`` gets the items of all that wait, in the order of their arrival, and returns as many results:
    a FimbriaError among them is the failure of that item alone, which must have changed nothing. If it
    raises, nothing of the call is kept and each item is tried by itself. It runs in the context of the first.
    """

    def __init__(self, database: Database, together: Together[I, R]) -> None:
        self._database = database
        self.together = together

    async def submit(self, item: I) -> R:
        """The result of `item`, once it is committed; raises as :meth:`Database.write` does."""
        result: R = await self._database.submit(self, item)
        return result


class Database:
    """An open store; made by :meth:`open`, ended by :meth:`close`. Belongs to one event loop."""

    def __init__(self, backend: Backend, revisions: dict[str, int]) -> None:
        self.revisions = revisions
        self._backend = backend
        self._waiting = Waiting()
        self._arrived = asyncio.Event()
        self._closing = False
        self._running: Unit | None = None
        self._cautious = 0
        self._batch_seconds = 0.0
        self._followers: dict[str, list[Callable[[int | None], None]]] = {}
        self._announcements: Announcements | None = None
        self._task = asyncio.create_task(self._write_batches(), name="db-writer")

    @classmethod
    async def open(
        cls, url: str, migrations: str | Path | None = None, *, schema: str | None = None
    ) -> Database:
        """Opens the store: ``sqlite:///PATH`` or ``postgresql://USER@HOST/DATABASE`` (``?host=/SOCKET/DIR``).

        ``migrations`` is a package name (``services.ipam.migrations``) or a directory that holds
        ``versions/``. A SQLite file is created and brought up to date where needed; a PostgreSQL schema
        (``schema``, by default the service's name) has to be there, see ``fimbria db migrate``.

        Raises :class:`DatabaseOpenError`: unsupported URL, unwritable directory, damaged file, file locked by
        another process, server that cannot be reached, schema that is missing, behind, or too new for the
        program.
        """
        backend = await open_backend(url, migrations, schema)
        try:
            revisions = await _feed_revisions(backend)
        except BaseException:
            await backend.close()
            raise
        return cls(backend, revisions)

    async def __aenter__(self) -> Database:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def path(self) -> Path:
        """The file of a SQLite store."""
        path = getattr(self._backend, "path", None)
        if not isinstance(path, Path):
            raise ValueError("a PostgreSQL store has no file")
        return path

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection on one snapshot of the store; writing through it is an error."""
        try:
            async with self._backend.reader.connect() as conn:
                await self._backend.begin_read(conn)
                yield conn
        except (sa_exc.DBAPIError, OSError) as exc:
            if isinstance(exc, OSError) and not self._backend.is_own_failure(exc):
                raise
            raise self._backend.problem(exc) from exc
        except sa_exc.TimeoutError as exc:
            raise Unavailable(
                "the store has too many readers", reason="DATABASE_BUSY", retry_after=1.0
            ) from exc

    async def write(self, operation: Operation[T]) -> T:
        """Runs ``operation`` inside a write transaction and returns its result once that is committed.

        The operation runs alone (no other write runs beside it) and in the caller's context, so spans nest as
        expected. If it raises, only what it did is rolled back, and the exception comes back here. It may run
        although the caller has been cancelled meanwhile, as with any request whose answer got lost, and it
        may run twice, of which one run is kept: it must have no effect but on the connection and by
        :meth:`after_commit`.

        Raises Unavailable (DATABASE_BUSY, DATABASE_IO, DATABASE_CLOSED) and ResourceExhausted (DATABASE_FULL)
        when the transaction as a whole fails; then nothing of it is stored, unless the connection was lost in
        the middle of the commit, of which nobody knows the outcome. ResourceExhausted (OVERLOADED) at once
        when too many operations wait already.
        """
        result: T = await self._enqueue(operation=operation)
        return result

    async def submit(self, group: Group[I, R], item: I) -> R:
        """What :meth:`Group.submit` says."""
        result: R = await self._enqueue(group=group, together=group.together, item=item)
        return result

    async def _enqueue(self, **what: Any) -> Any:
        if self._running is not None and _operation.get() is self._running:
            raise RuntimeError("write is called inside a write operation, which would wait for itself")
        if self._closing:
            raise Unavailable("the store is closing", reason="DATABASE_CLOSED")
        if len(self._waiting) >= MAX_WAITING:
            self._refuse_overload()
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.add(Pending(done, contextvars.copy_context(), **what))
        self._arrived.set()
        return await done

    def _refuse_overload(self) -> None:
        self._waiting.drop_abandoned()
        waiting = len(self._waiting)
        if waiting >= MAX_WAITING:
            batches = waiting / MAX_BATCH
            raise ResourceExhausted(
                f"{waiting} writes wait for the store already; try again later",
                reason="OVERLOADED",
                metadata={"waiting": waiting, "limit": MAX_WAITING},
                retry_after=max(LEAST_RETRY_SECONDS, round(batches * self._batch_seconds, 3)),
            )

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` when the operation that is running now has been committed; dropped if it fails.

        Only inside a write operation. Callbacks of all operations run in commit order.
        """
        self._current().committed.append(callback)

    def announce(self, topic: str, position: int) -> None:
        """Tells the followers of ``topic``, here and in other processes, of ``position`` after the commit.

        Only inside a write operation. Where the store cannot tell other processes, they have to look.
        """
        self._current().announced[topic] = position

    def _current(self) -> Unit:
        if self._running is None:
            raise RuntimeError("after_commit is called inside a write operation only")
        return self._running

    def follow(self, topic: str, told: Callable[[int | None], None]) -> Callable[[], None]:
        """Calls ``told`` with each position of ``topic`` that is announced; the result ends that.

        ``told(None)`` says that positions may have been announced unheard.
        """
        if self._announcements is None and not self._closing:
            # Its task outlives the call that starts it, and does not belong to that one's trace.
            self._announcements = contextvars.Context().run(self._backend.listen, self._told)
        followers = self._followers.setdefault(topic, [])
        followers.append(told)
        return lambda: followers.remove(told)

    @property
    def announces(self) -> bool:
        """Whether what other processes announce arrives here just now."""
        return self._announcements is not None and self._announcements.listening

    def _told(self, positions: Mapping[str, int] | None) -> None:
        if positions is None:
            for topic in self._followers:
                self._tell(topic, None)
        else:
            for topic, position in positions.items():
                self._tell(topic, position)

    def _tell(self, topic: str, position: int | None) -> None:
        for told in tuple(self._followers.get(topic, ())):
            told(position)

    async def close(self) -> None:
        """Commits what is queued, then closes. Later writes raise Unavailable (DATABASE_CLOSED)."""
        if not self._closing:
            self._closing = True
            self._arrived.set()
            self._waiting.hurry()
        await asyncio.shield(self._task)
        if self._announcements is not None:
            await self._announcements.close()
            self._announcements = None
        await self._backend.close()

    async def _write_batches(self) -> None:
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._waiting.gather(min(self._batch_seconds, MOST_GATHERING_SECONDS))
            started = time.monotonic()
            done = await self._store()
            for unit in done:
                unit.settle()
                for topic, position in unit.announced.items():
                    self._tell(topic, position)
            self._waiting.note(sum(len(unit.members) for unit in done))
            self._batch_seconds += (time.monotonic() - started - self._batch_seconds) / 4

    def _fill(self, batch: list[Unit]) -> None:
        """Takes those who wait into a batch that has none yet.

        Once the transaction has begun: the longer it had to wait for others, the more share it.
        """
        if not batch:
            batch += units(self._waiting.take(MAX_BATCH))

    async def _store(self) -> list[Unit]:
        """Carries a batch out and commits it; returns units with all members, which know how they ended."""
        batch: list[Unit] = []
        done = batch
        try:
            if self._cautious and len(self._waiting) > 1:
                self._cautious -= 1
            elif await self._commit(batch) or (len(batch) == 1 and len(batch[0].members) == 1):
                return batch
            else:
                self._cautious = CAUTIOUS_BATCHES
            done = []
            await self._commit_apart(batch, done)
        except Exception as exc:
            failure = self._backend.problem(exc)
            self._fill(batch)
            done = list(dict.fromkeys((*batch, *done)))
            for unit in done:
                unit.forget()
                for member in unit.members:
                    member.failure = member.failure or failure
        return done

    async def _commit(self, batch: list[Unit]) -> bool:
        """Fills the batch and carries it out in one transaction. If a unit fails nothing is kept: False.

        No savepoints: they would cost more than most operations, and hardly any operation fails.
        """
        async with self._backend.writing() as conn:
            transaction = await self._backend.begin_write(conn)
            try:
                self._fill(batch)
                for unit in batch:
                    unit.drop_abandoned()
                    if not unit.members:
                        continue
                    problem = await self._run(unit, conn)
                    self._check(unit, problem, transaction)
                    if problem is not None:
                        await transaction.rollback()
                        if len(unit.members) > 1:
                            # Whose fault it was shows when each is tried by itself.
                            at = batch.index(unit)
                            batch[at : at + 1] = unit.alone()
                        return False
                if not await transaction.commit(_announced(batch)):
                    for unit in batch:
                        unit.fail(_given_up())
                    return False
            except BaseException:
                await transaction.rollback()
                raise
        return True

    async def _commit_apart(self, batch: list[Unit], done: list[Unit]) -> None:
        """The same with each unit behind a savepoint: one that fails takes back only its own.

        Units go to `done` once they were carried out; one of several members that fails goes on as units of
        one.
        """
        async with self._backend.writing() as conn:
            transaction = await self._backend.begin_write(conn)
            try:
                self._fill(batch)
                waiting = deque(batch)
                while waiting:
                    unit = waiting.popleft()
                    unit.drop_abandoned()
                    if not unit.members:
                        continue
                    await transaction.mark()
                    problem = await self._run(unit, conn)
                    self._check(unit, problem, transaction)
                    if problem is None and not await transaction.keep():
                        problem = _given_up()
                        unit.fail(problem)
                    if problem is not None:
                        await transaction.take_back()
                        if len(unit.members) > 1:
                            # All of its members are in the batch still, should the store fail.
                            waiting.extendleft(reversed(unit.alone()))
                            continue
                    done.append(unit)
                if not await transaction.commit(_announced(done)):
                    raise _given_up()
            except BaseException:
                await transaction.rollback()
                raise

    async def _run(self, unit: Unit, conn: AsyncConnection) -> BaseException | None:
        """Carries a unit out; returns what the call as a whole failed with."""
        self._running = unit
        try:
            await unit.run(conn, _operation)
        except BaseException as exc:
            # The disk is full, or the store is gone: nothing that the operation itself could have known.
            own = isinstance(exc, Exception) and self._backend.is_own_failure(exc)
            problem = self._backend.problem(exc) if own and isinstance(exc, Exception) else exc
            unit.fail(problem)
            return problem
        finally:
            self._running = None
        return None

    def _check(self, unit: Unit, problem: BaseException | None, transaction: WriteTransaction) -> None:
        """Fails the batch when its transaction is over, as when the disk is full or the connection lost.

        Going on would run the rest outside of any transaction, and acknowledge what is lost.
        """
        if transaction.alive():
            return
        if isinstance(problem, FimbriaError):
            raise problem
        raise _given_up()


def _given_up() -> Unavailable:
    return Unavailable("the store gave the transaction up", reason="DATABASE_IO", retry_after=1.0)


def _announced(batch: list[Unit]) -> dict[str, int]:
    announced: dict[str, int] = {}
    for unit in batch:
        announced.update(unit.announced)
    return announced


async def _feed_revisions(backend: Backend) -> dict[str, int]:
    """The newest revision of each feed in the store, so that a feed knows it before anything is read."""
    async with backend.writing() as conn:
        found = await conn.run_sync(lambda sync: sync.dialect.has_table(sync, "feed_state"))
        if not found:
            return {}
        rows = await conn.execute(text("SELECT feed, revision FROM feed_state"))
        return {row.feed: row.revision for row in rows}
