# SPDX-License-Identifier: Apache-2.0
"""Prefixes, files and lines of policies; changes of CIDR groups; which replica a node is subscribed to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("policies", sa.Column("prefixes", sa.Text, nullable=False, server_default="{}"))
    op.add_column("policies", sa.Column("lines", sa.Text, nullable=False, server_default="{}"))
    op.add_column("policies", sa.Column("source", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "group_changes",
        sa.Column("name", sa.String(253), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.add_column("nodes", sa.Column("replica", sa.String(63), nullable=False, server_default=""))
    op.add_column("nodes", sa.Column("watched", sa.Text, nullable=False, server_default="[]"))
    op.add_column("nodes", sa.Column("failed", sa.Text, nullable=False, server_default="[]"))
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(63), primary_key=True),
        sa.Column("seen_ns", sa.BigInteger, nullable=False),
    )
