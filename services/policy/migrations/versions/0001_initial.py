# SPDX-License-Identifier: Apache-2.0
"""Policies with their numbered rules, the nodes that enforce them with their ports, and the policy feed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.chassis.feed import create_feed_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_feed_tables(op)
    op.create_table(
        "policies",
        sa.Column("kind", sa.String(63), primary_key=True),
        sa.Column("namespace", sa.String(63), primary_key=True),
        sa.Column("name", sa.String(253), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "rules",
        sa.Column("cookie", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String(63), nullable=False),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("name", sa.String(253), nullable=False),
        sa.Column("path", sa.String(255), nullable=False),
        sa.ForeignKeyConstraint(
            ["kind", "namespace", "name"],
            ["policies.kind", "policies.namespace", "policies.name"],
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("kind", "namespace", "name", "path", name="rules_path"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(253), primary_key=True),
        sa.Column("policy_revision", sa.BigInteger, nullable=False),
        sa.Column("identity_revision", sa.BigInteger, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "declared_ports",
        sa.Column("node", sa.String(253), primary_key=True),
        sa.Column("identity", sa.Integer, primary_key=True),
        sa.Column("ports", sa.Text, primary_key=True),
    )
