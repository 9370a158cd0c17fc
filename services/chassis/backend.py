"""What :class:`services.chassis.db.Database` needs of a kind of database; finding the one behind a URL.

A backend has two pools of connections, one for reading and one connection for writing, knows how a
transaction of each begins, and what its driver's errors mean to a client.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, Protocol

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.chassis.errors import FimbriaError, StartError

EXPECTED_URL: Final = "sqlite:///PATH or postgresql://USER@HOST/DATABASE"
POSTGRES_SCHEMES: Final = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
READERS: Final = 4
READER_WAIT_SECONDS: Final = 10.0


class DatabaseOpenError(StartError):
    """The store cannot be opened; the message names it, what is wrong and what to do."""


class Announcements(Protocol):
    """What other processes tell of their commits: positions by topic, as soon as they happen."""

    @property
    def listening(self) -> bool:
        """Whether announcements arrive just now. While they do not, who needs them has to look."""

    async def close(self) -> None:
        """Ends listening."""


class WriteTransaction(Protocol):
    """The open write transaction of a connection: no other writer of the store, wherever, runs beside it."""

    def alive(self) -> bool:
        """Whether the database itself still has it open. Costs nothing."""

    async def commit(self, announce: Mapping[str, int]) -> bool:
        """Makes it durable, and tells other processes the positions, if that can be done.

        False when the database has undone it instead, because a statement failed and somebody passed over
        that. Raises FimbriaError or DBAPIError when it is not certain that all of it is stored.
        """

    async def mark(self) -> None:
        """Sets the savepoint to which `take_back` returns; there is one at a time."""

    async def keep(self) -> bool:
        """Releases the savepoint. False when a statement since has failed, so that nothing can be kept."""

    async def take_back(self) -> None:
        """Undoes what came after the savepoint."""

    async def rollback(self) -> None:
        """Undoes it; never raises: a connection that cannot do it is thrown away."""


class Backend(Protocol):
    """An open database."""

    @property
    def reader(self) -> AsyncEngine:
        """Connections whose transaction is one snapshot that cannot be written through."""

    def writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """The one connection that writes, for one after the other."""

    async def begin_read(self, connection: AsyncConnection) -> None:
        """Begins a snapshot."""

    async def begin_write(self, connection: AsyncConnection) -> WriteTransaction:
        """Begins a transaction once no other writer of the store is left. Raises FimbriaError, DBAPIError."""

    def problem(self, exc: Exception) -> FimbriaError:
        """What a client is told of an exception of the driver or of SQLAlchemy; its text stays in the log."""

    def is_own_failure(self, exc: BaseException) -> bool:
        """Whether the store itself has failed, rather than what was asked of it (say, a constraint)."""

    def listen(self, told: Told) -> Announcements | None:
        """Calls `told` with what other processes announce from now on; None if this store cannot tell."""

    async def close(self) -> None:
        """Closes all connections."""


class Told(Protocol):
    """Takes announcements. With None all positions may have changed unheard."""

    def __call__(self, positions: Mapping[str, int] | None) -> None: ...


def parse_url(url: str) -> URL:
    """The parts of a database URL. Raises DatabaseOpenError for one of no kind that is known."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The text may hold a password: it is not shown.
        raise DatabaseOpenError(f"database URL is malformed; expected {EXPECTED_URL}") from None
    if not is_sqlite(parsed) and not is_postgres(parsed):
        raise DatabaseOpenError(f"database URL {shown(parsed)!r} is not supported; expected {EXPECTED_URL}")
    return parsed


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def is_postgres(url: URL) -> bool:
    return url.drivername in POSTGRES_SCHEMES


def shown(url: URL) -> str:
    """The URL as it may be logged: no password, and of the query only where the server is."""
    kept = {key: value for key, value in url.query.items() if key in ("host", "port")}
    plain = url.set(query=kept, password=None) if url.password is not None else url.set(query=kept)
    return plain.render_as_string(hide_password=True).replace("%2F", "/")


async def open_backend(url: str, migrations: str | Path | None, schema: str | None) -> Backend:
    """The database behind `url`, its schema at hand. Raises DatabaseOpenError."""
    parsed = parse_url(url)
    if is_sqlite(parsed):
        from services.chassis.sqlite import SqliteBackend

        return await SqliteBackend.open(url, migrations)
    # Only whoever uses PostgreSQL pays for its driver, in time to start and in memory.
    from services.chassis.postgres import PostgresBackend

    return await PostgresBackend.open(parsed, migrations, schema)
