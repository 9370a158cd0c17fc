"""The tables of identity: one number for one label set and one entry for one prefix are constraints here."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

# labels is a JSON array in normal form; digest is the SHA-256 of that text, an index of fixed width.
# touched counts the times at which somebody was told of the identity or stopped using it: garbage collection
# takes only what has not been touched for a while.
identities = Table(
    "identities",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("labels", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("touched", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("digest", name="identities_digest"),
    CheckConstraint("id BETWEEN 256 AND 65535", name="identities_cluster_range"),
)

# One row, made by the migration: where the search for the next number starts; see numbers.py on rotation.
identity_cursor = Table(
    "identity_cursor",
    metadata,
    Column("singleton", Integer, primary_key=True, autoincrement=False),
    Column("next_id", Integer, nullable=False),
    CheckConstraint("singleton = 1", name="identity_cursor_singleton"),
)

# The same for prefixes outside the cluster, in canonical text.
prefixes = Table(
    "prefixes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("prefix", String(43), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("touched", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("prefix", name="prefixes_prefix"),
    CheckConstraint("id BETWEEN 16711680 AND 16777215", name="prefixes_range"),
)

prefix_cursor = Table(
    "prefix_cursor",
    metadata,
    Column("singleton", Integer, primary_key=True, autoincrement=False),
    Column("next_id", Integer, nullable=False),
    CheckConstraint("singleton = 1", name="prefix_cursor_singleton"),
)

# sort_key is the packed address followed by the prefix length, 5 or 17 bytes: the database then sorts the
# prefixes of a family as numbers. Keys of the two families are never equal, for they differ in length.
ipcache = Table(
    "ipcache",
    metadata,
    Column("sort_key", LargeBinary(17), primary_key=True),
    Column("prefix", String(43), nullable=False),
    Column("identity", Integer, nullable=False),
    Column("node", String(253), nullable=False),
    Column("tunnel", String(45), nullable=False),
    Column("owner", String(253), nullable=False),
    Column("identity_revision", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Index("ipcache_node", "node", "sort_key"),
    Index("ipcache_identity", "identity"),
)

# Who has a lease, or had one. renewals counts with every sign of life, changes with every change of what it
# uses. Of one whose lease is over, ended_revision is the identity feed's revision at its end.
holders = Table(
    "holders",
    metadata,
    Column("name", String(253), primary_key=True),
    Column("renewals", BigInteger, nullable=False),
    Column("changes", BigInteger, nullable=False),
    Column("reported_ns", BigInteger, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("ended_revision", BigInteger, nullable=False),
)

# A row's identity exists, of labels or of a prefix: no identity with a row here is removed.
identity_uses = Table(
    "identity_uses",
    metadata,
    Column("holder", String(253), primary_key=True),
    Column("identity", Integer, primary_key=True, autoincrement=False),
    Index("identity_uses_identity", "identity"),
)

# One row, made by the migration. patterns is a JSON array; an empty one stands for the program's defaults.
label_filter = Table(
    "label_filter",
    metadata,
    Column("singleton", Integer, primary_key=True, autoincrement=False),
    Column("patterns", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    CheckConstraint("singleton = 1", name="label_filter_singleton"),
)

# How many numbers of a space were taken at some moments of the last hour.
usage_samples = Table(
    "usage_samples",
    metadata,
    Column("space", String(16), primary_key=True),
    Column("at_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("taken", BigInteger, nullable=False),
)
