"""Pools, nodes with their CIDRs, addresses, and the node feed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.chassis.feed import create_feed_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_feed_tables(op)
    op.create_table(
        "pools",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("node_mask_size", sa.Integer, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "pool_cidrs",
        sa.Column("cidr", sa.String(43), primary_key=True),
        sa.Column("pool", sa.String(63), sa.ForeignKey("pools.name", ondelete="CASCADE"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.UniqueConstraint("pool", "position", name="pool_cidrs_position"),
    )
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(253), primary_key=True),
        sa.Column("ipv4", sa.String(15), nullable=False),
        sa.Column("pool", sa.String(63), sa.ForeignKey("pools.name", ondelete="RESTRICT"), nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("ipv4", name="nodes_ipv4"),
    )
    op.create_table(
        "node_cidrs",
        sa.Column("cidr", sa.String(43), primary_key=True),
        sa.Column("node", sa.String(253), sa.ForeignKey("nodes.name", ondelete="CASCADE"), nullable=False),
        sa.Column("pool", sa.String(63), sa.ForeignKey("pools.name", ondelete="RESTRICT"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("next_address", sa.LargeBinary(16), nullable=False),
        sa.UniqueConstraint("node", "position", name="node_cidrs_position"),
    )
    op.create_index("node_cidrs_pool", "node_cidrs", ["pool"])
    op.create_table(
        "addresses",
        sa.Column("node", sa.String(253), primary_key=True),
        sa.Column("owner", sa.String(253), primary_key=True),
        sa.Column("family", sa.Integer, primary_key=True),
        sa.Column("address", sa.LargeBinary(16), nullable=False),
        sa.Column(
            "cidr", sa.String(43), sa.ForeignKey("node_cidrs.cidr", ondelete="RESTRICT"), nullable=False
        ),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("address", name="addresses_address"),
        sa.CheckConstraint("family IN (4, 6)", name="addresses_family"),
    )
    op.create_index("addresses_node_address", "addresses", ["node", "address"])
    op.create_index("addresses_cidr", "addresses", ["cidr"])
