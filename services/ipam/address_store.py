"""Addresses in SQL. Allocation is the hot path: two statements when the next address in rotation is free."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Integer, LargeBinary, String, and_, bindparam, delete, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.ipam import problems
from services.ipam.addresses import AddressRange, first_gap
from services.ipam.model import Allocation
from services.ipam.schema import addresses, node_cidrs

FAMILY = 4
# How many held addresses one step of the search for a free one reads.
SEARCH_PAGE = 512

# ON CONFLICT without a target covers every key: the owner has an address, or the address an owner. Written
# as text because SQLite and PostgreSQL agree on it word for word, which their SQLAlchemy constructs do not.
_TAKE_NEXT = (
    text(
        "INSERT INTO addresses (node, owner, family, address, cidr, created_ns)"
        " SELECT node, :owner, :family, next_address, cidr, :created_ns FROM node_cidrs"
        " WHERE node = :node ORDER BY position LIMIT 1"
        " ON CONFLICT DO NOTHING RETURNING address, cidr"
    )
    .bindparams(bindparam("family", FAMILY))
    .columns(address=LargeBinary, cidr=String)
)
_TAKE = (
    text(
        "INSERT INTO addresses (node, owner, family, address, cidr, created_ns)"
        " VALUES (:node, :owner, :family, :address, :cidr, :created_ns)"
        " ON CONFLICT DO NOTHING RETURNING family"
    )
    .bindparams(bindparam("family", FAMILY), bindparam("address", type_=LargeBinary))
    .columns(family=Integer)
)
_MOVE_CURSOR = (
    update(node_cidrs)
    .where(node_cidrs.c.cidr == bindparam("of_cidr"))
    .values(next_address=bindparam("to_address"))
)
_CIDRS_OF_NODE = (
    select(node_cidrs.c.cidr, node_cidrs.c.next_address)
    .where(node_cidrs.c.node == bindparam("node"))
    .order_by(node_cidrs.c.position)
)
_HELD_BY_OWNER = select(addresses.c.address, addresses.c.cidr, addresses.c.created_ns).where(
    addresses.c.node == bindparam("node"),
    addresses.c.owner == bindparam("owner"),
    addresses.c.family == FAMILY,
)
_HOLDER_OF = select(addresses.c.owner, addresses.c.node).where(addresses.c.address == bindparam("address"))
_HELD_BETWEEN = (
    select(addresses.c.address)
    .where(addresses.c.address.between(bindparam("start"), bindparam("end")))
    .order_by(addresses.c.address)
    .limit(SEARCH_PAGE)
)
_RELEASE = (
    delete(addresses)
    .where(
        addresses.c.node == bindparam("of_node"),
        addresses.c.owner == bindparam("of_owner"),
        addresses.c.family == FAMILY,
    )
    .returning(addresses.c.address)
)
_first_cidr = node_cidrs.alias("first_cidr")
_LIST = (
    select(
        addresses.c.address,
        addresses.c.node,
        addresses.c.owner,
        addresses.c.cidr,
        addresses.c.created_ns,
        _first_cidr.c.cidr.label("first_cidr"),
    )
    .join(_first_cidr, and_(_first_cidr.c.node == addresses.c.node, _first_cidr.c.position == 0))
    .order_by(addresses.c.node, addresses.c.address)
)


@dataclass(frozen=True, slots=True)
class _NodeCidr:
    """A CIDR of a node and the slot at which the search for a free address starts."""

    range: AddressRange
    cursor: int


class AddressStore:
    """Who holds which address.

    `clock` returns Unix time in nanoseconds.
    """

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def allocate(self, node: str, owner: str, wanted: ipaddress.IPv4Address | None) -> Allocation:
        """The address of `owner` on `node`: what it has, else `wanted`, else the next free one in rotation.

        Raises NotFound (NODE_NOT_FOUND), ResourceExhausted (CIDR_EXHAUSTED), AlreadyExists (ADDRESS_IN_USE,
        OWNER_HOLDS_ANOTHER), FailedPrecondition (ADDRESS_NOT_ON_NODE).
        """
        created_ns = self._clock()

        async def operation(connection: AsyncConnection) -> Allocation:
            if wanted is None:
                taken = await _take_next(connection, node, owner, created_ns)
                if taken is not None:
                    return taken
            return await _allocate_searching(connection, node, owner, wanted, created_ns)

        return await self._database.write(operation)

    async def release(self, node: str, owner: str) -> ipaddress.IPv4Address | None:
        """Frees what `owner` holds on `node`; the address, or None when it held none."""

        async def operation(connection: AsyncConnection) -> ipaddress.IPv4Address | None:
            row = (await connection.execute(_RELEASE, {"of_node": node, "of_owner": owner})).first()
            return None if row is None else ipaddress.IPv4Address(row.address)

        return await self._database.write(operation)

    async def list(
        self, *, node: str, owner: str, after: tuple[str, ipaddress.IPv4Address] | None, limit: int
    ) -> Sequence[Allocation]:
        """Up to `limit` allocations by (node, address) past `after`; empty `node` or `owner` means any."""
        statement = _LIST.limit(limit)
        if node:
            statement = statement.where(addresses.c.node == node)
        if owner:
            statement = statement.where(addresses.c.owner == owner)
        if after is not None:
            statement = statement.where(
                tuple_(addresses.c.node, addresses.c.address) > tuple_(after[0], after[1].packed)
            )
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [
            Allocation(
                address=ipaddress.IPv4Address(row.address),
                node=row.node,
                owner=row.owner,
                cidr=ipaddress.IPv4Network(row.cidr),
                router_ipv4=AddressRange(ipaddress.IPv4Network(row.first_cidr)).router,
                created_ns=row.created_ns,
            )
            for row in rows
        ]


async def _take_next(
    connection: AsyncConnection, node: str, owner: str, created_ns: int
) -> Allocation | None:
    """The address under the cursor of the node's first CIDR, or None when anything is in the way."""
    row = (
        await connection.execute(_TAKE_NEXT, {"node": node, "owner": owner, "created_ns": created_ns})
    ).first()
    if row is None:
        return None
    bounds = AddressRange(ipaddress.IPv4Network(row.cidr))
    address = ipaddress.IPv4Address(row.address)
    await _move_cursor(connection, bounds, address)
    return Allocation(address, node, owner, bounds.network, bounds.router, created_ns)


