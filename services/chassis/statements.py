"""SQL of hot paths, handed to the driver as it stands.

A statement of SQLAlchemy's own costs 60 µs and more where SQLite takes 2 µs, and 4 µs for each row that is
inserted. What is lost is the translation between the databases: the text is written for SQLite and PostgreSQL
alike, with `?` for each parameter, and values go in and out as the drivers have them (str, int, bytes, None).
A parameter whose type its place does not tell, as in VALUES, is cast: to VARCHAR, BIGINT or BYTEA.
For use inside reads and writes of a Database, beside statements of any other kind.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.sqlite_driver import INLINE_ROWS
from services.chassis.sqlite_driver import Connection as SqliteConnection

# Of as many keys one statement speaks at most: SQLite takes 32,766 parameters, and planning is not free.
KEYS: Final = 256


class Sql:
    """One statement; its parameters are in the order of the question marks."""

    def __init__(self, text: str) -> None:
        # Only PostgreSQL has to be told, and SQLite would make a number of it.
        self._text = text.replace("CAST(? AS BYTEA)", "?")
        parts = text.split("?")
        numbered = (f"{part}${number}" for number, part in enumerate(parts[:-1], start=1))
        self._numbered = "".join(numbered) + parts[-1]

    async def rows(self, connection: AsyncConnection, *parameters: object) -> Sequence[Any]:
        """Runs it; all rows of its result, as tuples or what can be unpacked like them."""
        driver = _driver(connection)
        if driver is None:
            return (await connection.exec_driver_sql(self._numbered, parameters)).all()
        try:
            if isinstance(driver, SqliteConnection):
                return driver.sqlite.execute(self._text, parameters).fetchall()
            found: Sequence[Any] = await driver.fetch(self._numbered, *parameters)
            return found
        except Exception as exc:
            self._fail(connection, parameters, exc)

    async def run(self, connection: AsyncConnection, *parameters: object) -> int:
        """Runs a statement without a result; how many rows it changed."""
        driver = _driver(connection)
        if driver is None:
            return int((await connection.exec_driver_sql(self._numbered, parameters)).rowcount)
        try:
            if isinstance(driver, SqliteConnection):
                return driver.sqlite.execute(self._text, parameters).rowcount
            # "UPDATE 3", "INSERT 0 3".
            told: str = await driver.execute(self._numbered, *parameters)
            return int(told.rpartition(" ")[2])
        except Exception as exc:
            self._fail(connection, parameters, exc)

    async def run_each(self, connection: AsyncConnection, rows: list[tuple[Any, ...]]) -> None:
        """Runs a statement without a result for each of `rows`, which may be none."""
        if not rows:
            return
        driver = _driver(connection)
        if driver is None:
            await connection.exec_driver_sql(self._numbered, rows)
            return
        try:
            if not isinstance(driver, SqliteConnection):
                await driver.executemany(self._numbered, rows)
            elif len(rows) > INLINE_ROWS:
                await driver.in_thread(lambda: driver.sqlite.executemany(self._text, rows))
            else:
                driver.sqlite.executemany(self._text, rows)
        except Exception as exc:
            self._fail(connection, rows, exc)

    def _fail(self, connection: AsyncConnection, parameters: Any, exc: Exception) -> NoReturn:
        """Raises the error as SQLAlchemy would have raised it."""
        kind, found = sqlite3.Error, exc
        if not isinstance(exc, sqlite3.Error):
            dbapi: Any = connection.dialect.dbapi
            kind = dbapi.Error
            try:
                # The dialect alone knows which of its errors one of asyncpg's is.
                _below(connection).dbapi_connection._handle_exception(exc)
            except Exception as translated:
                found = translated
        if not isinstance(found, kind):
            raise exc
        raise sa_exc.DBAPIError.instance(
            self._text, parameters, found, kind, dialect=connection.dialect
        ) from found


class SqlOfKeys:
    """A statement about any number of keys, each a tuple of parameters.

    Each `{keys}` in `text` becomes a list of `key`s, such as `?` or `(?, ?)`. The lists have lengths of
    powers of two, filled up with `nobody`, a key that is never there: drivers keep what they have prepared by
    its text, and so there are nine texts instead of 256.
    """

    def __init__(self, text: str, key: str, nobody: tuple[Any, ...]) -> None:
        self._nobody = nobody
        self._lists = text.count("{keys}")
        self._by_length = {
            1 << power: Sql(text.replace("{keys}", ", ".join([key] * (1 << power))))
            for power in range(KEYS.bit_length())
        }

    async def rows(self, connection: AsyncConnection, keys: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The rows for all of `keys`, in the order of the statement for each 256 of them."""
        found: list[Any] = []
        for start in range(0, len(keys), KEYS):
            part = keys[start : start + KEYS]
            length = 1 << (len(part) - 1).bit_length()
            filled = [*part, *[self._nobody] * (length - len(part))]
            flat = [value for key in filled for value in key]
            found += await self._by_length[length].rows(connection, *flat * self._lists)
        return found


def _driver(connection: AsyncConnection) -> Any:
    """The driver's connection below `connection`; None when it is to PostgreSQL and in no transaction yet.

    SQLAlchemy begins one with its own first statement.
    """
    driver = _below(connection).driver_connection
    return driver if isinstance(driver, SqliteConnection) or driver.is_in_transaction() else None


def _below(connection: AsyncConnection) -> Any:
    below = connection.sync_connection
    assert below is not None
    return below.connection
