"""The migrations of each service build exactly the tables that its code is written against."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.chassis.db import Database
from services.chassis.feed import feed_tables


@pytest.mark.parametrize("service", ["ipam", "identity", "policy"])
async def test_migrations_and_schema_agree(tmp_path: Path, service: str) -> None:
    url = f"sqlite:///{tmp_path}/{service}.db"
    await (await Database.open(url, f"services.{service}.migrations")).close()
    expected = sa.MetaData()
    for table in importlib.import_module(f"services.{service}.schema").metadata.tables.values():
        table.to_metadata(expected)
    feed_tables(expected)
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), expected) == []
            inspector = sa.inspect(connection)
            for table in expected.tables.values():
                # Alembic does not compare these two.
                constraints = {c.name for c in table.constraints if isinstance(c, sa.CheckConstraint)}
                assert {c["name"] for c in inspector.get_check_constraints(table.name)} == constraints
                created = connection.execute(
                    sa.text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": table.name}
                ).scalar_one()
                declared = bool(table.dialect_kwargs.get("sqlite_autoincrement"))
                assert ("AUTOINCREMENT" in created) == declared
    finally:
        engine.dispose()
