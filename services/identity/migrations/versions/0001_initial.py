"""Identities, the cursor of their numbers, the ipcache, and both feeds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.chassis.feed import create_feed_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_feed_tables(op)
    op.create_table(
        "identities",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("digest", name="identities_digest"),
        sa.CheckConstraint("id BETWEEN 256 AND 65535", name="identities_cluster_range"),
    )
    cursor = op.create_table(
        "identity_cursor",
        sa.Column("singleton", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("next_id", sa.Integer, nullable=False),
        sa.CheckConstraint("singleton = 1", name="identity_cursor_singleton"),
    )
    op.bulk_insert(cursor, [{"singleton": 1, "next_id": 256}])
    op.create_table(
        "ipcache",
        sa.Column("sort_key", sa.LargeBinary(17), primary_key=True),
        sa.Column("prefix", sa.String(43), nullable=False),
        sa.Column("identity", sa.Integer, nullable=False),
        sa.Column("node", sa.String(253), nullable=False),
        sa.Column("tunnel", sa.String(45), nullable=False),
        sa.Column("owner", sa.String(253), nullable=False),
        sa.Column("identity_revision", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index("ipcache_node", "ipcache", ["node", "sort_key"])
    op.create_index("ipcache_identity", "ipcache", ["identity"])
