"""The tables of ipam. What must never be doubled is a key or unique constraint here, not a check in code.

Addresses are stored packed (4 or 16 bytes, network order) so that the database sorts those of one `family`
(4 or 6) as numbers. The two families sort among each other: what searches a span names the family as well.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
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
)

pool_cidrs = Table(
    "pool_cidrs",
    metadata,
    Column("cidr", String(43), primary_key=True),
    Column("pool", String(63), ForeignKey("pools.name", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
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
