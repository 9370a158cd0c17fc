"""Reading who holds which address, a page at a time: one row an owner, both families side by side."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import and_, bindparam, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ipam.addresses import AddressRange
from services.ipam.family import Address, Network, address_from_packed
from services.ipam.model import Allocation, Held
from services.ipam.schema import addresses, node_cidrs

# Below the least limit on variables of one statement that any supported SQLite has.
CHUNK: Final = 500

# An owner is one row: its address of the node's first family, and beside it the one of the other.
_first_cidr = node_cidrs.alias("first_cidr")
_other = addresses.alias("other")
_holding = addresses.alias("holding")
_LIST = (
    select(
        addresses.c.address,
        addresses.c.node,
        addresses.c.owner,
        addresses.c.cidr,
        addresses.c.created_ns,
        _other.c.address.label("other_address"),
        _other.c.cidr.label("other_cidr"),
    )
    .join(
        _first_cidr,
        and_(
            _first_cidr.c.node == addresses.c.node,
            _first_cidr.c.position == 0,
            _first_cidr.c.family == addresses.c.family,
        ),
    )
    .outerjoin(
        _other,
        and_(
            _other.c.node == addresses.c.node,
            _other.c.owner == addresses.c.owner,
            _other.c.family != addresses.c.family,
        ),
    )
    .order_by(addresses.c.node, addresses.c.address)
)
_CIDRS_OF_NODES = (
    select(node_cidrs.c.node, node_cidrs.c.cidr)
    .where(node_cidrs.c.node.in_(bindparam("nodes", expanding=True)))
    .order_by(node_cidrs.c.node, node_cidrs.c.position)
)


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
    statement = _LIST.limit(limit)
    if node:
        statement = statement.where(addresses.c.node == node)
    if owner:
        statement = statement.where(addresses.c.owner == owner)
    if address is not None:
        holder = select(_holding.c.node, _holding.c.owner).where(_holding.c.address == address.packed)
        statement = statement.where(tuple_(addresses.c.node, addresses.c.owner).in_(holder))
    if after is not None:
        statement = statement.where(
            tuple_(addresses.c.node, addresses.c.address) > tuple_(after[0], after[1].packed)
        )
    rows = (await connection.execute(statement)).all()
    cidrs = await _networks_of(connection, sorted({row.node for row in rows}))
    return [_allocation(row, cidrs[row.node]) for row in rows]


async def _networks_of(connection: AsyncConnection, nodes: Sequence[str]) -> dict[str, list[Network]]:
    found: dict[str, list[Network]] = {node: [] for node in nodes}
    for start in range(0, len(nodes), CHUNK):
        chunk = nodes[start : start + CHUNK]
        for row in (await connection.execute(_CIDRS_OF_NODES, {"nodes": chunk})).all():
            found[row.node].append(ipaddress.ip_network(row.cidr))
    return found


def _allocation(row: Any, cidrs: Sequence[Network]) -> Allocation:
    """What one row of _LIST says; `cidrs` are all CIDRs of its node."""
    held = []
    for packed, cidr in ((row.address, row.cidr), (row.other_address, row.other_cidr)):
        if packed is not None:
            address = address_from_packed(packed)
            first = next(one for one in cidrs if one.version == address.version)
            held.append(Held(address, ipaddress.ip_network(cidr), AddressRange(first).router))
    return Allocation(row.node, row.owner, tuple(held), row.created_ns)
