"""A store in one SQLite file: WAL, ``synchronous=FULL``, one process after the other writes.

URL, permissions, pragmas, engines, transactions, and errors that say what to do.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import event, text
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from services.chassis.backend import READER_WAIT_SECONDS, READERS, DatabaseOpenError, Told, parse_url
from services.chassis.errors import Aborted, FimbriaError, Internal, ResourceExhausted, Unavailable
from services.chassis.logs import get_logger
from services.chassis.sqlite_driver import connect

BUSY_SECONDS: Final = 5.0

log = get_logger(__name__)


class SqliteBackend:
    """An open SQLite file; see :class:`services.chassis.backend.Backend`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = _engine(path, "query_only=ON", pool_size=READERS)
        self.writer = _engine(path, "query_only=OFF", pool_size=1)
        self._writing: AsyncConnection | None = None

    @classmethod
    async def open(cls, url: str, migrations: str | Path | None) -> SqliteBackend:
        """Creates the file where it is missing and brings its schema up to date. Raises DatabaseOpenError."""
        path = prepare_file(url)
        backend = cls(path)
        try:
            if migrations is not None:
                from services.chassis.migrate import upgrade

                await upgrade(backend.writer, migrations)
            else:
                async with backend.writer.connect():
                    pass
        except (sa_exc.DBAPIError, OSError) as exc:
            await backend.close()
            raise open_error(path, exc) from exc
        except BaseException:
            await backend.close()
            raise
        return backend

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        # A checkout and a check-in cost more than most writes; nobody else wants the connection.
        if self._writing is None:
            self._writing = await self.writer.connect()
        try:
            yield self._writing
        except BaseException:
            await self._let_go()
            raise
        if self._writing.invalidated:
            await self._let_go()
        elif self._writing.in_transaction():
            await self._writing.rollback()

    async def _let_go(self) -> None:
        connection, self._writing = self._writing, None
        if connection is not None:
            await connection.close()

    async def begin_read(self, connection: AsyncConnection) -> None:
        await connection.execute(_BEGIN)

    async def begin_write(self, connection: AsyncConnection) -> _Transaction:
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
        driver: Any = (await connection.get_raw_connection()).driver_connection
        return _Transaction(connection, driver.sqlite)

    def problem(self, exc: Exception) -> FimbriaError:
        if isinstance(exc, FimbriaError):
            return exc
        what = str(getattr(exc, "orig", None) or exc)
        log.error("store failed", error=what, statement=getattr(exc, "statement", None))
        if "locked" in what or "busy" in what:
            return Unavailable(
                "the store is locked by another process", reason="DATABASE_BUSY", retry_after=1.0
            )
        if "full" in what:
            return ResourceExhausted("the disk that holds the store is full", reason="DATABASE_FULL")
        if isinstance(exc, sa_exc.OperationalError):
            return Unavailable("the store cannot be used right now", reason="DATABASE_IO", retry_after=1.0)
        if isinstance(exc, sa_exc.IntegrityError):
            return Aborted("a concurrent change is in conflict with this one", reason="CONFLICT")
        return Internal("the store failed", reason="DATABASE_ERROR")

    def is_own_failure(self, exc: BaseException) -> bool:
        return isinstance(exc, sa_exc.OperationalError)

    def listen(self, told: Told) -> None:
        """Other processes on the file are noticed by looking."""

    async def close(self) -> None:
        await self._let_go()
        await self.reader.dispose()
        await self.writer.dispose()


class _Transaction:
    def __init__(self, connection: AsyncConnection, sqlite: Any) -> None:
        self._connection = connection
        self._sqlite = sqlite

    def alive(self) -> bool:
        # SQLite rolls a transaction back by itself when the disk is full.
        return bool(self._sqlite.in_transaction)

    async def commit(self, announce: Mapping[str, int]) -> bool:
        await self._connection.commit()
        return True

    async def mark(self) -> None:
        await self._connection.exec_driver_sql("SAVEPOINT unit")

    async def keep(self) -> bool:
        await self._connection.exec_driver_sql("RELEASE unit")
        return True

    async def take_back(self) -> None:
        await self._connection.exec_driver_sql("ROLLBACK TO unit")
        await self._connection.exec_driver_sql("RELEASE unit")

    async def rollback(self) -> None:
        try:
            await self._connection.rollback()
        except sa_exc.DBAPIError as exc:
            await self._connection.invalidate(exc)


_BEGIN = text("BEGIN")


def database_path(url: str) -> Path:
    """The file behind ``sqlite:///PATH``. Raises DatabaseOpenError for any other URL."""
    parsed = parse_url(url)
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseOpenError(f"database URL {url!r} names no file; expected sqlite:///PATH")
    return Path(parsed.database).absolute()


def prepare_file(url: str) -> Path:
    """Makes the directory (0700) and the file (0600) where they are missing, and returns the file's path."""
    path = database_path(url)
    try:
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        # SQLite gives its -wal and -shm files the permissions of the main file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise open_error(path, exc) from exc
    return path


def _engine(path: Path, *pragmas: str, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path)),
        poolclass=AsyncAdaptedQueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=READER_WAIT_SECONDS,
        connect_args={"timeout": BUSY_SECONDS, "async_creator_fn": connect},
    )

    def configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", configure)
    return engine


def open_error(path: Path, exc: Exception) -> DatabaseOpenError:
    """The error that an operator sees when ``path`` cannot be opened because of ``exc``."""
    if isinstance(exc, OSError):
        problem = f"{exc.strerror or exc}; expected a directory and file that this process may write"
        return DatabaseOpenError(f"cannot open the database {path}: {problem}")
    what = str(getattr(exc, "orig", None) or exc)
    if "not a database" in what or "malformed" in what:
        problem = f"the file is damaged or not a SQLite database ({what}); restore it or move it away"
    elif "locked" in what:
        problem = f"another process has held its lock for {BUSY_SECONDS:g} s; stop that process"
    elif "readonly" in what or "unable to open" in what:
        problem = f"{what}; expected a directory and file that this process may write"
    else:
        problem = what
    return DatabaseOpenError(f"cannot open the database {path}: {problem}")
