"""A store of each kind with one made-up table and the feed tables, opened as often as a test likes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.chassis import postgres_migrate
from services.chassis.db import Database
from tests.postgres import STORES, fresh_database

FIRST = """
import sqlalchemy as sa
from alembic import op

from services.chassis.feed import create_feed_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table("thing", sa.Column("name", sa.Text, primary_key=True), sa.Column("count", sa.Integer))
    create_feed_tables(op)
"""


@dataclass(frozen=True)
class Store:
    """Where a store is; each `open` is what another process would have of it."""

    kind: str
    url: str
    migrations: Path

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Database]:
        async with await Database.open(self.url, self.migrations) as database:
            yield database


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """A directory of migrations with one revision."""
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_first.py").write_text(FIRST)
    return versions.parent


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/store/thing.db"
        return
    with fresh_database() as url:
        yield url


@pytest.fixture
async def store(store_url: str, migrations: Path) -> Store:
    """The store, with its table."""
    kind = store_url.partition(":")[0]
    if kind == "postgresql":
        await postgres_migrate.migrate(store_url, migrations, "store")
    return Store(kind, store_url, migrations)


@pytest.fixture
async def db(store: Store) -> AsyncIterator[Database]:
    """The store, open."""
    async with store.open() as database:
        yield database


@pytest.fixture
async def other(store: Store, db: Database) -> AsyncIterator[Database]:
    """The same store, opened a second time, as another replica would."""
    async with store.open() as database:
        yield database
