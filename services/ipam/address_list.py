"""Reading who holds which address, and what is on hold, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.statements import Sql
from services.ipam.address_rows import read_nodes
from services.ipam.allocation import NodeCidrs, bounds_of
from services.ipam.family import Address, address_from_packed
from services.ipam.holds import HeldBack, until
from services.ipam.model import Allocation, Held

# An owner is one row: its IPv4 address and beside it its IPv6 one, or the IPv6 one when it has no other.
_OWNERS: Final = (
    "SELECT a.node, a.owner, a.created_ns, a.address, a.cidr, o.address, o.cidr FROM addresses AS a"
    " LEFT JOIN addresses AS o"
    " ON a.family = 4 AND o.node = a.node AND o.owner = a.owner AND o.family = 6"
    " WHERE (a.family = 4 OR NOT EXISTS (SELECT 1 FROM addresses AS f"
    " WHERE f.node = a.node AND f.owner = a.owner AND f.family = 4))"
)
_HOLDS: Final = (
    "SELECT a.node, a.owner, a.address, a.cidr, c.pool, a.released_ns FROM holds AS a"
    " JOIN node_cidrs AS c ON c.cidr = a.cidr WHERE a.released_ns > ?"
)
_HOLDER: Final = Sql("SELECT node, owner FROM addresses WHERE address = ?")


async def read_page(
    connection: AsyncConnection,
    *,
    node: str,
    owner: str,
    address: Address | None,
    after: tuple[str, Address] | None,
    limit: int,
) -> Sequence[Allocation]:
    """Up to `limit` allocations by (node, first address) past `after`; see AddressStore.list."""
    if address is not None:
        found = await _HOLDER.rows(connection, address.packed)
        if not found or (node, owner) not in _either(*found[0]):
            return []
        ((node, owner),) = found
    if owner:
        rows = await _of_owner(connection, node, owner, after, limit)
    else:
        text, parameters = _filtered(_OWNERS, [], node, owner, after)
        rows = await Sql(text).rows(connection, *parameters, limit)
    nodes = await read_nodes(connection, {row[0] for row in rows})
    return [_allocation(row, nodes[row[0]]) for row in rows]


def _either(node: str, owner: str) -> set[tuple[str, str]]:
    """The filters by node and owner that let the holder through."""
    return {(node, owner), (node, ""), ("", owner), ("", "")}


async def _of_owner(
    connection: AsyncConnection, node: str, owner: str, after: tuple[str, Address] | None, limit: int
) -> Sequence[Any]:
    """What one owner has on the node, or on each node: few rows, which the primary key finds.

    They are put in order here: asked to do that, SQLite would walk all addresses in order instead.
    """
    # There is no index on owners alone, so that each node is named.
    text = _OWNERS + " AND a.owner = ? AND a.node " + ("= ?" if node else "IN (SELECT name FROM nodes)")
    rows = await Sql(text).rows(connection, *((owner, node) if node else (owner,)))
    place = None if after is None else (after[0], after[1].packed)
    keyed = sorted(rows, key=lambda row: (row[0], row[3]))
    return [row for row in keyed if place is None or (row[0], row[3]) > place][:limit]


async def read_holds(
    connection: AsyncConnection,
    *,
    hold_ns: int,
    now_ns: int,
    node: str,
    owner: str,
    address: Address | None,
    after: tuple[str, Address] | None,
    limit: int,
) -> Sequence[HeldBack]:
    """Up to `limit` addresses on hold by (node, address) past `after`; see AddressStore.list_on_hold."""
    text, parameters = _HOLDS, list[object]([now_ns - hold_ns])
    if address is not None:
        text += " AND a.address = ?"
        parameters.append(address.packed)
    text, parameters = _filtered(text, parameters, node, owner, after)
    return [
        HeldBack(
            at,
            last_owner,
            address_from_packed(packed),
            bounds_of(cidr).network,
            pool,
            until(released_ns, hold_ns, now_ns),
        )
        for at, last_owner, packed, cidr, pool, released_ns in await Sql(text).rows(
            connection, *parameters, limit
        )
    ]


def _filtered(
    text: str, parameters: list[object], node: str, owner: str, after: tuple[str, Address] | None
) -> tuple[str, list[object]]:
    """The statement with the filters, the place to go on from, the order and the limit."""
    if node:
        text += " AND a.node = ?"
        parameters.append(node)
    if owner:
        text += " AND a.owner = ?"
        parameters.append(owner)
    if after is not None:
        if node:
            text += " AND a.address > ?"
            parameters.append(after[1].packed)
        else:
            text += " AND (a.node, a.address) > (?, ?)"
            parameters += [after[0], after[1].packed]
    return text + " ORDER BY a.node, a.address LIMIT ?", parameters


def _allocation(row: Any, node: NodeCidrs) -> Allocation:
    """What one row of _OWNERS says."""
    name, owner, created_ns, *rest = row
    held: list[Held] = []
    pool = ""
    for packed, cidr in (rest[:2], rest[2:]):
        if packed is None:
            continue
        bounds = bounds_of(cidr)
        pool = node.pool_of(cidr)
        held.append(
            Held(address_from_packed(packed), bounds.network, node.router(bounds.family) or bounds.router)
        )
    return Allocation(name, owner, tuple(held), created_ns, pool)
