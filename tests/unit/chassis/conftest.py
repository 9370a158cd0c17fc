"""A store with one table and the feed tables, on a real file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.chassis.db import Database

FIRST = """
import sqlalchemy as sa
from alembic import op

from services.chassis.feed import create_feed_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table("thing", sa.Column("name", sa.Text, primary_key=True))
    create_feed_tables(op)
"""


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """A directory of migrations with one revision."""
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_first.py").write_text(FIRST)
    return versions.parent


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Where the store is."""
    return f"sqlite:///{tmp_path}/store/thing.db"


@pytest.fixture
async def db(url: str, migrations: Path) -> AsyncIterator[Database]:
    """The store, open."""
    async with await Database.open(url, migrations) as database:
        yield database


@pytest.fixture
async def other(db: Database, url: str, migrations: Path) -> AsyncIterator[Database]:
    """The same store, opened a second time, as another process would."""
    async with await Database.open(url, migrations) as database:
        yield database
