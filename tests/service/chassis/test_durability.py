"""What was acknowledged is there, whatever happens to the process that acknowledged it."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from services.chassis.db import Database
from services.chassis.feed import Feed

MIGRATION = """
import sqlalchemy as sa
from alembic import op

from services.chassis.feed import create_feed_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table("thing", sa.Column("name", sa.Text, primary_key=True))
    create_feed_tables(op)
"""

# Eight writers at a time; each says what it wrote only when the store has said that it is written.
WRITER = """
import asyncio
import os
import sys
from pathlib import Path

from services.chassis.db import Database
from services.chassis.feed import Feed
from sqlalchemy import text


async def main(url, migrations, life):
    db = await Database.open(url, Path(migrations))
    feed = Feed(db, "things")

    async def write(worker):
        number = 0
        while True:
            name = f"{life}-{worker}-{number}"

            async def operation(conn):
                await conn.execute(text("INSERT INTO thing (name) VALUES (:name)"), {"name": name})
                return await feed.append(conn, name, b"")

            revision = await db.write(operation)
            os.write(1, f"{revision} {name}\\n".encode())
            number += 1

    await asyncio.gather(*(write(worker) for worker in range(8)))


asyncio.run(main(*sys.argv[1:]))
"""


def write_until_killed(url: str, migrations: Path, life: int) -> dict[str, int]:
    """Starts a writer and kills it somewhere; returns what it had acknowledged, with revisions."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(migrations), str(life)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    lines = []
    for _ in range(random.randrange(1, 250)):
        lines.append(writer.stdout.readline())
        assert lines[-1], "the writer ended by itself"
    writer.kill()
    # What it said between the last line read and its death was acknowledged too.
    rest, _ = writer.communicate()
    lines += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    return {name: int(revision) for revision, name in map(str.split, lines)}


async def test_every_acknowledged_write_survives_sigkill(tmp_path: Path) -> None:
    migrations = tmp_path / "migrations"
    (migrations / "versions").mkdir(parents=True)
    (migrations / "versions" / "0001_first.py").write_text(MIGRATION)
    url = f"sqlite:///{tmp_path}/thing.db"
    acknowledged: dict[str, int] = {}
    for life in range(4):
        acknowledged |= write_until_killed(url, migrations, life)

    async with await Database.open(url, migrations) as db:
        async with db.read() as conn:
            stored = {row.name for row in await conn.execute(text("SELECT name FROM thing"))}
            rows = await conn.execute(text("SELECT revision, key FROM feed_event ORDER BY revision"))
            events = [(row.revision, row.key) for row in rows]
            check = (await conn.execute(text("PRAGMA integrity_check"))).scalar_one()
        feed = Feed(db, "things")
    assert check == "ok"
    assert set(acknowledged) <= stored
    # Change and event are one: none is there without the other, and revisions have no gap.
    assert {key for _, key in events} == stored
    assert [revision for revision, _ in events] == list(range(1, len(events) + 1))
    assert feed.revision == len(events)
    assert {key: revision for revision, key in events if key in acknowledged} == acknowledged
