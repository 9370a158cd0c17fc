from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
from contextvars import ContextVar
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import MAX_BATCH, Database, DatabaseOpenError
from services.chassis.errors import FimbriaError, ResourceExhausted, Unavailable

INSERT = text("INSERT INTO thing (name) VALUES (:name)")


async def insert(db: Database, name: str) -> str:
    async def operation(conn: AsyncConnection) -> str:
        await conn.execute(INSERT, {"name": name})
        return name

    return await db.write(operation)


async def names(db: Database) -> list[str]:
    async with db.read() as conn:
        return [row.name for row in await conn.execute(text("SELECT name FROM thing ORDER BY name"))]


async def test_a_write_returns_what_the_operation_returns_and_is_there(db: Database) -> None:
    assert await insert(db, "a") == "a"
    assert await names(db) == ["a"]


async def test_more_than_a_batch_is_written_in_several(db: Database) -> None:
    await asyncio.gather(*(insert(db, f"{number:04}") for number in range(2 * MAX_BATCH + 10)))
    assert len(await names(db)) == 2 * MAX_BATCH + 10


async def test_an_operation_that_fails_alone_is_rolled_back(db: Database) -> None:
    async def failing(conn: AsyncConnection) -> None:
        await conn.execute(INSERT, {"name": "half"})
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await db.write(failing)
    assert await names(db) == []
    await insert(db, "next")
    assert await names(db) == ["next"]


async def test_a_violated_constraint_comes_back_as_it_is(db: Database) -> None:
    await insert(db, "a")
    results = await asyncio.gather(insert(db, "a"), insert(db, "b"), return_exceptions=True)
    assert isinstance(results[0], IntegrityError)
    assert await names(db) == ["a", "b"]


async def test_a_caller_that_gives_up_before_its_turn_writes_nothing(db: Database) -> None:
    first = asyncio.create_task(insert(db, "first"))
    gone = asyncio.create_task(insert(db, "gone"))
    await asyncio.sleep(0)
    gone.cancel()
    await first
    await insert(db, "last")
    assert await names(db) == ["first", "last"]


async def test_an_operation_runs_in_its_callers_context(db: Database) -> None:
    who: ContextVar[str] = ContextVar("who")

    async def caller(name: str) -> str:
        who.set(name)

        async def operation(conn: AsyncConnection) -> str:
            return who.get()

        return await db.write(operation)

    assert list(await asyncio.gather(caller("one"), caller("two"))) == ["one", "two"]


async def test_callbacks_run_after_commit_in_order_and_not_for_failures(db: Database) -> None:
    called: list[str] = []

    def operation(name: str, fail: bool = False) -> object:
        async def run(conn: AsyncConnection) -> None:
            await conn.execute(INSERT, {"name": name})
            db.after_commit(lambda: called.append(name))
            if fail:
                raise ValueError(name)

        return db.write(run)

    await asyncio.gather(operation("a"), operation("b", fail=True), operation("c"), return_exceptions=True)  # type: ignore[call-overload]
    assert called == ["a", "c"]
    with pytest.raises(RuntimeError, match="inside a write operation"):
        db.after_commit(lambda: None)


async def test_a_read_sees_one_snapshot(db: Database) -> None:
    await insert(db, "a")
    async with db.read() as conn:
        count = text("SELECT count(*) FROM thing")
        assert (await conn.execute(count)).scalar_one() == 1
        await insert(db, "b")
        assert (await conn.execute(count)).scalar_one() == 1


async def test_writing_while_reading_is_refused(db: Database) -> None:
    with pytest.raises(FimbriaError):
        async with db.read() as conn:
            await conn.execute(INSERT, {"name": "sneaked"})
    assert await names(db) == []


async def test_a_store_locked_by_another_process_is_unavailable(
    db: Database,
) -> None:
    async def impatient(conn: AsyncConnection) -> None:
        await conn.execute(text("PRAGMA busy_timeout = 50"))

    await db.write(impatient)
    holder = sqlite3.connect(db.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable) as caught:
        await insert(db, "a")
    assert caught.value.reason == "DATABASE_BUSY"
    holder.execute("ROLLBACK")
    holder.close()
    await insert(db, "a")
    assert await names(db) == ["a"]


async def test_closing_commits_what_is_queued_and_refuses_more(url: str, migrations: Path) -> None:
    db = await Database.open(url, migrations)
    queued = [asyncio.create_task(insert(db, name)) for name in "abc"]
    await asyncio.sleep(0)
    await db.close()
    assert await asyncio.gather(*queued) == ["a", "b", "c"]
    with pytest.raises(Unavailable) as caught:
        await insert(db, "late")
    assert caught.value.reason == "DATABASE_CLOSED"


async def test_file_and_directory_are_private(db: Database) -> None:
    await insert(db, "a")
    assert stat.S_IMODE(db.path.parent.stat().st_mode) == 0o700
    for suffix in ("", "-wal", "-shm"):
        assert stat.S_IMODE(Path(f"{db.path}{suffix}").stat().st_mode) == 0o600


