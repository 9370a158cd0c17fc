"""SQLite under asyncio without a thread hop for every statement.

A statement on an embedded store takes some ten microseconds; handing it to a thread and waiting for the
answer takes several hundred, four times over for one SELECT. Here statements run where they are called, and
only what may really block goes to the connection's own thread: waiting for a write lock that another process
has, commit (it waits for the disk), rollback, and writing many rows at once.

The classes have the shape that SQLAlchemy's aiosqlite dialect drives; `connect` goes in as its
``async_creator_fn``.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self, TypeVar

T = TypeVar("T")

INLINE_ROWS: Final = 64
# Statements are few and prebuilt; each stays compiled.
CACHED_STATEMENTS: Final = 512
_NO_PATIENCE: Final = "PRAGMA busy_timeout=0"


class Cursor:
    """One statement and its rows."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cursor = connection.sqlite.cursor()

    async def __aenter__(self) -> Self:
        return self

    @property
    def description(self) -> Any:
        """Columns of the result, None when there is none."""
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        """Rows that the statement changed, -1 when unknown."""
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        """Row id of the last row inserted."""
        return self._cursor.lastrowid

    async def execute(self, operation: str, parameters: Any = ()) -> Self:
        """Runs one statement."""
        if operation.startswith("BEGIN IMMEDIATE"):
            await self._connection.take_lock(self._cursor, operation)
        else:
            self._cursor.execute(operation, parameters)
        return self

    async def executemany(self, operation: str, parameters: Sequence[Any]) -> Self:
        """Runs one statement for each row of parameters."""
        if len(parameters) > INLINE_ROWS:
            await self._connection.in_thread(lambda: self._cursor.executemany(operation, parameters))
        else:
            self._cursor.executemany(operation, parameters)
        return self

    async def fetchone(self) -> Any:
        """The next row, None after the last."""
        return self._cursor.fetchone()

    async def fetchmany(self, size: int = 1) -> list[Any]:
        """Up to `size` rows."""
        return self._cursor.fetchmany(size)

    async def fetchall(self) -> list[Any]:
        """The rows that are left."""
        return self._cursor.fetchall()

    async def close(self) -> None:
        """Ends the statement."""
        self._cursor.close()


class Connection:
    """One connection; used by one task at a time."""

    def __init__(self, connection: sqlite3.Connection, timeout: float) -> None:
        self.sqlite = connection
        self._patience = f"PRAGMA busy_timeout={round(timeout * 1000)}"
        self._executor: ThreadPoolExecutor | None = None
        self._writes = False

    @property
    def _connection(self) -> sqlite3.Connection:
        # The dialect asks whether the connection is there before it commits or rolls back.
        return self.sqlite

    def cursor(self) -> Cursor:
        """A new cursor."""
        return Cursor(self)

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Runs `call` in the connection's thread."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def take_lock(self, cursor: sqlite3.Cursor, statement: str) -> None:
        """Begins a write. Only when another process has the lock is there something to wait for."""
        self._writes = True
        self.sqlite.execute(_NO_PATIENCE)
        try:
            cursor.execute(statement)
        except sqlite3.OperationalError as exc:
            if (exc.sqlite_errorcode & 0xFF) != sqlite3.SQLITE_BUSY:
                raise
        finally:
            self.sqlite.execute(self._patience)
        if not self.sqlite.in_transaction:
            await self.in_thread(lambda: cursor.execute(statement))

    async def commit(self) -> None:
        """Commits the open transaction, if there is one."""
        if self.sqlite.in_transaction:
            await self.in_thread(self.sqlite.commit)

    async def rollback(self) -> None:
        """Rolls the open transaction back, if there is one."""
        if self.sqlite.in_transaction:
            if not self._writes:
                # It has never taken the write lock: a reader, whose rollback touches nothing.
                self.sqlite.rollback()
            else:
                await self.in_thread(self.sqlite.rollback)

    async def create_function(self, *arguments: Any, **options: Any) -> None:
        """Registers an SQL function; SQLAlchemy does this for REGEXP."""
        self.sqlite.create_function(*arguments, **options)

    async def close(self) -> None:
        """Closes the connection; an open transaction is rolled back."""
        self.stop()

    def stop(self) -> None:
        """The same for a connection that is thrown away."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
        self.sqlite.close()


async def connect(database: str, timeout: float = 5.0, **_: Any) -> Connection:
    """Opens `database`; `timeout` is how long, in seconds, a statement waits for another process's lock.

    Transactions are begun explicitly: the driver adds none of its own.
    """
    return Connection(
        sqlite3.connect(
            database,
            timeout=timeout,
            isolation_level=None,
            # The loop's thread and the connection's own take turns; SQLite itself is built serialized.
            check_same_thread=False,
            cached_statements=CACHED_STATEMENTS,
        ),
        timeout,
    )
