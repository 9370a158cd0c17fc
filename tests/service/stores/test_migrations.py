"""Schemas in PostgreSQL: made and brought up to date by command, beside replicas of the version before."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from services.chassis import migrate as migrate_module
from services.chassis import postgres_migrate
from services.chassis.db import Database, DatabaseOpenError
from services.chassis.migrate import revisions
from tests.patience import patient
from tests.postgres import administrate, fresh_database, shared_server
from tests.service.processes import run_to_end
from tests.service.stores.conftest import FIRST
from tests.service.stores.things import insert, names

NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"
{declared}

def upgrade() -> None:
    op.add_column("thing", sa.Column("c{revision}", sa.Text, nullable=False, server_default=""))
"""


@pytest.fixture
def url() -> Iterator[str]:
    with fresh_database() as url:
        yield url


class Versions:
    """Programs of several versions: a directory of migrations for each."""

    def __init__(self, directory: Path, declared: dict[str, str] | None = None) -> None:
        self._directory = directory
        self._declared = declared or {}

    def __getitem__(self, newest: int) -> Path:
        """The migrations that a program of that version has."""
        versions = self._directory / f"v{newest}" / "versions"
        if not versions.exists():
            versions.mkdir(parents=True)
            (versions / "0001_first.py").write_text(FIRST)
            for number in range(2, newest + 1):
                name, before = f"{number:04}", f"{number - 1:04}"
                declared = self._declared.get(name, "")
                (versions / f"{name}_next.py").write_text(
                    NEXT.format(revision=name, before=before, declared=declared)
                )
        return versions.parent


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "programs")


async def migrate(url: str, migrations: Path) -> tuple[str | None, str]:
    done = await postgres_migrate.migrate(url, migrations, "store")
    return done.before, done.after


async def verdict(url: str, migrations: Path) -> str:
    return (await postgres_migrate.status(url, migrations, "store")).verdict


async def test_a_service_starts_only_on_a_schema_that_is_there_and_new_enough(
    url: str, versions: Versions
) -> None:
    assert await verdict(url, versions[1]) == "missing"
    with pytest.raises(DatabaseOpenError, match=r"no schema store yet; run `fimbria db migrate"):
        await Database.open(url, versions[1])
    assert await migrate(url, versions[1]) == (None, "0001")
    assert await migrate(url, versions[1]) == ("0001", "0001")
    async with await Database.open(url, versions[1]) as db:
        await insert(db, "kept")
    assert await verdict(url, versions[2]) == "behind"
    with pytest.raises(
        DatabaseOpenError, match=r"revision 0001.* expects 0002; run `fimbria db migrate"
    ) as caught:
        await Database.open(url, versions[2])
    assert "\n" not in str(caught.value)
    assert await migrate(url, versions[2]) == ("0001", "0002")
    async with await Database.open(url, versions[2]) as db:
        assert await names(db) == ["kept"]


async def test_the_version_before_goes_on_and_starts_beside_a_migration_older_ones_do_not(
    url: str, versions: Versions
) -> None:
    await migrate(url, versions[2])
    async with await Database.open(url, versions[2]) as running:
        await insert(running, "before")
        assert await migrate(url, versions[3]) == ("0002", "0003")
        # Statements that were prepared before the table changed go on as well.
        await insert(running, "after")
        async with await Database.open(url, versions[2]) as started:
            await insert(started, "beside")
            assert await names(running) == ["after", "before", "beside"]
    assert await verdict(url, versions[2]) == "ahead"
    assert await verdict(url, versions[1]) == "too new"
    with pytest.raises(DatabaseOpenError, match=r"revision 0003, .*0002 and later.*newest is 0001"):
        await Database.open(url, versions[1])
    with pytest.raises(DatabaseOpenError, match=r"revision 0003, which this version does not know"):
        await migrate(url, versions[2])
    # Two at once: what the last one says holds.
    assert await migrate(url, versions[5]) == ("0003", "0005")
    assert await verdict(url, versions[4]) == "ahead"
    assert await verdict(url, versions[3]) == "too new"


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("compatible_with = None", {1: "too new", 2: "too new", 3: "up to date"}),
        ('compatible_with: str | None = "0001"', {1: "ahead", 2: "ahead", 3: "up to date"}),
    ],
)
async def test_a_migration_may_say_how_old_replicas_may_be(
    url: str, tmp_path: Path, declared: str, expected: dict[int, str]
) -> None:
    versions = Versions(tmp_path / "declared", {"0003": declared})
    await migrate(url, versions[3])
    assert {version: await verdict(url, versions[version]) for version in expected} == expected


