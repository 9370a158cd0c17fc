"""Pools that change while in use (exclusions, selectors, CIDRs that drain); addresses on hold."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Additions with defaults only: a replica of the version before goes on beside this schema.
    op.add_column("pools", sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"))
    op.add_column("pools", sa.Column("excluded", sa.Text, nullable=False, server_default="[]"))
    op.add_column("pools", sa.Column("pod_selector", sa.Text))
    op.add_column("pools", sa.Column("namespace_selector", sa.Text))
    for table in ("pool_cidrs", "node_cidrs"):
        op.add_column(table, sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "holds",
        sa.Column("address", sa.LargeBinary(16), primary_key=True),
        sa.Column("family", sa.Integer, nullable=False),
        sa.Column(
            "cidr", sa.String(43), sa.ForeignKey("node_cidrs.cidr", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("node", sa.String(253), nullable=False),
        sa.Column("owner", sa.String(253), nullable=False),
        sa.Column("released_ns", sa.BigInteger, nullable=False),
        sa.CheckConstraint("family IN (4, 6)", name="holds_family"),
    )
    op.create_index("holds_cidr", "holds", ["cidr"])
    op.create_index("holds_released", "holds", ["released_ns"])
