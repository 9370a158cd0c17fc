"""IPv6 beside IPv4: its mask size in pools, its underlay address of nodes, and the family of node CIDRs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Everything that is stored by now is IPv4, which the defaults say.
    op.add_column("pools", sa.Column("node_mask_size_ipv6", sa.Integer, nullable=False, server_default="0"))
    op.add_column("nodes", sa.Column("ipv6", sa.String(39)))
    op.create_index("nodes_ipv6", "nodes", ["ipv6"], unique=True)
    op.add_column("node_cidrs", sa.Column("family", sa.Integer, nullable=False, server_default="4"))
