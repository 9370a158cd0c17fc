"""Addresses in SQL. Allocation is the hot path: two statements when the next address in rotation is free."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Integer, LargeBinary, String, bindparam, delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.ipam import problems
from services.ipam.address_list import read_page
from services.ipam.addresses import AddressRange, first_gap
from services.ipam.family import FAMILIES, Address, Family, Network, address_from_packed, of_family
from services.ipam.model import AddressPair, Allocation, Held, Mode
from services.ipam.schema import addresses, node_cidrs

# How many held addresses one step of the search for a free one reads.
SEARCH_PAGE = 512
ANY = AddressPair()

# The address under the cursor of the node's first CIDR of each family. ON CONFLICT without a target covers
# every key: the owner has an address, or the address an owner. Written as text because SQLite and PostgreSQL
# agree on it word for word, which their SQLAlchemy constructs do not.
_TAKE_NEXT = text(
    "INSERT INTO addresses (node, owner, family, address, cidr, created_ns)"
    " SELECT c.node, :owner, c.family, c.next_address, c.cidr, :created_ns FROM node_cidrs AS c"
    " WHERE c.node = :node AND c.position ="
    " (SELECT min(f.position) FROM node_cidrs AS f WHERE f.node = c.node AND f.family = c.family)"
    " ON CONFLICT DO NOTHING RETURNING address, cidr,"
    " (SELECT count(DISTINCT f.family) FROM node_cidrs AS f WHERE f.node = :node) AS families"
).columns(address=LargeBinary, cidr=String, families=Integer)
_TAKE = (
    text(
        "INSERT INTO addresses (node, owner, family, address, cidr, created_ns)"
        " VALUES (:node, :owner, :family, :address, :cidr, :created_ns)"
        " ON CONFLICT DO NOTHING RETURNING family"
    )
    .bindparams(bindparam("address", type_=LargeBinary))
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
_HELD_BY_OWNER = select(
    addresses.c.family, addresses.c.address, addresses.c.cidr, addresses.c.created_ns
).where(addresses.c.node == bindparam("node"), addresses.c.owner == bindparam("owner"))
_HOLDER_OF = select(addresses.c.owner, addresses.c.node).where(addresses.c.address == bindparam("address"))
# The family matters: as bytes, addresses of the other one lie within the span as well.
_HELD_BETWEEN = (
    select(addresses.c.address)
    .where(
        addresses.c.address.between(bindparam("start"), bindparam("end")),
        addresses.c.family == bindparam("family"),
    )
    .order_by(addresses.c.address)
    .limit(SEARCH_PAGE)
)
_RELEASE = (
    delete(addresses)
    .where(addresses.c.node == bindparam("of_node"), addresses.c.owner == bindparam("of_owner"))
    .returning(addresses.c.address)
)


@dataclass(frozen=True, slots=True)
class _NodeCidr:
    """A CIDR of a node and the slot at which the search for a free address starts."""

    range: AddressRange
    cursor: int


@dataclass(frozen=True, slots=True)
class _Cidrs:
    """The CIDRs of one node, at least one, in the order of their positions."""

    node: str
    cidrs: Sequence[_NodeCidr]

    @property
    def networks(self) -> tuple[Network, ...]:
        return tuple(cidr.range.network for cidr in self.cidrs)

    def of(self, family: Family) -> list[_NodeCidr]:
        return [cidr for cidr in self.cidrs if cidr.range.network.version == family]


class AddressStore:
    """Who holds which address.

    `clock` returns Unix time in nanoseconds; `hold_seconds` is how long nobody gets an address after its
    release.
    """

    def __init__(
        self,
        database: Database,
        feed: Feed,
        clock: Callable[[], int],
        *,
        mode: Mode = "cluster-pool",
        hold_seconds: float = 0.0,
    ) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._mode = mode
        self._hold_seconds = hold_seconds

    async def allocate(self, node: str, owner: str, wanted: AddressPair = ANY) -> Allocation:
        """What `owner` has on `node`, an address of each family of the node, all of them or none.

        Of each family that is: what it has, else the one of `wanted`, else the next free one in rotation.
        Raises NotFound (NODE_NOT_FOUND), ResourceExhausted (CIDR_EXHAUSTED), AlreadyExists (ADDRESS_IN_USE,
        OWNER_HOLDS_ANOTHER), FailedPrecondition (ADDRESS_NOT_ON_NODE).
        """
        created_ns = self._clock()

        async def operation(connection: AsyncConnection) -> Allocation:
            if wanted == ANY:
                taken = await _take_next(connection, node, owner, created_ns)
                if taken is not None:
                    return taken
            return await _allocate_searching(connection, node, owner, wanted, created_ns)

        return await self._database.write(operation)

    async def release(self, node: str, owner: str) -> AddressPair:
        """Frees what `owner` holds on `node`; returns what that was."""

        async def operation(connection: AsyncConnection) -> AddressPair:
            rows = await connection.execute(_RELEASE, {"of_node": node, "of_owner": owner})
            return _pair([address_from_packed(packed) for packed in rows.scalars().all()])

        return await self._database.write(operation)

    async def list(
        self,
        *,
        node: str,
        owner: str,
        address: Address | None = None,
        after: tuple[str, Address] | None,
        limit: int,
    ) -> Sequence[Allocation]:
        """Up to `limit` allocations by (node, first address) past `after`.

        Empty `node` or `owner` means any; `address`, of either family, only who holds it.
        """
        async with self._database.read() as connection:
            return await read_page(
                connection, node=node, owner=owner, address=address, after=after, limit=limit
            )


async def _take_next(
    connection: AsyncConnection, node: str, owner: str, created_ns: int
) -> Allocation | None:
    """The addresses under the cursors of the node's CIDRs, or None when anything is in the way of one."""
    rows = (
        await connection.execute(_TAKE_NEXT, {"node": node, "owner": owner, "created_ns": created_ns})
    ).all()
    if not rows:
        return None
    taken = [_first_held(address_from_packed(row.address), ipaddress.ip_network(row.cidr)) for row in rows]
    await _move_cursors(connection, taken)
    if len(taken) < rows[0].families:
        return None
    return Allocation(node, owner, tuple(sorted(taken, key=_version)), created_ns)


