"""The tables of ipam. What must never be doubled is a key or unique constraint here, not a check in code.

Addresses are stored packed (4 or 16 bytes, network order) so that the database sorts those of one `family`
(4 or 6) as numbers. The two families sort among each other: what searches a span names the family as well.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

metadata = MetaData()

pools = Table(
    "pools",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("node_mask_size", Integer, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    # Like node_mask_size, 0 in a pool without CIDRs of the family.
    Column("node_mask_size_ipv6", Integer, nullable=False, server_default="0"),
    # Counts changes of the pool's content.
    Column("revision", BigInteger, nullable=False, server_default="1"),
    # JSON: a list of texts in normal form, and LabelSelectors as protobuf's JSON has them (NULL: none).
    Column("excluded", Text, nullable=False, server_default="[]"),
    Column("pod_selector", Text),
    Column("namespace_selector", Text),
)

pool_cidrs = Table(
    "pool_cidrs",
    metadata,
    Column("cidr", String(43), primary_key=True),
    Column("pool", String(63), ForeignKey("pools.name", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    # Nothing more is carved from it; the row goes when no node holds a part of it.
    Column("draining", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("pool", "position", name="pool_cidrs_position"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", String(253), primary_key=True),
    Column("ipv4", String(15), nullable=False),
    Column("pool", String(63), ForeignKey("pools.name", ondelete="RESTRICT"), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("ipv6", String(39)),
    UniqueConstraint("ipv4", name="nodes_ipv4"),
    Index("nodes_ipv6", "ipv6", unique=True),
)

# The primary key keeps a CIDR with one node. CIDRs of one pool are aligned and of one size, so unequal ones
# do not overlap; pools do not overlap each other (checked when one is made).
node_cidrs = Table(
    "node_cidrs",
    metadata,
    Column("cidr", String(43), primary_key=True),
    Column("node", String(253), ForeignKey("nodes.name", ondelete="CASCADE"), nullable=False),
    Column("pool", String(63), ForeignKey("pools.name", ondelete="RESTRICT"), nullable=False),
    Column("position", Integer, nullable=False),
    # Where the next allocation looks first, packed; see addresses.py on rotation.
    Column("next_address", LargeBinary(16), nullable=False),
    Column("family", Integer, nullable=False, server_default="4"),
    # As of the pool's CIDR that it was carved from: nothing more is allocated from it.
    Column("draining", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("node", "position", name="node_cidrs_position"),
    Index("node_cidrs_pool", "pool"),
)

# RESTRICT: a CIDR cannot go while an address of it is held, whatever the code does.
addresses = Table(
    "addresses",
    metadata,
    Column("node", String(253), primary_key=True),
    Column("owner", String(253), primary_key=True),
    Column("family", Integer, primary_key=True),
    Column("address", LargeBinary(16), nullable=False),
    Column("cidr", String(43), ForeignKey("node_cidrs.cidr", ondelete="RESTRICT"), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    UniqueConstraint("address", name="addresses_address"),
    CheckConstraint("family IN (4, 6)", name="addresses_family"),
    Index("addresses_node_address", "node", "address"),
    Index("addresses_cidr", "cidr"),
)

# Addresses that were released a moment ago and that nobody gets yet. They go with their CIDR.
holds = Table(
    "holds",
    metadata,
    Column("address", LargeBinary(16), primary_key=True),
    Column("family", Integer, nullable=False),
    Column("cidr", String(43), ForeignKey("node_cidrs.cidr", ondelete="CASCADE"), nullable=False),
    Column("node", String(253), nullable=False),
    Column("owner", String(253), nullable=False),
    Column("released_ns", BigInteger, nullable=False),
    CheckConstraint("family IN (4, 6)", name="holds_family"),
    Index("holds_cidr", "cidr"),
    Index("holds_released", "released_ns"),
)
