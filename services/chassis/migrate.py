"""Schema migrations: Alembic scripts, run to the newest only when the store is behind.

A service's migrations are a package with ``versions/NNNN_name.py`` files in Alembic's form (``revision``,
``down_revision``, ``upgrade()``); there is no ``env.py``. The newest revision is read off the files, so that
Alembic itself, which is slow to import, is loaded only when there is something to do.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.chassis.sqlite import DatabaseOpenError

_ASSIGNMENT = re.compile(
    r"^(revision|down_revision)\b[^=\n]*=\s*(?:\"([^\"]+)\"|'([^']+)'|None)", re.MULTILINE
)


async def upgrade(engine: AsyncEngine, migrations: str | Path) -> None:
    """Brings the store behind ``engine`` to the newest revision. All of it is one transaction.

    Raises DatabaseOpenError when the store's revision is unknown to these migrations (a newer program made
    it).
    """
    directory = migrations_directory(migrations)
    newest, known = revisions(directory)
    async with engine.connect() as conn:
        if await conn.run_sync(_stored_revision) == newest:
            return
        await conn.rollback()
        # Two processes may start on one file: whoever comes second finds the work done.
        await conn.execute(text("BEGIN IMMEDIATE"))
        stored = await conn.run_sync(_stored_revision)
        if stored == newest:
            return
        if stored is not None and stored not in known:
            raise DatabaseOpenError(
                f"the database {engine.url.database} has schema revision {stored}, which this version does "
                f"not know (its newest is {newest}); run the version that made it, or a newer one"
            )
        await conn.run_sync(_run_alembic, directory)
        await conn.commit()


def migrations_directory(migrations: str | Path) -> Path:
    """The directory of a package of migrations, without importing it."""
    if isinstance(migrations, Path):
        return migrations
    spec = importlib.util.find_spec(migrations)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise ValueError(f"{migrations!r} is not a package of migrations")
    return Path(locations[0])


def revisions(directory: Path) -> tuple[str, frozenset[str]]:
    """The newest revision and all of them, read off the files in ``versions/``.

    Raises ValueError unless the files form one line.
    """
    previous: dict[str, str | None] = {}
    for file in sorted((directory / "versions").glob("*.py")):
        found = {match[1]: match[2] or match[3] for match in _ASSIGNMENT.finditer(file.read_text())}
        if "revision" in found:
            previous[found["revision"]] = found.get("down_revision")
    heads = set(previous) - set(previous.values())
    if len(heads) != 1:
        raise ValueError(f"{directory} has the newest revisions {sorted(heads)}; expected exactly one")
    return heads.pop(), frozenset(previous)


def _stored_revision(conn: Connection) -> str | None:
    if not inspect(conn).has_table("alembic_version"):
        return None
    return conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _run_alembic(conn: Connection, directory: Path) -> None:
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
