"""What allocations and releases read and write, a handful of statements for any number of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.statements import Sql, SqlOfKeys
from services.ipam.allocation import NodeCidr, NodeCidrs, bounds_of
from services.ipam.family import FAMILIES, Family

# node and owner.
OwnerKey: TypeAlias = "tuple[str, str]"

# A row value in IN would make SQLite scan the table.
_PRESENT: Final = SqlOfKeys(
    "WITH wanted (node, owner) AS (VALUES {keys})"
    " SELECT a.node, a.owner, a.family, a.address, a.cidr, a.created_ns"
    " FROM wanted AS w JOIN addresses AS a ON a.node = w.node AND a.owner = w.owner",
    "(CAST(? AS VARCHAR), CAST(? AS VARCHAR))",
    ("", ""),
)
_NODES: Final = SqlOfKeys(
    "SELECT n.name, n.pool, c.cidr, c.pool, c.draining, c.next_address"
    " FROM nodes AS n LEFT JOIN node_cidrs AS c ON c.node = n.name"
    " WHERE n.name IN ({keys}) ORDER BY n.name, c.position",
    "?",
    ("",),
)
_POOLS: Final = SqlOfKeys(
    "SELECT p.name, p.excluded, count(c.cidr), max(CASE WHEN c.cidr LIKE '%:%' THEN 0 ELSE 1 END),"
    " max(CASE WHEN c.cidr LIKE '%:%' THEN 1 ELSE 0 END)"
    " FROM pools AS p LEFT JOIN pool_cidrs AS c ON c.pool = p.name AND NOT c.draining"
    " WHERE p.name IN ({keys}) GROUP BY p.name, p.excluded",
    "?",
    ("",),
)
# Of held addresses released_ns is -1. A long list in IN would make PostgreSQL scan the table.
_TAKEN: Final = SqlOfKeys(
    "WITH wanted (address) AS (VALUES {keys})"
    " SELECT a.address, a.node, a.owner, CAST(-1 AS BIGINT) AS released_ns"
    " FROM wanted AS w JOIN addresses AS a ON a.address = w.address"
    " UNION ALL SELECT h.address, h.node, h.owner, h.released_ns"
    " FROM wanted AS w JOIN holds AS h ON h.address = w.address",
    "(CAST(? AS BYTEA))",
    (b"",),
)
# The family matters: as bytes, addresses of the other one lie within the span as well.
_TAKEN_BETWEEN: Final = Sql(
    "SELECT address, CAST(-1 AS BIGINT) AS released_ns FROM addresses"
    " WHERE address BETWEEN ? AND ? AND family = ?"
    " UNION ALL SELECT address, released_ns FROM holds WHERE address BETWEEN ? AND ? AND family = ?"
    " ORDER BY address LIMIT ?"
)
_TAKE: Final = Sql(
    "INSERT INTO addresses (node, owner, family, address, cidr, created_ns) VALUES (?, ?, ?, ?, ?, ?)"
)
_MOVE_CURSOR: Final = Sql("UPDATE node_cidrs SET next_address = ? WHERE cidr = ?")
_RELEASE: Final = Sql("DELETE FROM addresses WHERE node = ? AND owner = ?")
# A replica of the version before may have given an address that was on hold: the later release counts.
_HOLD: Final = Sql(
    "INSERT INTO holds (address, family, cidr, node, owner, released_ns) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (address) DO UPDATE SET cidr = excluded.cidr, node = excluded.node,"
    " owner = excluded.owner, released_ns = excluded.released_ns"
)
_END_HOLD: Final = Sql("DELETE FROM holds WHERE address = ?")
_HELD_OF_CIDRS: Final = SqlOfKeys(
    "SELECT count(*), max(created_ns) FROM addresses WHERE cidr IN ({keys})", "?", ("",)
)
_HOLDS_OF_CIDRS: Final = SqlOfKeys(
    "SELECT released_ns FROM holds WHERE cidr IN ({keys}) ORDER BY released_ns", "?", ("",)
)


@dataclass(frozen=True, slots=True)
class HeldRow:
    """One row of addresses."""

    family: Family
    address: bytes
    cidr: str
    created_ns: int


@dataclass(frozen=True, slots=True)
class PoolRow:
    """What an allocation has to know of a pool: its families in service and what it excludes (encoded).

    A pool without CIDRs of its own is the one of mode kubernetes: it has the families that its nodes have.
    """

    families: tuple[Family, ...]
    exclusions: str


@dataclass(frozen=True, slots=True)
class TakenRow:
    """Who holds an address, or had it: then `released_ns` is not -1."""

    address: bytes
    node: str
    owner: str
    released_ns: int


async def read_present(
    connection: AsyncConnection, keys: Sequence[OwnerKey]
) -> dict[OwnerKey, list[HeldRow]]:
    """What those of `keys` hold that hold anything, IPv4 first."""
    found: dict[OwnerKey, list[HeldRow]] = {}
    for node, owner, family, address, cidr, created_ns in await _PRESENT.rows(connection, keys):
        rows = found.setdefault((node, owner), [])
        rows.insert(0 if family == 4 else len(rows), HeldRow(family, address, cidr, created_ns))
    return found


async def read_nodes(connection: AsyncConnection, names: Collection[str]) -> dict[str, NodeCidrs]:
    """Those of the nodes `names` that there are."""
    found: dict[str, NodeCidrs] = {}
    keys = [(name,) for name in names]
    for name, own_pool, cidr, pool, draining, next_address in await _NODES.rows(connection, keys):
        node = found.get(name)
        if node is None:
            node = found[name] = NodeCidrs(name, own_pool)
        if cidr is not None:
            bounds = bounds_of(cidr)
            node.cidrs.append(NodeCidr(bounds, pool, bool(draining), bounds.slot(next_address)))
    return found


async def read_pools(connection: AsyncConnection, names: Collection[str]) -> dict[str, PoolRow]:
    """Those of the pools `names` that there are."""
    rows = await _POOLS.rows(connection, [(name,) for name in names])
    return {
        name: PoolRow(
            tuple(family for family, there in zip(FAMILIES, (ipv4, ipv6), strict=True) if there or not count),
            excluded,
        )
        for name, excluded, count, ipv4, ipv6 in rows
    }


async def read_taken(connection: AsyncConnection, addresses: Iterable[bytes]) -> list[TakenRow]:
    """Those of `addresses` that are held or have a row of their last release."""
    rows = await _TAKEN.rows(connection, [(address,) for address in addresses])
    return [TakenRow(*row) for row in rows]


async def read_taken_between(
    connection: AsyncConnection, family: Family, start: bytes, end: bytes, limit: int
) -> Sequence[tuple[bytes, int]]:
    """The lowest `limit` of the same from `start` to `end`, as (address, released_ns)."""
    span = (start, end, family)
    return await _TAKEN_BETWEEN.rows(connection, *span, *span, limit)


async def count_held(connection: AsyncConnection, cidrs: Iterable[str]) -> tuple[int, int]:
    """How many addresses of `cidrs` are held, and when the last of them was taken (0: there is none)."""
    rows = await _HELD_OF_CIDRS.rows(connection, [(cidr,) for cidr in cidrs])
    return sum(row[0] for row in rows), max((row[1] or 0 for row in rows), default=0)


async def read_releases(connection: AsyncConnection, cidrs: Iterable[str]) -> list[int]:
    """When each address of `cidrs` that may be on hold was released, earliest first."""
    rows = await _HOLDS_OF_CIDRS.rows(connection, [(cidr,) for cidr in cidrs])
    return sorted(row[0] for row in rows)


async def insert_held(
    connection: AsyncConnection, rows: list[tuple[str, str, Family, bytes, str, int]]
) -> None:
    """Writes (node, owner, family, address, cidr, created_ns)."""
    await _TAKE.run_each(connection, rows)


async def move_cursors(connection: AsyncConnection, cidrs: Iterable[NodeCidr]) -> None:
    """Lets the next search in each of `cidrs` start where it is by now."""
    await _MOVE_CURSOR.run_each(
        connection, [(cidr.bounds.packed(cidr.cursor), cidr.bounds.text) for cidr in cidrs]
    )


async def delete_held(connection: AsyncConnection, keys: Iterable[OwnerKey]) -> None:
    """Releases all that `keys` hold."""
    await _RELEASE.run_each(connection, list(keys))


async def insert_holds(
    connection: AsyncConnection, rows: list[tuple[bytes, Family, str, str, str, int]]
) -> None:
    """Writes (address, family, cidr, node, owner, released_ns)."""
    await _HOLD.run_each(connection, rows)


async def delete_holds(connection: AsyncConnection, addresses: Iterable[bytes]) -> None:
    """Ends the holds of `addresses`, as far as there are any."""
    await _END_HOLD.run_each(connection, [(address,) for address in addresses])
