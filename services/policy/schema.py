# SPDX-License-Identifier: Apache-2.0
"""The tables of the policy service."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

policies = Table(
    "policies",
    metadata,
    Column("kind", String(63), primary_key=True),
    Column("namespace", String(63), primary_key=True),
    Column("name", String(253), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
    # JSON: the numbers of the prefixes that stand in the manifest, and the line at which each rule begins.
    Column("prefixes", Text, nullable=False),
    Column("lines", Text, nullable=False),
    Column("source", Text, nullable=False),
)

# When each CIDR group changed last, also those that are gone: a policy that names one has changed then too.
group_changes = Table(
    "group_changes",
    metadata,
    Column("name", String(253), primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

# AUTOINCREMENT: the number of a rule that is gone is never given out again, so that a late flow event or an
# entry that a node has not removed yet cannot be taken for another rule's.
rules = Table(
    "rules",
    metadata,
    Column("cookie", Integer, primary_key=True, autoincrement=True),
    Column("kind", String(63), nullable=False),
    Column("namespace", String(63), nullable=False),
    Column("name", String(253), nullable=False),
    Column("path", String(255), nullable=False),
    ForeignKeyConstraint(
        ["kind", "namespace", "name"],
        ["policies.kind", "policies.namespace", "policies.name"],
        ondelete="CASCADE",
    ),
    UniqueConstraint("kind", "namespace", "name", "path", name="rules_path"),
    sqlite_autoincrement=True,
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", String(253), primary_key=True),
    Column("policy_revision", BigInteger, nullable=False),
    Column("identity_revision", BigInteger, nullable=False),
    Column("error", Text, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
    # The replica of this service that the node is subscribed to; empty: none.
    Column("replica", String(63), nullable=False),
    # JSON: the subjects that it watches, and those that it could not realize.
    Column("watched", Text, nullable=False),
    Column("failed", Text, nullable=False),
)

# The processes that share this store, and when each was heard of last.
replicas = Table(
    "replicas",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("seen_ns", BigInteger, nullable=False),
)

# The named ports that the pods of a node declare, by identity: egress rules with port names need those of
# nodes that are away too.
declared_ports = Table(
    "declared_ports",
    metadata,
    Column("node", String(253), primary_key=True),
    Column("identity", Integer, primary_key=True),
    Column("ports", Text, primary_key=True),
)