async def test_commits_reach_the_disk_before_they_are_acknowledged(db: Database) -> None:
    async def pragmas(conn: AsyncConnection) -> list[object]:
        found = []
        for name in ("journal_mode", "synchronous", "foreign_keys"):
            found.append((await conn.execute(text(f"PRAGMA {name}"))).scalar_one())
        return found

    assert await db.write(pragmas) == ["wal", 2, 1]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("mysql://u:hunter2@h/x", "not supported"),
        ("what", "malformed"),
    ],
)
async def test_a_url_that_is_no_sqlite_file_is_refused(url: str, problem: str) -> None:
    with pytest.raises(DatabaseOpenError, match=problem) as caught:
        await Database.open(url)
    assert "hunter2" not in str(caught.value)


async def test_a_damaged_file_is_named(tmp_path: Path, migrations: Path) -> None:
    path = tmp_path / "damaged.db"
    path.write_bytes(b"not a database, however long one looks at it" * 100)
    with pytest.raises(DatabaseOpenError, match=rf"{path}.*damaged"):
        await Database.open(f"sqlite:///{path}", migrations)


async def test_a_second_open_finds_the_schema_in_place(db: Database, other: Database) -> None:
    await insert(other, "a")
    assert await names(db) == ["a"]


async def test_two_processes_may_open_a_new_store_at_once(url: str, migrations: Path) -> None:
    one, two = await asyncio.gather(Database.open(url, migrations), Database.open(url, migrations))
    await asyncio.gather(insert(one, "a"), insert(two, "b"))
    assert await names(one) == ["a", "b"]
    await one.close()
    await two.close()


async def test_a_newer_revision_is_applied_and_a_newer_store_is_refused(url: str, migrations: Path) -> None:
    async with await Database.open(url, migrations) as db:
        await insert(db, "kept")
    second = migrations / "versions" / "0002_colour.py"
    second.write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n\n"
        'revision: str = "0002"\ndown_revision: str | None = "0001"\n\n\n'
        'def upgrade() -> None:\n    op.add_column("thing", sa.Column("colour", sa.Text))\n'
    )
    async with await Database.open(url, migrations) as db, db.read() as conn:
        assert (await conn.execute(text("SELECT name, colour FROM thing"))).one() == ("kept", None)
    second.unlink()
    with pytest.raises(DatabaseOpenError, match=r"schema revision 0002.*newest is 0001"):
        await Database.open(url, migrations)


async def test_a_migration_that_fails_leaves_the_old_schema(url: str, migrations: Path) -> None:
    async with await Database.open(url, migrations) as db:
        await insert(db, "kept")
    broken = migrations / "versions" / "0002_broken.py"
    broken.write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n\n"
        'revision = "0002"\ndown_revision = "0001"\n\n\n'
        'def upgrade() -> None:\n    op.create_table("half", sa.Column("x", sa.Text))\n'
        '    op.execute("nonsense")\n'
    )
    with pytest.raises(DatabaseOpenError):
        await Database.open(url, migrations)
    broken.unlink()
    async with await Database.open(url, migrations) as db:
        assert await names(db) == ["kept"]
        async with db.read() as conn:
            found = await conn.execute(text("SELECT name FROM sqlite_master WHERE name = 'half'"))
            assert found.first() is None


async def test_a_full_disk_is_told_and_leaves_the_store_usable(db: Database) -> None:
    async def limit(conn: AsyncConnection) -> None:
        # SQLite answers a file that may not grow as it answers a disk that is full.
        pages = (await conn.execute(text("PRAGMA page_count"))).scalar_one()
        await conn.execute(text(f"PRAGMA max_page_count = {pages + 2}"))

    await db.write(limit)
    results = await asyncio.gather(
        insert(db, "small"), insert(db, "large" * 20_000), insert(db, "after"), return_exceptions=True
    )
    # SQLite gives the whole transaction up then, so that nobody may believe in a part of it.
    for result in results:
        assert isinstance(result, ResourceExhausted) and result.reason == "DATABASE_FULL"
    assert await names(db) == []
    await insert(db, "small")
    assert await names(db) == ["small"]


async def test_an_operation_cannot_go_on_after_its_transaction_is_lost(db: Database) -> None:
    async def stubborn(conn: AsyncConnection) -> None:
        pages = (await conn.execute(text("PRAGMA page_count"))).scalar_one()
        await conn.execute(text(f"PRAGMA max_page_count = {pages + 2}"))
        await conn.execute(INSERT, {"name": "first half"})
        with contextlib.suppress(OperationalError):
            await conn.execute(INSERT, {"name": "large" * 20_000})

    with pytest.raises(Unavailable) as caught:
        await db.write(stubborn)
    assert caught.value.reason == "DATABASE_IO"
    assert await names(db) == []


async def test_a_write_inside_a_write_is_refused_rather_than_waited_for(db: Database) -> None:
    async def nested(conn: AsyncConnection) -> None:
        await insert(db, "inner")

    with pytest.raises(RuntimeError, match="inside a write operation"):
        await db.write(nested)
    await insert(db, "next")
    assert await names(db) == ["next"]
