"""A store in one schema of a PostgreSQL database, which any number of replicas of a service share.

Writers of all replicas take turns: each transaction begins with a lock of the schema, so that what it reads
does not change under it and no store has to retry for conflicts. Everything that a server or network can do
in the meantime comes out as Unavailable with a time to retry, and the next use connects anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import asyncpg
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from services.chassis.backend import READER_WAIT_SECONDS, READERS, DatabaseOpenError, Told, parse_url, shown
from services.chassis.errors import Aborted, FimbriaError, Internal, ResourceExhausted, Unavailable
from services.chassis.logs import get_logger
from services.chassis.postgres_listen import Listener

CONNECT_SECONDS: Final = 5.0
START_SECONDS: Final = 15.0
# How long a writer waits for the others of its schema, and how long the server lets one sit in an open
# transaction without a statement: a process that froze must not keep all others from writing.
LOCK_SECONDS: Final = 5.0
IDLE_WRITER_SECONDS: Final = 10.0
IDLE_READER_SECONDS: Final = 300.0
# No statement of a service takes this long; one that does waits for a server that is not there any more.
STATEMENT_SECONDS: Final = 60.0
CACHED_STATEMENTS: Final = 256
SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,39}")
# Names sort by their bytes, as in SQLite.
DATABASE_OPTIONS: Final = "TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"

_DISK_FULL: Final = frozenset({"53100"})
_BUSY: Final = frozenset({"53000", "53200", "53300", "55P03", "57014", "57P03", "40001", "40P01"})
_LOST: Final = frozenset({"57P01", "57P02", "57P05", "25P03", "25P02", "25006", "58030"})

log = get_logger(__name__)


class Server:
    """Where a database is and how connections to it are made; DatabaseOpenError for an unusable URL."""

    def __init__(self, url: URL, schema: str) -> None:
        if not SCHEMA.fullmatch(schema):
            raise DatabaseOpenError(
                f"schema {schema!r} cannot be used; expected lower-case letters, digits and underscores, "
                "at most 40"
            )
        if not url.database:
            raise DatabaseOpenError(
                f"database URL {shown(url)!r} names no database; expected postgresql://USER@HOST/DATABASE"
            )
        # While the store is being opened, what fails is said once, by whoever opens it.
        self.opening = True
        self.shown = shown(url)
        self.schema = schema
        self._url = url
        self._dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)

    async def connect(self, *, settings: Mapping[str, str], timeout: float = CONNECT_SECONDS) -> Any:
        """A connection of the driver whose search path is the schema. Raises what the driver raises."""
        connection = await asyncpg.connect(
            self._dsn,
            timeout=timeout,
            command_timeout=STATEMENT_SECONDS,
            server_settings={
                "search_path": self.schema,
                "application_name": f"fimbria {self.schema}",
                # Compiling statements that touch a few rows costs more than it saves.
                "jit": "off",
                **settings,
            },
        )
        # Acknowledged means on disk, whatever the server's default; more than that is left as it is.
        await connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )
        return connection

    def engine(self, *, pool_size: int, settings: Mapping[str, str], **options: Any) -> AsyncEngine:
        """A pool of connections; one that the server has closed is replaced before it is used."""

        async def connect(**_: Any) -> Any:
            try:
                return await self.connect(settings=settings)
            except FAILURES as exc:
                # SQLAlchemy passes it through as it is.
                raise problem(exc, quiet=self.opening) from exc

        engine = create_async_engine(
            "postgresql+asyncpg://",
            poolclass=AsyncAdaptedQueuePool,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=READER_WAIT_SECONDS,
            connect_args={
                "async_creator_fn": connect,
                "prepared_statement_cache_size": CACHED_STATEMENTS,
            },
            **options,
        )
        event.listen(engine.sync_engine, "checkout", _replace_closed)
        return engine

    def open_error(self, exc: BaseException) -> DatabaseOpenError:
        """The error that an operator sees when the database cannot be used because of `exc`."""
        cause: BaseException | None = exc
        while isinstance(cause, FimbriaError | sa_exc.DBAPIError) and cause.__cause__ is not None:
            cause = cause.__cause__
        code = getattr(cause, "sqlstate", None)
        what = " ".join(str(cause).split()) or type(cause).__name__
        if self._url.password:
            what = what.replace(str(self._url.password), "***")
        if code == "3D000":
            what += f'; create it: CREATE DATABASE "{self._url.database}" {DATABASE_OPTIONS}'
        elif code in ("28000", "28P01"):
            what += "; expected a role that may log in, and its password in the URL or in PGPASSFILE"
        elif isinstance(cause, TimeoutError):
            what = f"no answer within {CONNECT_SECONDS:g} s; is the server running?"
        elif isinstance(cause, OSError):
            what = f"{cause.strerror or what}; is the server running, and host or socket directory right?"
        return DatabaseOpenError(f"cannot open the database {self.shown}: {what}")


FAILURES: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    ValueError,
)


_LOST_KINDS: Final = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def _replace_closed(connection: Any, record: Any, proxy: Any) -> None:
    """The driver learns of a lost connection when it is lost: asking costs nothing."""
    if connection.driver_connection.is_closed():
        raise sa_exc.DisconnectionError("the server has closed the connection")


class PostgresBackend:
    """An open PostgreSQL schema; see :class:`services.chassis.backend.Backend`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.reader = server.engine(
            pool_size=READERS,
            settings={
                "lock_timeout": _milliseconds(LOCK_SECONDS),
                "idle_in_transaction_session_timeout": _milliseconds(IDLE_READER_SECONDS),
            },
            isolation_level="REPEATABLE READ",
            execution_options={"postgresql_readonly": True},
        )
        # Its transactions are begun and ended here, each in one exchange with the server.
        self.writer = server.engine(
            pool_size=1,
            settings={
                "lock_timeout": _milliseconds(LOCK_SECONDS),
                "idle_in_transaction_session_timeout": _milliseconds(IDLE_WRITER_SECONDS),
            },
            isolation_level="AUTOCOMMIT",
        )
        self._begin = (
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
            f" SELECT pg_advisory_xact_lock({lock_key(server.schema)})"
        )

    @classmethod
    async def open(cls, url: URL, migrations: str | Path | None, schema: str | None) -> PostgresBackend:
        """Checks that the schema is there and fits the program. Raises DatabaseOpenError."""
        from services.chassis.migrate import require, schema_name

        server = Server(url, schema or schema_name(migrations))
        backend = cls(server)
        try:
            await _wait_for_start(backend.writer)
            async with backend.writer.connect() as connection:
                await check_database(connection, server)
                if migrations is not None:
                    await require(connection, server, migrations)
        except (FimbriaError, sa_exc.DBAPIError, *FAILURES) as exc:
            await backend.close()
            raise server.open_error(exc) from exc
        except BaseException:
            await backend.close()
            raise
        server.opening = False
        return backend

    def writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self.writer.connect()

    async def begin_read(self, connection: AsyncConnection) -> None:
        """The first statement begins the snapshot."""

    async def begin_write(self, connection: AsyncConnection) -> _Transaction:
        attempts = 2
        while True:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            transaction = _Transaction(connection, driver, self.server.schema)
            try:
                await driver.execute(self._begin)
                return transaction
            except FAILURES as exc:
                attempts -= 1
                await transaction.rollback()
                # On a connection that had been lost unnoticed nothing was done yet: there may be another.
                if not attempts or not driver.is_closed():
                    raise problem(exc) from exc
            except BaseException:
                await connection.invalidate()
                raise

    def problem(self, exc: Exception) -> FimbriaError:
        return problem(exc)

    def is_own_failure(self, exc: BaseException) -> bool:
        if isinstance(exc, sa_exc.DBAPIError):
            return not isinstance(exc, sa_exc.IntegrityError | sa_exc.ProgrammingError | sa_exc.DataError)
        # A server that does not answer: SQLAlchemy passes that through as the driver raises it.
        return isinstance(exc, OSError)

    def listen(self, told: Told) -> Listener:
        return Listener(self.server.connect, self.server.schema, told)

    async def close(self) -> None:
        await self.reader.dispose()
        await self.writer.dispose()


