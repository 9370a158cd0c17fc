# SPDX-License-Identifier: Apache-2.0
"""The migrations of the policy service build exactly the tables that its code is written against."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.chassis.db import Database
from services.chassis.feed import feed_tables
from services.policy.schema import metadata


async def test_migrations_and_schema_agree(tmp_path: Path) -> None:
    await (await Database.open(f"sqlite:///{tmp_path}/policy.db", "services.policy.migrations")).close()
    expected = sa.MetaData()
    for table in metadata.tables.values():
        table.to_metadata(expected)
    feed_tables(expected)
    engine = sa.create_engine(f"sqlite:///{tmp_path}/policy.db")
    try:
        with engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), expected) == []
            created = connection.execute(
                sa.text("SELECT sql FROM sqlite_master WHERE name = 'rules'")
            ).scalar_one()
            assert "AUTOINCREMENT" in created
    finally:
        engine.dispose()
