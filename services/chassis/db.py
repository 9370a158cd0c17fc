"""A service's SQL store: one file, one schema, one writer.

Reads run beside each other, each on a consistent snapshot. Writes go through :meth:`Database.write`:
operations that arrive together share one transaction (group commit), each behind a savepoint of its own, and
each returns only when that transaction is on disk. What has been returned survives ``kill -9``.

Today the store is SQLite (WAL, ``synchronous=FULL``); the SQL of the services is kept portable.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import exc as sa_exc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.chassis.errors import Aborted, FimbriaError, Internal, ResourceExhausted, Unavailable
from services.chassis.logs import get_logger
from services.chassis.sqlite import (
    DatabaseOpenError,
    open_error,
    prepare_file,
    reader_engine,
    transaction_state,
    writer_engine,
)

__all__ = ["Database", "DatabaseOpenError", "Group", "Operation", "Together"]

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
Operation = Callable[[AsyncConnection], Awaitable[T]]
Together = Callable[[AsyncConnection, Sequence[I]], Awaitable[Sequence[R | FimbriaError]]]

MAX_BATCH: Final = 256
log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Pending:
    """An operation that somebody waits for: in whose context it runs, and how it ended."""

    done: asyncio.Future[Any]
    context: contextvars.Context
    operation: Operation[Any] | None = None
    group: Group[Any, Any] | None = None
    item: Any = None
    result: Any = None
    failure: BaseException | None = None


@dataclass(slots=True, eq=False)
class _Unit:
    """What is carried out by one call, behind one savepoint, and what to call once it is committed."""

    members: list[_Pending]
    committed: list[Callable[[], None]] = field(default_factory=list)

    @property
    def context(self) -> contextvars.Context:
        return self.members[0].context

    @property
    def failed(self) -> bool:
        return all(member.failure is not None for member in self.members)

    async def carry_out(self, connection: AsyncConnection) -> None:
        first = self.members[0]
        if first.group is None:
            assert first.operation is not None
            first.result = await first.operation(connection)
            return
        items = [member.item for member in self.members]
        results = await first.group.together(connection, items)
        for member, result in zip(self.members, results, strict=True):
            if isinstance(result, FimbriaError):
                member.failure = result
            else:
                member.result = result

    def fail(self, problem: BaseException) -> None:
        self.committed.clear()
        for member in self.members:
            member.failure = problem


_operation: contextvars.ContextVar[_Unit | None] = contextvars.ContextVar("db_operation", default=None)


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

    def __init__(self, url: str, path: Path, reader: AsyncEngine, writer: AsyncEngine) -> None:
        self.url = url
        self.path = path
        self.revisions: dict[str, int] = {}
        self._reader = reader
        self._writer = writer
        self._queue: deque[_Pending] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._running: _Unit | None = None
        self._task = asyncio.create_task(self._write_batches(), name="db-writer")

    @classmethod
    async def open(cls, url: str, migrations: str | Path | None = None) -> Database:
        """Opens the store, creating it and bringing its schema up to date where needed.

        ``migrations`` is a package name (``services.ipam.migrations``) or a directory that holds
        ``versions/``. Raises :class:`DatabaseOpenError`: unsupported URL, unwritable directory, damaged
        file, file locked by another process, or a schema newer than the program.
        """
        path = prepare_file(url)
        reader, writer = reader_engine(path), writer_engine(path)
        try:
            if migrations is not None:
                from services.chassis.migrate import upgrade

                await upgrade(writer, migrations)
            revisions = await _feed_revisions(writer)
        except (sa_exc.DBAPIError, OSError) as exc:
            await reader.dispose()
            await writer.dispose()
            raise open_error(path, exc) from exc
        except BaseException:
            await reader.dispose()
            await writer.dispose()
            raise
        database = cls(url, path, reader, writer)
        database.revisions = revisions
        return database

    async def __aenter__(self) -> Database:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection on one snapshot of the store; writing through it is an error."""
        try:
            async with self._reader.connect() as conn:
                await conn.execute(text("BEGIN"))
                yield conn
        except sa_exc.DBAPIError as exc:
            raise _store_error(exc) from exc
        except sa_exc.TimeoutError as exc:
            raise Unavailable(
                "the store has too many readers", reason="DATABASE_BUSY", retry_after=1.0
            ) from exc

    async def write(self, operation: Operation[T]) -> T:
        """Runs ``operation`` inside a write transaction and returns its result once that is committed.

        The operation runs alone (no other write runs beside it) and in the caller's context, so spans nest as
        expected. If it raises, only what it did is rolled back, and the exception comes back here. It may run
        although the caller has been cancelled meanwhile, as with any request whose answer got lost.

        Raises Unavailable (DATABASE_BUSY, DATABASE_IO, DATABASE_CLOSED) and ResourceExhausted (DATABASE_FULL)
        when the transaction as a whole fails; then nothing of it is stored.
        """
        result: T = await self._enqueue(operation=operation)
        return result

    async def submit(self, group: Group[I, R], item: I) -> R:
        """What :meth:`Group.submit` says."""
        result: R = await self._enqueue(group=group, item=item)
        return result

    async def _enqueue(self, **what: Any) -> Any:
        if self._running is not None and _operation.get() is self._running:
            raise RuntimeError("write is called inside a write operation, which would wait for itself")
        if self._closing:
            raise Unavailable("the store is closing", reason="DATABASE_CLOSED")
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(_Pending(done, contextvars.copy_context(), **what))
        self._arrived.set()
        return await done

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` when the operation that is running now has been committed; dropped if it fails.

        Only inside a write operation. Callbacks of all operations run in commit order.
        """
        if self._running is None:
            raise RuntimeError("after_commit is called inside a write operation only")
        self._running.committed.append(callback)

    async def close(self) -> None:
        """Commits what is queued, then closes. Later writes raise Unavailable (DATABASE_CLOSED)."""
        if not self._closing:
            self._closing = True
            self._arrived.set()
        await asyncio.shield(self._task)
        await self._reader.dispose()
        await self._writer.dispose()

    async def _write_batches(self) -> None:
        while True:
            if not self._queue:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                continue
            # Whoever arrived while the last batch was committed goes into this one; nobody waits for company.
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
            batch = [pending for pending in batch if not pending.done.done()]
            if not batch:
                continue
            units = _units(batch)
            try:
                await self._commit(units)
            except Exception as exc:
                failure = _store_error(exc)
                for pending in batch:
                    pending.failure = pending.failure or failure
            for unit in units:
                self._settle(unit)

    async def _commit(self, units: list[_Unit]) -> None:
        async with self._writer.connect() as conn:
            await conn.execute(text("BEGIN IMMEDIATE"))
            in_transaction = await transaction_state(conn)
            if len(units) == 1 and len(units[0].members) == 1:
                # Alone it needs no savepoint: the transaction is its own.
                await self._run(units[0], conn)
                self._check(units[0], in_transaction())
                if units[0].failed:
                    await conn.rollback()
                    return
            else:
                waiting = deque(units)
                while waiting:
                    unit = waiting.popleft()
                    savepoint = await conn.begin_nested()
                    problem = await self._run(unit, conn)
                    self._check(unit, in_transaction())
                    if not unit.failed:
                        await savepoint.commit()
                        continue
                    await savepoint.rollback()
                    if problem is not None and len(unit.members) > 1:
                        # Whose fault it was shows when each is tried by itself.
                        alone = [_Unit([member]) for member in unit.members]
                        unit.members.clear()
                        units += alone
                        waiting.extendleft(reversed(alone))
            await conn.commit()

    async def _run(self, unit: _Unit, conn: AsyncConnection) -> BaseException | None:
        """Carries a unit out; returns what the call as a whole failed with."""
        for member in unit.members:
            member.failure = None

        async def call() -> None:
            _operation.set(unit)
            await unit.carry_out(conn)

        self._running = unit
        try:
            await asyncio.get_running_loop().create_task(call(), context=unit.context)
        except sa_exc.OperationalError as exc:
            # The disk is full, or the store is gone: nothing that the operation itself could have known.
            unit.fail(_store_error(exc))
            return exc
        except BaseException as exc:
            unit.fail(exc)
            return exc
        finally:
            self._running = None
        return None

    def _check(self, unit: _Unit, in_transaction: bool) -> None:
        """Fails the batch when SQLite has rolled it back by itself, as it does when the disk is full.

        Going on would run the rest outside of any transaction, and acknowledge what is lost.
        """
        if in_transaction:
            return
        failure = unit.members[0].failure
        if isinstance(failure, FimbriaError):
            raise failure
        raise Unavailable("the store gave the transaction up", reason="DATABASE_IO", retry_after=1.0)

    def _settle(self, unit: _Unit) -> None:
        if unit.members and not unit.failed:
            for callback in unit.committed:
                try:
                    callback()
                except Exception:
                    log.exception("a callback after commit failed")
        for pending in unit.members:
            if pending.done.done():
                continue
            if pending.failure is None:
                pending.done.set_result(pending.result)
            elif isinstance(pending.failure, asyncio.CancelledError):
                pending.done.cancel()
            else:
                pending.done.set_exception(pending.failure)


def _units(batch: Sequence[_Pending]) -> list[_Unit]:
    """One unit for each operation, and one for all items of a group, where its first one stands."""
    units: list[_Unit] = []
    of_group: dict[int, _Unit] = {}
    for pending in batch:
        known = of_group.get(id(pending.group)) if pending.group is not None else None
        if known is not None:
            known.members.append(pending)
            continue
        unit = _Unit([pending])
        units.append(unit)
        if pending.group is not None:
            of_group[id(pending.group)] = unit
    return units


async def _feed_revisions(engine: AsyncEngine) -> dict[str, int]:
    """The newest revision of each feed in the store, so that a feed knows it before anything is read."""
    async with engine.connect() as conn:
        found = await conn.run_sync(lambda sync: sync.dialect.has_table(sync, "feed_state"))
        if not found:
            return {}
        rows = await conn.execute(text("SELECT feed, revision FROM feed_state"))
        return {row.feed: row.revision for row in rows}


def _store_error(exc: Exception) -> FimbriaError:
    """What a client is told when the store itself fails; the text of the driver stays in the log."""
    if isinstance(exc, FimbriaError):
        return exc
    what = str(getattr(exc, "orig", None) or exc)
    log.error("store failed", error=what, statement=getattr(exc, "statement", None))
    if "locked" in what or "busy" in what:
        return Unavailable("the store is locked by another process", reason="DATABASE_BUSY", retry_after=1.0)
    if "full" in what:
        return ResourceExhausted("the disk that holds the store is full", reason="DATABASE_FULL")
    if isinstance(exc, sa_exc.OperationalError):
        return Unavailable("the store cannot be used right now", reason="DATABASE_IO", retry_after=1.0)
    if isinstance(exc, sa_exc.IntegrityError):
        return Aborted("a concurrent change is in conflict with this one", reason="CONFLICT")
    return Internal("the store failed", reason="DATABASE_ERROR")
