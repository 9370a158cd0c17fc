"""Making a service's PostgreSQL schema and bringing it up to date: ``fimbria db migrate`` and ``status``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import exc as sa_exc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.backend import DatabaseOpenError
from services.chassis.errors import FimbriaError
from services.chassis.migrate import (
    COMPATIBILITY_TABLE,
    Revisions,
    SchemaState,
    migrations_directory,
    read_state,
    revisions,
    run_alembic,
)
from services.chassis.postgres import FAILURES, Server, check_database, lock_key, server_of

# A migration waits so long for the writers of the schema and for those who read its tables, in seconds.
LOCK_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did: the revision before (None: there was no schema) and the one after."""

    schema: str
    before: str | None
    after: str


@dataclass(frozen=True, slots=True)
class Status:
    """A schema as it is, and what this program knows. `server` is its URL as it may be shown."""

    server: str
    schema: str
    state: SchemaState
    known: Revisions

    @property
    def verdict(self) -> str:
        """``up to date``, ``missing``, ``behind``, ``ahead`` (this program still runs) or ``too new``."""
        if self.state.revision is None:
            return "missing"
        if self.state.revision == self.known.newest:
            return "up to date"
        if self.state.revision in self.known.line:
            return "behind"
        return "ahead" if self.state.oldest in self.known.line else "too new"


async def migrate(url: str, migrations: str | Path, schema: str, *, grant: str | None = None) -> Migrated:
    """Creates the schema where it is missing and runs what it lacks, all in one transaction.

    Migrations and the service's writers take turns; replicas may serve meanwhile. With `grant` that role gets
    what a service needs: to use the schema, and to read and write the rows of its tables. Raises
    DatabaseOpenError, also for a schema that a newer program made.
    """
    directory = migrations_directory(migrations)
    known = revisions(directory)
    async with _connected(url, schema) as (connection, server):
        await connection.execute(
            text("SELECT set_config('lock_timeout', :limit, true)"),
            {"limit": str(round(LOCK_SECONDS * 1000))},
        )
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({lock_key(schema)})"))
        exists = text("SELECT 1 FROM pg_namespace WHERE nspname = :name")
        if (await connection.execute(exists, {"name": schema})).first() is None:
            # Not IF NOT EXISTS, which demands the right to create even where there is nothing to do.
            await connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        state = await read_state(connection)
        if state.revision is not None and state.revision not in known.line:
            raise DatabaseOpenError(
                f"schema {schema} of the database {server.shown} has revision {state.revision}, which this "
                f"version does not know (its newest is {known.newest}); migrate with a newer version"
            )
        if state.revision != known.newest:
            await connection.run_sync(run_alembic, directory)
        if state.revision != known.newest or state.oldest != known.oldest_beside:
            await _note_compatibility(connection, known)
        if grant is not None:
            await _grant(connection, schema, grant)
        await connection.commit()
    return Migrated(schema, state.revision, known.newest)


async def status(url: str, migrations: str | Path, schema: str) -> Status:
    """How far the schema is. Raises DatabaseOpenError when the database cannot be asked."""
    known = revisions(migrations_directory(migrations))
    async with _connected(url, schema) as (connection, server):
        return Status(server.shown, schema, await read_state(connection), known)


@asynccontextmanager
async def _connected(url: str, schema: str) -> AsyncIterator[tuple[AsyncConnection, Server]]:
    server = server_of(url, schema)
    engine = server.engine(pool_size=1, settings={})
    try:
        async with engine.connect() as connection:
            await check_database(connection, server)
            yield connection, server
    except (FimbriaError, sa_exc.DBAPIError, *FAILURES) as exc:
        raise server.open_error(exc) from exc
    finally:
        await engine.dispose()


async def _note_compatibility(connection: AsyncConnection, known: Revisions) -> None:
    await connection.execute(
        text(
            f"CREATE TABLE IF NOT EXISTS {COMPATIBILITY_TABLE} (singleton integer PRIMARY KEY"
            " CHECK (singleton = 1), revision varchar(64) NOT NULL, oldest varchar(64) NOT NULL)"
        )
    )
    await connection.execute(
        text(
            f"INSERT INTO {COMPATIBILITY_TABLE} (singleton, revision, oldest) VALUES (1, :revision, :oldest)"
            " ON CONFLICT (singleton) DO UPDATE SET revision = excluded.revision, oldest = excluded.oldest"
        ),
        {"revision": known.newest, "oldest": known.oldest_beside},
    )


async def _grant(connection: AsyncConnection, schema: str, role: str) -> None:
    quoted = '"' + role.replace('"', '""') + '"'
    rows, numbers = "SELECT, INSERT, UPDATE, DELETE", "USAGE, SELECT"
    later = f'ALTER DEFAULT PRIVILEGES IN SCHEMA "{schema}" GRANT'
    for statement in (
        f'GRANT USAGE ON SCHEMA "{schema}" TO {quoted}',
        f'GRANT {rows} ON ALL TABLES IN SCHEMA "{schema}" TO {quoted}',
        f'GRANT {numbers} ON ALL SEQUENCES IN SCHEMA "{schema}" TO {quoted}',
        # What the schema is made of is for whoever migrates to say.
        f"REVOKE INSERT, UPDATE, DELETE ON alembic_version, {COMPATIBILITY_TABLE} FROM {quoted}",
        # Tables of later migrations.
        f"{later} {rows} ON TABLES TO {quoted}",
        f"{later} {numbers} ON SEQUENCES TO {quoted}",
    ):
        await connection.exec_driver_sql(statement)
