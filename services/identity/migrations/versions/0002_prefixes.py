"""Identities of prefixes, and the cursor of their numbers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "prefixes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("prefix", sa.String(43), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("prefix", name="prefixes_prefix"),
        sa.CheckConstraint("id BETWEEN 16711680 AND 16777215", name="prefixes_range"),
    )
    cursor = op.create_table(
        "prefix_cursor",
        sa.Column("singleton", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("next_id", sa.Integer, nullable=False),
        sa.CheckConstraint("singleton = 1", name="prefix_cursor_singleton"),
    )
    op.bulk_insert(cursor, [{"singleton": 1, "next_id": 16711680}])
