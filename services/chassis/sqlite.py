"""Opening a SQLite file: URL, permissions, pragmas, engines, and errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from services.chassis.errors import StartError
from services.chassis.sqlite_driver import connect

BUSY_SECONDS: Final = 5.0
READERS: Final = 4
READER_WAIT_SECONDS: Final = 10.0


class DatabaseOpenError(StartError):
    """The store cannot be opened; the message names the file, what is wrong and what to do."""


def database_path(url: str) -> Path:
    """The file behind ``sqlite:///PATH``. Raises DatabaseOpenError for any other URL."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseOpenError(f"database URL {url!r} is malformed; expected sqlite:///PATH") from None
    if parsed.get_backend_name() != "sqlite":
        shown = parsed.render_as_string(hide_password=True)
        raise DatabaseOpenError(
            f"database URL {shown!r}: this version stores in SQLite only; expected sqlite:///PATH"
        )
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


def reader_engine(path: Path) -> AsyncEngine:
    """Connections for reading beside each other; SQLite refuses writes on them."""
    return _engine(path, "query_only=ON", pool_size=READERS)


def writer_engine(path: Path) -> AsyncEngine:
    """The one connection that writes."""
    return _engine(path, "query_only=OFF", pool_size=1)


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


async def transaction_state(conn: AsyncConnection) -> Callable[[], bool]:
    """Tells at any time whether the connection's transaction is still open in SQLite itself."""
    driver: Any = (await conn.get_raw_connection()).driver_connection
    return lambda: bool(driver.sqlite.in_transaction)


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
