"""Schema migrations: Alembic scripts, read off their files, and run only when a store is behind.

A service's migrations are a package with ``versions/NNNN_name.py`` files in Alembic's form (``revision``,
``down_revision``, ``upgrade()``); there is no ``env.py``. The newest revision is read off the files, so that
Alembic itself, which is slow to import, is loaded only when there is something to do.

A SQLite file belongs to one program, which brings it up to date when it starts. A PostgreSQL schema is shared
by replicas of different versions: there migrating is a step of its own, ``fimbria db migrate``, and each
revision says which programs may go on beside it: those of the revision before, unless the file declares
``compatible_with``, the oldest revision whose programs still run (None: only its own).
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.chassis.backend import DatabaseOpenError

if TYPE_CHECKING:
    from services.chassis.postgres import Server

_ASSIGNMENT: Final = re.compile(
    r"^(revision|down_revision|compatible_with)\b[^=\n]*=\s*(?:\"([^\"]+)\"|'([^']+)'|None)", re.MULTILINE
)
# Chassis-owned, in PostgreSQL only: one row, written by whoever migrates.
COMPATIBILITY_TABLE: Final = "schema_compatibility"


@dataclass(frozen=True, slots=True)
class Revisions:
    """The revisions of a directory of migrations, oldest first, and the oldest whose programs may still run
    beside the newest.
    """

    line: tuple[str, ...]
    oldest_beside: str

    @property
    def newest(self) -> str:
        return self.line[-1]


@dataclass(frozen=True, slots=True)
class SchemaState:
    """A PostgreSQL schema: its revision (None: it is not there) and the oldest that programs beside it may
    have.
    """

    revision: str | None
    oldest: str | None


async def upgrade(engine: AsyncEngine, migrations: str | Path) -> None:
    """Brings the SQLite store behind ``engine`` to the newest revision. All of it is one transaction.

    Raises DatabaseOpenError when the store's revision is unknown to these migrations (a newer program made
    it).
    """
    directory = migrations_directory(migrations)
    known = revisions(directory)
    async with engine.connect() as conn:
        if await conn.run_sync(stored_revision) == known.newest:
            return
        await conn.rollback()
        # Two processes may start on one file: whoever comes second finds the work done.
        await conn.execute(text("BEGIN IMMEDIATE"))
        stored = await conn.run_sync(stored_revision)
        if stored == known.newest:
            return
        if stored is not None and stored not in known.line:
            raise DatabaseOpenError(
                f"the database {engine.url.database} has schema revision {stored}, which this version does "
                f"not know (its newest is {known.newest}); run the version that made it, or a newer one"
            )
        await conn.run_sync(run_alembic, directory)
        await conn.commit()


async def require(connection: AsyncConnection, server: Server, migrations: str | Path) -> None:
    """Raises DatabaseOpenError unless a program with these migrations may run on the PostgreSQL schema."""
    known = revisions(migrations_directory(migrations))
    state = await read_state(connection)
    if state.revision == known.newest:
        return
    schema, how = server.schema, f"run `fimbria db migrate --service {server.schema}`"
    if state.revision is None:
        raise DatabaseOpenError(f"the database {server.shown} has no schema {schema} yet; {how}")
    if state.revision in known.line:
        raise DatabaseOpenError(
            f"schema {schema} of the database {server.shown} has revision {state.revision}, this version "
            f"expects {known.newest}; {how}"
        )
    if state.oldest not in known.line:
        raise DatabaseOpenError(
            f"schema {schema} of the database {server.shown} has revision {state.revision}, beside which "
            f"only programs of revision {state.oldest or state.revision} and later may run; this version's "
            f"newest is {known.newest}: run a newer version"
        )


async def read_state(connection: AsyncConnection) -> SchemaState:
    """What the schema on the connection's search path has."""
    revision = await connection.run_sync(stored_revision)
    oldest = None
    if revision is not None and await connection.run_sync(_has_table, COMPATIBILITY_TABLE):
        found = await connection.execute(text(f"SELECT revision, oldest FROM {COMPATIBILITY_TABLE}"))
        row = found.one_or_none()
        # A row of another revision says nothing about this one.
        if row is not None and row.revision == revision:
            oldest = str(row.oldest)
    return SchemaState(revision, oldest)


def migrations_directory(migrations: str | Path) -> Path:
    """The directory of a package of migrations, without importing it."""
    if isinstance(migrations, Path):
        return migrations
    spec = importlib.util.find_spec(migrations)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise ValueError(f"{migrations!r} is not a package of migrations")
    return Path(locations[0])


def schema_name(migrations: str | Path | None) -> str:
    """The PostgreSQL schema of a service's migrations: ``ipam`` for ``services.ipam.migrations``."""
    if isinstance(migrations, str):
        return migrations.removesuffix(".migrations").rpartition(".")[2]
    return "public" if migrations is None else "store"


def revisions(directory: Path) -> Revisions:
    """The revisions of the files in ``versions/``. Raises ValueError unless they form one line."""
    declared: dict[str, dict[str, str | None]] = {}
    for file in sorted((directory / "versions").glob("*.py")):
        found = {match[1]: match[2] or match[3] for match in _ASSIGNMENT.finditer(file.read_text())}
        if found.get("revision"):
            declared[str(found["revision"])] = found
    after = {found.get("down_revision"): name for name, found in declared.items()}
    line: list[str] = []
    following = after.get(None)
    while following is not None:
        line.append(following)
        following = after.get(following)
    if not line or len(line) != len(declared):
        heads = sorted(set(declared) - {found.get("down_revision") for found in declared.values()})
        raise ValueError(f"{directory} has the newest revisions {heads}; expected one line of revisions")
    newest = declared[line[-1]]
    oldest = newest.get("compatible_with", newest.get("down_revision")) or line[-1]
    if oldest not in line:
        raise ValueError(f"{directory}: compatible_with is {oldest!r}; expected one of {', '.join(line)}")
    return Revisions(tuple(line), oldest)


def stored_revision(conn: Connection) -> str | None:
    """The revision that the store behind the connection has; None for one without tables."""
    if not _has_table(conn, "alembic_version"):
        return None
    return conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _has_table(conn: Connection, name: str) -> bool:
    return conn.dialect.has_table(conn, name)


def run_alembic(conn: Connection, directory: Path) -> None:
    """Runs what is missing up to the newest revision, in the connection's transaction."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(directory).replace("%", "%%"))
    script = ScriptDirectory(str(directory), version_locations=[str(directory / "versions")])

    def steps(revision: object, _: object) -> object:
        return script._upgrade_revs("head", revision)  # type: ignore[arg-type]

    with EnvironmentContext(config, script, fn=steps, as_sql=False, destination_rev="head") as environment:
        environment.configure(connection=conn, transactional_ddl=True, transaction_per_migration=False)
        environment.run_migrations()
