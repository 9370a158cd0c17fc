"""The migrations of each service build exactly the tables that its code is written against, in each store."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.chassis.db import Database
from services.chassis.feed import feed_tables
from services.chassis.migrate import COMPATIBILITY_TABLE
from tests.postgres import STORES, store_of

SERVICES = ["ipam", "identity", "policy"]


@contextmanager
def migrated(kind: str, service: str, directory: Path) -> Iterator[str]:
    """The URL of a store that the service's migrations made."""
    with store_of(service, kind) as flags:
        url = flags[0].partition("=")[2] if flags else f"sqlite:///{directory}/{service}.db"
        yield url


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("kind", STORES)
async def test_migrations_and_schema_agree(tmp_path: Path, kind: str, service: str) -> None:
    expected = sa.MetaData()
    for table in importlib.import_module(f"services.{service}.schema").metadata.tables.values():
        table.to_metadata(expected)
    feed_tables(expected)
    with migrated(kind, service, tmp_path) as url:
        async with await Database.open(url, f"services.{service}.migrations") as database:
            async with database._backend.writing() as connection:
                await connection.run_sync(compare, expected)


def compare(connection: sa.Connection, expected: sa.MetaData) -> None:
    def of_service(name: str | None, kind: str, parents: Any) -> bool:
        # Belongs to the chassis, whatever the service.
        return not (kind == "table" and name == COMPATIBILITY_TABLE)

    context = MigrationContext.configure(connection, opts={"include_name": of_service})
    assert compare_metadata(context, expected) == []
    inspector = sa.inspect(connection)
    sqlite = connection.dialect.name == "sqlite"
    for table in expected.tables.values():
        # Alembic does not compare these two.
        constraints = {c.name for c in table.constraints if isinstance(c, sa.CheckConstraint)}
        assert {c["name"] for c in inspector.get_check_constraints(table.name)} == constraints
        for column in inspector.get_columns(table.name):
            counted = (
                bool(table.dialect_kwargs.get("sqlite_autoincrement"))
                and table.c[column["name"]] is table.autoincrement_column
            )
            if not sqlite:
                # Numbers that are never given out again come from a sequence, all others are given.
                assert str(column["default"] or "").startswith("nextval(") == counted
        if sqlite:
            created = connection.execute(
                sa.text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": table.name}
            ).scalar_one()
            assert ("AUTOINCREMENT" in created) == bool(table.dialect_kwargs.get("sqlite_autoincrement"))