class _Transaction:
    def __init__(self, connection: AsyncConnection, driver: Any, schema: str) -> None:
        self.driver = driver
        self._connection = connection
        self._schema = schema

    def alive(self) -> bool:
        return not self.driver.is_closed() and bool(self.driver.is_in_transaction())

    async def commit(self, announce: Mapping[str, int]) -> bool:
        told = ""
        if announce:
            positions = " ".join(f"{topic}={position}" for topic, position in announce.items())
            positions = positions.replace("'", "''")
            told = f"SELECT pg_notify('{Listener.channel_of(self._schema)}', '{positions}'); "
        try:
            ended = await self.driver.execute(f"{told}COMMIT")
        except asyncpg.InFailedSQLTransactionError:
            await self.rollback()
            return False
        except FAILURES as exc:
            # Stored or not, nobody knows: what is certain is that it must not be acknowledged.
            await self._connection.invalidate()
            raise problem(exc) from exc
        except BaseException:
            await self._connection.invalidate()
            raise
        await self._connection.commit()
        return bool(ended == "COMMIT")

    async def mark(self) -> None:
        await self.driver.execute("SAVEPOINT unit")

    async def keep(self) -> bool:
        try:
            await self.driver.execute("RELEASE unit")
        except asyncpg.InFailedSQLTransactionError:
            return False
        return True

    async def take_back(self) -> None:
        await self.driver.execute("ROLLBACK TO unit; RELEASE unit")

    async def rollback(self) -> None:
        if self._connection.invalidated or self._connection.closed:
            return
        try:
            if self.driver.is_closed():
                await self._connection.invalidate()
                return
            if self.driver.is_in_transaction():
                await self.driver.execute("ROLLBACK")
            await self._connection.rollback()
        except (*FAILURES, sa_exc.SQLAlchemyError):
            await self._connection.invalidate()


