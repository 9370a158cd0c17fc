"""Who uses which identity, the label filter, and samples of how full the number spaces are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Additions with defaults only: a replica of the version before goes on beside this schema.
    for table in ("identities", "prefixes"):
        op.add_column(table, sa.Column("touched", sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "holders",
        sa.Column("name", sa.String(253), primary_key=True),
        sa.Column("renewals", sa.BigInteger, nullable=False),
        sa.Column("changes", sa.BigInteger, nullable=False),
        sa.Column("reported_ns", sa.BigInteger, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("ended_revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "identity_uses",
        sa.Column("holder", sa.String(253), primary_key=True),
        sa.Column("identity", sa.Integer, primary_key=True, autoincrement=False),
    )
    op.create_index("identity_uses_identity", "identity_uses", ["identity"])
    label_filter = op.create_table(
        "label_filter",
        sa.Column("singleton", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("patterns", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.CheckConstraint("singleton = 1", name="label_filter_singleton"),
    )
    op.bulk_insert(label_filter, [{"singleton": 1, "patterns": "[]", "revision": 1}])
    op.create_table(
        "usage_samples",
        sa.Column("space", sa.String(16), primary_key=True),
        sa.Column("at_ns", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("taken", sa.BigInteger, nullable=False),
    )