async def _allocate_searching(
    connection: AsyncConnection, node: str, owner: str, wanted: AddressPair, created_ns: int
) -> Allocation:
    cidrs = await _cidrs_of(connection, node)
    present = {
        row.family: row
        for row in (await connection.execute(_HELD_BY_OWNER, {"node": node, "owner": owner})).all()
    }
    for family in FAMILIES:
        wish = wanted.of(family)
        if wish is None:
            continue
        if family in present and (other := address_from_packed(present[family].address)) != wish:
            raise problems.owner_holds_another(owner, node, other, wish)
        if not cidrs.of(family):
            raise problems.address_not_on_node(wish, node, cidrs.networks)
    result = []
    for family in FAMILIES:
        candidates = cidrs.of(family)
        if not candidates:
            continue
        router = candidates[0].range.router
        if family in present:
            row = present[family]
            held = Held(address_from_packed(row.address), ipaddress.ip_network(row.cidr), router)
            created_ns = min(created_ns, row.created_ns)
        else:
            held = await _take(connection, cidrs, family, owner, wanted.of(family), created_ns)
        result.append(held)
    return Allocation(node, owner, tuple(result), created_ns)


async def _take(
    connection: AsyncConnection,
    cidrs: _Cidrs,
    family: Family,
    owner: str,
    wish: Address | None,
    created_ns: int,
) -> Held:
    """Gives `owner` the address `wish`, or else the next free one of `family`."""
    candidates = cidrs.of(family)
    if wish is not None:
        bounds, address = await _check_wanted(connection, cidrs, wish), wish
    else:
        bounds, address = await _search(connection, cidrs, family)
    held = Held(address, bounds.network, candidates[0].range.router)
    inserted = await connection.execute(
        _TAKE,
        {
            "node": cidrs.node,
            "owner": owner,
            "family": family,
            "address": address.packed,
            "cidr": str(bounds.network),
            "created_ns": created_ns,
        },
    )
    if inserted.first() is None:
        # Only another replica can have come in between; the caller's retry sees what it left.
        raise problems.allocation_conflict(cidrs.node, owner)
    if wish is None:
        await _move_cursors(connection, [held])
    return held


