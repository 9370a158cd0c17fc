"""The migrations of identity build exactly the tables that its code is written against."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.chassis.db import Database
from services.chassis.feed import feed_tables
from services.identity.schema import metadata


async def test_migrations_and_schema_agree(tmp_path: Path) -> None:
    await (await Database.open(f"sqlite:///{tmp_path}/identity.db", "services.identity.migrations")).close()
    expected = sa.MetaData()
    for table in metadata.tables.values():
        table.to_metadata(expected)
    feed_tables(expected)
    engine = sa.create_engine(f"sqlite:///{tmp_path}/identity.db")
    try:
        with engine.connect() as connection:
            found = compare_metadata(MigrationContext.configure(connection), expected)
            assert found == []
            inspector = sa.inspect(connection)
            for table in expected.tables.values():
                constraints = {c.name for c in table.constraints if isinstance(c, sa.CheckConstraint)}
                assert {c["name"] for c in inspector.get_check_constraints(table.name)} == constraints
    finally:
        engine.dispose()