def test_migrations_have_to_be_one_line_and_name_what_there_is(tmp_path: Path) -> None:
    versions = Versions(tmp_path, {"0002": 'compatible_with = "0009"'})
    with pytest.raises(ValueError, match="compatible_with is '0009'; expected one of 0001, 0002"):
        revisions(versions[2])
    forked = versions[1]
    (forked / "versions" / "0001_other.py").write_text(FIRST.replace('"0001"', '"0001b"'))
    with pytest.raises(ValueError, match="expected one line of revisions"):
        revisions(forked)


async def test_a_migration_that_fails_leaves_everything_as_it_was(url: str, versions: Versions) -> None:
    await migrate(url, versions[1])
    broken = versions[2]
    (broken / "versions" / "0002_next.py").write_text(
        NEXT.format(revision="0002", before="0001", declared="") + '    op.execute("nonsense")\n'
    )
    with pytest.raises(DatabaseOpenError, match="syntax error"):
        await migrate(url, broken)
    assert await verdict(url, versions[1]) == "up to date"
    async with await Database.open(url, versions[1]) as db:
        await insert(db, "a")


async def test_migrations_at_once_are_done_once(url: str, versions: Versions) -> None:
    done = await asyncio.gather(*(migrate(url, versions[2]) for _ in range(4)))
    assert sorted(done, key=str) == [("0002", "0002")] * 3 + [(None, "0002")]


async def test_a_migration_waits_for_writers_and_writers_for_it(
    url: str, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(url, versions[1])
    monkeypatch.setattr(postgres_migrate, "LOCK_SECONDS", 0.2)
    entered, leave = asyncio.Event(), asyncio.Event()
    async with await Database.open(url, versions[1]) as db:

        async def slow(_: object) -> None:
            entered.set()
            await leave.wait()

        writing = asyncio.create_task(db.write(slow))
        await entered.wait()
        with pytest.raises(DatabaseOpenError, match="lock timeout"):
            await migrate(url, versions[2])
        leave.set()
        await writing
    assert await migrate(url, versions[2]) == ("0001", "0002")


async def test_a_role_gets_what_a_service_needs_and_no_more(url: str, versions: Versions) -> None:
    server, database = shared_server(), url.partition("/t")[2].partition("?")[0]
    role = f"role_{database}"
    administrate(server, f"CREATE ROLE {role} LOGIN")
    try:
        await postgres_migrate.migrate(url, versions[1], "store", grant=role)
        as_role = url.replace("postgres@", f"{role}@")
        async with await Database.open(as_role, versions[1]) as db:
            await insert(db, "a")
            assert await names(db) == ["a"]

            async def destroy(conn: object) -> None:
                await conn.execute(text("DROP TABLE thing"))  # type: ignore[attr-defined]

            with pytest.raises(Exception, match="must be owner"):
                await db.write(destroy)

            async def pretend(conn: object) -> None:
                await conn.execute(text("UPDATE alembic_version SET version_num = 'x'"))  # type: ignore[attr-defined]

            with pytest.raises(Exception, match="permission denied"):
                await db.write(pretend)
        # Nothing is to be done, which needs no right to do it.
        assert await migrate(as_role, versions[1]) == ("0001", "0001")
    finally:
        administrate(server, f"DROP OWNED BY {role}", f"t{database}")
        administrate(server, f"DROP ROLE {role}")


def fimbria(*arguments: str, url: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FIMBRIA_")}
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        env=environ | {"FIMBRIA_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=patient(60.0),
        check=False,
    )


def test_the_command_makes_the_schemas_of_the_services(url: str, tmp_path: Path) -> None:
    code, log = run_to_end("ipam", tmp_path, f"--database-url={url}", "--ipam-default-pool-cidr=10.0.0.0/8")
    assert code == 1
    (line,) = log.splitlines()
    assert line.endswith("has no schema ipam yet; run `fimbria db migrate --service ipam`")
    done = fimbria("db", "migrate", "--service", "ipam", "--service", "policy", url=url)
    assert done.returncode == 0, done.stderr
    newest = {
        service: revisions(migrate_module.migrations_directory(f"services.{service}.migrations")).newest
        for service in ("ipam", "identity", "policy")
    }
    assert done.stdout.splitlines() == [
        f"{each}: created at revision {newest[each]}" for each in ("ipam", "policy")
    ]
    found = fimbria("db", "status", "-o", "json", url=url)
    assert found.returncode == 1
    assert {row["schema"]: row["status"] for row in json.loads(found.stdout)} == {
        "ipam": "up to date",
        "identity": "missing",
        "policy": "up to date",
    }
    refused = fimbria("db", "migrate", url="postgresql://me:hunter2@127.0.0.1:1/nothing")
    assert refused.returncode == 1 and "is the server running" in refused.stderr
    assert "hunter2" not in refused.stderr + refused.stdout