async def _cidrs_of(connection: AsyncConnection, node: str) -> _Cidrs:
    rows = (await connection.execute(_CIDRS_OF_NODE, {"node": node})).all()
    if not rows:
        raise problems.node_not_found(node)
    found = []
    for row in rows:
        network = ipaddress.ip_network(row.cidr)
        cursor = int.from_bytes(row.next_address, "big") - int(network.network_address)
        found.append(_NodeCidr(AddressRange(network), cursor))
    return _Cidrs(node, found)


async def _check_wanted(connection: AsyncConnection, cidrs: _Cidrs, wish: Address) -> AddressRange:
    """The range that `wish` belongs to; raises unless a pod of the node may have it and nobody does."""
    bounds = next((cidr.range for cidr in cidrs.cidrs if cidr.range.slot(wish) is not None), None)
    if bounds is None:
        raise problems.address_not_on_node(wish, cidrs.node, cidrs.networks)
    holder = (await connection.execute(_HOLDER_OF, {"address": wish.packed})).first()
    if holder is not None:
        raise problems.address_in_use(wish, holder.owner, holder.node)
    return bounds


async def _search(connection: AsyncConnection, cidrs: _Cidrs, family: Family) -> tuple[AddressRange, Address]:
    """The next free address in rotation of the first CIDR of `family` that has one."""
    candidates = cidrs.of(family)
    for cidr in candidates:
        for start, end in cidr.range.rotation(cidr.cursor):
            slot = await _free_slot(connection, cidr.range, start, end)
            if slot is not None:
                return cidr.range, cidr.range.address(slot)
    capacity = sum(cidr.range.capacity for cidr in candidates)
    raise problems.cidr_exhausted(cidrs.node, family, of_family(cidrs.networks, family), capacity)


async def _free_slot(connection: AsyncConnection, bounds: AddressRange, start: int, end: int) -> int | None:
    base = int(bounds.network.network_address)
    while start <= end:
        span = {
            "start": bounds.address(start).packed,
            "end": bounds.address(end).packed,
            "family": bounds.network.version,
        }
        page: Sequence[Any] = (await connection.execute(_HELD_BETWEEN, span)).scalars().all()
        held = [int.from_bytes(packed, "big") - base for packed in page]
        slot = first_gap(start, held)
        if slot > end:
            return None
        if len(held) < SEARCH_PAGE or slot <= held[-1]:
            return slot
        start = slot
    return None


async def _move_cursors(connection: AsyncConnection, taken: Sequence[Held]) -> None:
    """Lets the next search in the CIDR of each of `taken` go on after it."""
    moves = []
    for held in taken:
        bounds = AddressRange(held.cidr)
        slot = int(held.address) - int(held.cidr.network_address)
        moves.append({"of_cidr": str(held.cidr), "to_address": bounds.address(bounds.after(slot)).packed})
    await connection.execute(_MOVE_CURSOR, moves)


def _first_held(address: Address, first_cidr: Network) -> Held:
    """`address` out of the node's first CIDR of the family, which is the one with the router."""
    return Held(address, first_cidr, AddressRange(first_cidr).router)


def _version(held: Held) -> int:
    return held.address.version


def _pair(found: Sequence[Address]) -> AddressPair:
    return AddressPair(
        ipv4=next((one for one in found if isinstance(one, ipaddress.IPv4Address)), None),
        ipv6=next((one for one in found if isinstance(one, ipaddress.IPv6Address)), None),
    )