async def _allocate_searching(
    connection: AsyncConnection,
    node: str,
    owner: str,
    wanted: ipaddress.IPv4Address | None,
    created_ns: int,
) -> Allocation:
    cidrs = await _cidrs_of(connection, node)
    router = cidrs[0].range.router
    held = (await connection.execute(_HELD_BY_OWNER, {"node": node, "owner": owner})).first()
    if held is not None:
        address = ipaddress.IPv4Address(held.address)
        if wanted is not None and address != wanted:
            raise problems.owner_holds_another(owner, node, address, wanted)
        return Allocation(address, node, owner, ipaddress.IPv4Network(held.cidr), router, held.created_ns)
    if wanted is not None:
        bounds, address = await _check_wanted(connection, node, cidrs, wanted), wanted
    else:
        bounds, address = await _search(connection, node, cidrs)
    inserted = await connection.execute(
        _TAKE,
        {
            "node": node,
            "owner": owner,
            "address": address.packed,
            "cidr": str(bounds.network),
            "created_ns": created_ns,
        },
    )
    if inserted.first() is None:
        # Only another replica can have come in between; the caller's retry sees what it left.
        raise problems.allocation_conflict(node, owner)
    if wanted is None:
        await _move_cursor(connection, bounds, address)
    return Allocation(address, node, owner, bounds.network, router, created_ns)


async def _cidrs_of(connection: AsyncConnection, node: str) -> list[_NodeCidr]:
    rows = (await connection.execute(_CIDRS_OF_NODE, {"node": node})).all()
    if not rows:
        raise problems.node_not_found(node)
    found = []
    for row in rows:
        network = ipaddress.IPv4Network(row.cidr)
        cursor = int.from_bytes(row.next_address, "big") - int(network.network_address)
        found.append(_NodeCidr(AddressRange(network), cursor))
    return found


async def _check_wanted(
    connection: AsyncConnection, node: str, cidrs: Sequence[_NodeCidr], wanted: ipaddress.IPv4Address
) -> AddressRange:
    """The range that `wanted` belongs to; raises unless a pod of the node may have it and nobody does."""
    bounds = next((cidr.range for cidr in cidrs if cidr.range.slot(wanted) is not None), None)
    if bounds is None:
        raise problems.address_not_on_node(wanted, node, _text(cidrs))
    holder = (await connection.execute(_HOLDER_OF, {"address": wanted.packed})).first()
    if holder is not None:
        raise problems.address_in_use(wanted, holder.owner, holder.node)
    return bounds


async def _search(
    connection: AsyncConnection, node: str, cidrs: Sequence[_NodeCidr]
) -> tuple[AddressRange, ipaddress.IPv4Address]:
    """The next free address in rotation of the first CIDR that has one."""
    for cidr in cidrs:
        for start, end in cidr.range.rotation(cidr.cursor):
            slot = await _free_slot(connection, cidr.range, start, end)
            if slot is not None:
                return cidr.range, cidr.range.address(slot)
    raise problems.cidr_exhausted(node, _text(cidrs), sum(cidr.range.capacity for cidr in cidrs))


async def _free_slot(connection: AsyncConnection, bounds: AddressRange, start: int, end: int) -> int | None:
    base = int(bounds.network.network_address)
    while start <= end:
        span = {"start": bounds.address(start).packed, "end": bounds.address(end).packed}
        page: Sequence[Any] = (await connection.execute(_HELD_BETWEEN, span)).scalars().all()
        held = [int.from_bytes(packed, "big") - base for packed in page]
        slot = first_gap(start, held)
        if slot > end:
            return None
        if len(held) < SEARCH_PAGE or slot <= held[-1]:
            return slot
        start = slot
    return None


async def _move_cursor(
    connection: AsyncConnection, bounds: AddressRange, taken: ipaddress.IPv4Address
) -> None:
    slot = int(taken) - int(bounds.network.network_address)
    await connection.execute(
        _MOVE_CURSOR,
        {"of_cidr": str(bounds.network), "to_address": bounds.address(bounds.after(slot)).packed},
    )


def _text(cidrs: Sequence[_NodeCidr]) -> str:
    return ", ".join(str(cidr.range.network) for cidr in cidrs)
