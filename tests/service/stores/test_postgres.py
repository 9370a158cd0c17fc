"""What only a server can do to a store: go away, come back, cut connections, be another's, refuse."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.errors import CliError
from cli.lab.postgres import Postgres
from services.chassis import postgres as postgres_module
from services.chassis import postgres_migrate
from services.chassis.db import Database, DatabaseOpenError
from services.chassis.errors import Unavailable
from services.chassis.feed import POLL_SECONDS, Feed
from tests.patience import patient
from tests.postgres import administrate, fresh_database, new_server, shared_server
from tests.service.stores.things import append, insert, names, take


@pytest.fixture
def store_url() -> Iterator[str]:
    with fresh_database() as url:
        yield url


@pytest.fixture
async def db(store_url: str, migrations: Path) -> AsyncIterator[Database]:
    await postgres_migrate.migrate(store_url, migrations, "store")
    async with await Database.open(store_url, migrations) as database:
        yield database


def cut(url: str, application: str = "fimbria store") -> int:
    """Ends all connections of the store; how many."""
    name = url.rpartition("/t")[0] and "t" + url.partition("@/t")[2].partition("?")[0]
    return int(
        administrate(
            shared_server(),
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            f" WHERE datname = '{name}' AND application_name = '{application}'",
        )
    )


async def test_after_connections_were_cut_the_next_use_connects_anew(db: Database, store_url: str) -> None:
    await insert(db, "a")
    assert await names(db) == ["a"]
    assert cut(store_url) >= 2
    await asyncio.sleep(0.05)
    await insert(db, "b")
    assert await names(db) == ["a", "b"]


async def test_a_write_whose_connection_is_cut_is_not_acknowledged(db: Database, store_url: str) -> None:
    async def operation(conn: AsyncConnection) -> str:
        await conn.execute(text("INSERT INTO thing (name) VALUES ('lost')"))
        cut(store_url)
        return "done"

    found = await asyncio.gather(insert(db, "with it"), db.write(operation), return_exceptions=True)
    for each in found:
        assert isinstance(each, Unavailable), each
        assert each.reason == "DATABASE_IO" and each.retry_after is not None
    await insert(db, "after")
    assert await names(db) == ["after"]


async def test_a_commit_of_unknown_outcome_is_not_acknowledged(
    db: Database, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    execute = asyncpg.Connection.execute

    async def lose_answer(self: Any, query: str, *arguments: Any, **options: Any) -> str:
        answer = await execute(self, query, *arguments, **options)
        if query.endswith("COMMIT"):
            cut(store_url)
            # What the server had said does not arrive.
            await execute(self, "SELECT 1")
        return answer

    async def operation(conn: AsyncConnection) -> None:
        await conn.execute(text("INSERT INTO thing (name) VALUES ('perhaps')"))
        db.after_commit(lambda: called.append("told"))

    monkeypatch.setattr(asyncpg.Connection, "execute", lose_answer)
    with pytest.raises(Unavailable) as caught:
        await db.write(operation)
    assert caught.value.reason == "DATABASE_IO"
    monkeypatch.undo()
    # This time it was stored. Nobody was told so.
    assert await names(db) == ["perhaps"]
    assert called == []


async def test_watches_go_on_when_the_listening_connection_is_lost(
    db: Database, store_url: str, migrations: Path
) -> None:
    async with await Database.open(store_url, migrations) as other:
        ours, theirs = Feed(db, "nodes"), Feed(other, "nodes")
        watch = ours.watch(0)
        for number in range(3):
            await append(other, theirs, f"{number}")
            assert [event.key for event in await take(watch, 1)] == [f"{number}"]
            assert cut(store_url) >= 1
        await asyncio.sleep(0)
        started = time.perf_counter()
        await append(other, theirs, "last")
        assert [event.key for event in await take(watch, 1)] == ["last"]
        assert time.perf_counter() - started < patient(8 * POLL_SECONDS)


async def test_a_server_that_was_killed_is_used_again_when_it_is_back(migrations: Path) -> None:
    server = new_server(fsync=False)
    server.start()
    try:
        with fresh_database(server=server) as url:
            await postgres_migrate.migrate(url, migrations, "store")
            async with await Database.open(url, migrations) as db:
                feed = Feed(db, "nodes")
                watch = feed.watch(0)
                kept = await insert(db, "kept")
                await append(db, feed, "before")
                await take(watch, 1)
                server.kill()
                for _ in range(2):
                    with pytest.raises(Unavailable) as caught:
                        await insert(db, "lost")
                    assert caught.value.retry_after is not None
                    with pytest.raises(Unavailable):
                        await names(db)
                with pytest.raises(DatabaseOpenError, match="is the server running"):
                    await Database.open(url, migrations)
                server.start()
                await insert(db, "after")
                assert await names(db) == ["after", kept]
                await append(db, feed, "later")
                assert [event.key for event in await take(watch, 1)] == ["later"]
                async with await Database.open(url, migrations) as other:
                    await append(other, Feed(other, "nodes"), "theirs")
                    assert [event.key for event in await take(watch, 1)] == ["theirs"]
    finally:
        server.remove()


async def test_a_writer_that_keeps_the_lock_makes_others_busy_and_is_ended(
    store_url: str, migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await postgres_migrate.migrate(store_url, migrations, "store")
    monkeypatch.setattr(postgres_module, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(postgres_module, "IDLE_WRITER_SECONDS", 1.0)
    entered, leave = asyncio.Event(), asyncio.Event()
    async with (
        await Database.open(store_url, migrations) as frozen,
        await Database.open(store_url, migrations) as db,
    ):

        async def freeze(conn: AsyncConnection) -> None:
            await conn.execute(text("INSERT INTO thing (name) VALUES ('frozen')"))
            entered.set()
            await leave.wait()

        freezing = asyncio.create_task(frozen.write(freeze))
        await entered.wait()
        with pytest.raises(Unavailable) as caught:
            await insert(db, "busy")
        assert caught.value.reason == "DATABASE_BUSY"
        async with asyncio.timeout(patient(10.0)):
            while True:
                try:
                    await insert(db, "at last")
                    break
                except Unavailable as exc:
                    assert exc.reason == "DATABASE_BUSY"
        leave.set()
        with pytest.raises(Unavailable):
            await freezing
        assert await names(db) == ["at last"]


async def test_errors_of_opening_say_what_to_do_and_keep_passwords(
    store_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    there = store_url.replace("postgres@", "postgres:hunter2@")
    for url, expected in (
        (there.replace("@/t", "@/missing"), "create it: CREATE DATABASE"),
        (there.replace("postgres:", "nobody:"), 'role "nobody" does not exist'),
        (there.partition("@/")[0] + "@/", "names no database"),
        (there + "x", "is the server running"),
        ("postgresql://me:hunter2@127.0.0.1:1/x?sslmode=nonsense", "cannot open the database"),
        ("postgresql://me:hunter2@[::1/x", "malformed"),
        ("postgresql+psycopg2://me:hunter2@h/x", "not supported"),
    ):
        with pytest.raises(DatabaseOpenError) as caught:
            await Database.open(url, "services.ipam.migrations")
        assert expected in str(caught.value)
        assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
    assert "hunter2" not in "".join(capfd.readouterr())


async def test_a_database_of_another_collation_is_refused() -> None:
    server = shared_server()
    administrate(
        server, "CREATE DATABASE sorted TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    try:
        with pytest.raises(
            DatabaseOpenError, match="encoding SQL_ASCII and collation C; expected UTF8 and C"
        ):
            await postgres_migrate.migrate(server.url("sorted"), "services.ipam.migrations", "ipam")
    finally:
        administrate(server, "DROP DATABASE sorted WITH (FORCE)")


async def test_a_commit_is_on_disk_whatever_the_servers_default(store_url: str, migrations: Path) -> None:
    name = "t" + store_url.partition("@/t")[2].partition("?")[0]
    administrate(shared_server(), f"ALTER DATABASE {name} SET synchronous_commit = off")
    await postgres_migrate.migrate(store_url, migrations, "store")
    async with await Database.open(store_url, migrations) as db:

        async def setting(conn: AsyncConnection) -> str:
            return str((await conn.execute(text("SHOW synchronous_commit"))).scalar_one())

        assert await db.write(setting) == "on"


def test_a_server_of_ones_own_is_private_and_stops_at_once() -> None:
    server = new_server()
    server.start()
    try:
        assert server.socket_directory.stat().st_mode & 0o777 == 0o700
        assert administrate(server, "SHOW listen_addresses") == ""
        assert administrate(server, "SHOW fsync") == "on"
        first = server.process()
        server.start()
        assert server.process() == first
        server.restart()
        assert server.process() not in (first, None)
        running = server.process()
        assert running is not None
        os.kill(running.pid, signal.SIGKILL)
        # Its lock file is still there, and its children may be as well for a moment.
        while server.process() is not None:
            time.sleep(0.01)
        server.start()
        assert administrate(server, "SELECT 1") == "1"
        server.stop()
        assert server.process() is None
    finally:
        server.remove()
    assert not server.directory.exists()


def test_servers_of_test_processes_that_were_killed_are_removed_and_no_others() -> None:
    program = (
        "from tests import postgres; s = postgres.shared_server(); print(s.directory, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Postgres(Path(process.stdout.readline().strip()))
        serving = left.process()
        assert serving is not None
        new_server()
        # Its process lives.
        assert left.process() == serving
        process.kill()
        process.wait()
    own = shared_server().process()
    new_server()
    assert not left.directory.exists() and not serving.alive
    assert own is not None and own.alive


def test_a_directory_that_is_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"too long for a socket: \d+ bytes .* expected less than 108"):
        Postgres(tmp_path / ("x" * 100)).create()