def problem(exc: Exception, *, quiet: bool = False) -> FimbriaError:
    """What a client is told of an error of the driver or of SQLAlchemy; its text goes to the log only."""
    if isinstance(exc, FimbriaError):
        return exc
    orig = getattr(exc, "orig", None) or exc
    code = str(getattr(orig, "sqlstate", None) or "")
    if not quiet:
        what = f"{type(orig).__name__}: {orig}".replace("\n", " ")
        log.error("store failed", error=what, sqlstate=code, statement=getattr(exc, "statement", None))
    if code in _DISK_FULL:
        return ResourceExhausted("the disk that holds the store is full", reason="DATABASE_FULL")
    if code in _BUSY:
        return Unavailable("the store is busy or locked by others", reason="DATABASE_BUSY", retry_after=1.0)
    lost = (
        code in _LOST
        or code.startswith("08")
        or getattr(exc, "connection_invalidated", False)
        # SQLAlchemy has classes of its own for the driver's, which it puts behind them.
        or any(isinstance(each, _LOST_KINDS) for each in (orig, orig.__cause__))
    )
    # A migration beside the running program has changed a table: statements are prepared anew.
    stale = "cached statement plan" in str(orig) or "cached plan must not change" in str(orig)
    if lost or stale:
        return Unavailable("the store cannot be used right now", reason="DATABASE_IO", retry_after=1.0)
    if isinstance(exc, sa_exc.IntegrityError):
        return Aborted("a concurrent change is in conflict with this one", reason="CONFLICT")
    return Internal("the store failed", reason="DATABASE_ERROR")


async def _wait_for_start(engine: AsyncEngine) -> None:
    """A server that is just starting, or recovers from a crash, says so; whoever starts beside it waits."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            async with engine.connect():
                return
        except Unavailable as exc:
            starting = isinstance(exc.__cause__, asyncpg.CannotConnectNowError)
            if not starting or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


async def check_database(connection: AsyncConnection, server: Server) -> None:
    """Raises DatabaseOpenError unless the database sorts and stores text as the services expect."""
    row = (
        await connection.exec_driver_sql(
            "SELECT current_setting('server_version_num')::int AS version, datcollate AS collation,"
            " pg_encoding_to_char(encoding) AS encoding FROM pg_database WHERE datname = current_database()"
        )
    ).one()
    if row.version < 130000:
        raise DatabaseOpenError(
            f"the server of {server.shown} has version {row.version // 10000}; expected 13 or later"
        )
    if row.encoding != "UTF8" or row.collation.partition(".")[0] not in ("C", "POSIX"):
        raise DatabaseOpenError(
            f"the database {server.shown} has encoding {row.encoding} and collation {row.collation}; "
            f"expected UTF8 and C: CREATE DATABASE … {DATABASE_OPTIONS}"
        )


def lock_key(schema: str) -> int:
    """The advisory lock that all writers of a schema take: a signed 64-bit number."""
    return int.from_bytes(hashlib.sha256(f"fimbria/{schema}".encode()).digest()[:8], "big", signed=True)


def server_of(url: str, schema: str) -> Server:
    """The server behind a URL. Raises DatabaseOpenError."""
    return Server(parse_url(url), schema)


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
