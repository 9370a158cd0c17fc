"""Nodes in SQL; every change of one is an event of the node feed."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.ipam import problems
from services.ipam.draining import drop_drained, is_empty
from services.ipam.family import Address, Family, Network, of_family
from services.ipam.given import GivenCidrs
from services.ipam.growth import carve_from
from services.ipam.model import KUBERNETES_POOL, Mode, Node, NodeCidr, Pool
from services.ipam.node_rows import announce, decode_node, encode_node, insert_cidrs, read_node, read_nodes
from services.ipam.pool_rows import read_pool
from services.ipam.schema import addresses, node_cidrs, nodes

__all__ = ["NodeStore", "decode_node", "encode_node"]

_NODE_WITH_IPV4 = select(nodes.c.name).where(
    nodes.c.ipv4 == bindparam("address"), nodes.c.name != bindparam("name")
)
_NODE_WITH_IPV6 = select(nodes.c.name).where(
    nodes.c.ipv6 == bindparam("address"), nodes.c.name != bindparam("name")
)
_MOVE_NODE = update(nodes).where(nodes.c.name == bindparam("of_name"))
_HELD_ON = select(func.count()).select_from(addresses).where(addresses.c.node == bindparam("name"))
_DROP_CIDR = delete(node_cidrs).where(node_cidrs.c.cidr == bindparam("of_cidr"))
_POSITION = select(node_cidrs.c.position).where(node_cidrs.c.cidr == bindparam("of_cidr"))
_SET_POSITION = (
    update(node_cidrs)
    .where(node_cidrs.c.cidr == bindparam("of_cidr"))
    .values(position=bindparam("to_position"))
)
_USE_OF_POOL = (
    select(func.count(node_cidrs.c.cidr), func.max(nodes.c.created_ns))
    .join(nodes, nodes.c.name == node_cidrs.c.node)
    .where(node_cidrs.c.pool == bindparam("pool"), node_cidrs.c.family == bindparam("family"))
)


class NodeStore:
    """The nodes and the pod CIDRs that they hold. `clock` returns Unix time in nanoseconds."""

    def __init__(
        self, database: Database, feed: Feed, clock: Callable[[], int], *, mode: Mode = "cluster-pool"
    ) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._mode: Mode = mode

    async def register(
        self,
        name: str,
        ipv4: ipaddress.IPv4Address,
        pool: str,
        *,
        ipv6: ipaddress.IPv6Address | None = None,
        pod_cidrs: Sequence[Network] = (),
        trace: str,
    ) -> Node:
        """The node of that name, moved to the underlay addresses `ipv4` and `ipv6`.

        One that is new gets a CIDR of each family that `pool` has; one that is known gets others in the
        place of first CIDRs that drain and are empty. In mode kubernetes its CIDRs are `pod_cidrs` from now
        on, and `pool` does not matter. `trace` is the trace context of the change.

        Raises InvalidArgument (POD_CIDRS_MISSING, POD_CIDRS_UNEXPECTED, CIDR_INVALID, POOL_NAME_RESERVED),
        NotFound (POOL_NOT_FOUND), ResourceExhausted (POOL_EXHAUSTED), FailedPrecondition
        (NODE_POOL_CONFLICT, ADDRESS_IN_USE, CIDR_OVERLAP, CIDR_IN_USE).
        """
        created_ns = self._clock()
        given = None
        if self._mode == "kubernetes":
            given, pool = GivenCidrs(name, pod_cidrs), KUBERNETES_POOL
        elif pod_cidrs:
            raise problems.pod_cidrs_unexpected(pod_cidrs, self._mode)
        elif pool == KUBERNETES_POOL:
            raise problems.pool_reserved(pool, "pool")

        async def operation(connection: AsyncConnection) -> Node:
            present = await read_node(connection, name)
            if present is not None and present.pool != pool:
                raise problems.node_pool_conflict(name, present.pool, pool)
            moved = present is None or (present.ipv4, present.ipv6) != (ipv4, ipv6)
            if moved:
                await _check_underlay(connection, name, (ipv4, ipv6))
            if present is None:
                if given is not None:
                    await given.ensure_pool(connection, created_ns)
                    cidrs = []
                else:
                    cidrs = await _first_cidrs(connection, await _pool(connection, pool), name)
                await _add(connection, Node(name, ipv4, pool, (), created_ns, ipv6))
                await insert_cidrs(connection, name, cidrs, position=0)
            elif moved:
                await connection.execute(
                    _MOVE_NODE, {"of_name": name, "ipv4": str(ipv4), "ipv6": _text(ipv6)}
                )
            held = () if present is None else present.cidrs
            if given is not None:
                changed = await given.apply(connection, held)
            else:
                changed = present is not None and await _replace_drained(connection, present)
            if present is not None and not moved and not changed:
                return present
            return (await announce(connection, self._feed, [name], trace))[0]

        return await self._database.write(operation)

    async def get(self, name: str) -> Node:
        """The node of that name. Raises NotFound (NODE_NOT_FOUND)."""
        async with self._database.read() as connection:
            node = await read_node(connection, name)
        if node is None:
            raise problems.node_not_found(name)
        return node

    async def list(self, *, after: str, limit: int | None) -> tuple[Sequence[Node], int]:
        """Up to `limit` nodes by name past `after`, and the revision of the node feed that they show."""
        async with self._database.read() as connection:
            revision = await self._feed.revision_at(connection)
            return await read_nodes(connection, after=after, limit=limit), revision

    async def delete(self, name: str, *, force: bool, trace: str) -> None:
        """Declares the node gone, if it is there: its CIDRs go back, with what is on hold in them.

        Nothing else frees what a node holds, however long it has not been seen. Raises FailedPrecondition
        (NODE_IN_USE) when addresses are held on it; `force` frees them.
        """

        async def operation(connection: AsyncConnection) -> None:
            if await read_node(connection, name) is None:
                return
            held = (await connection.execute(_HELD_ON, {"name": name})).scalar_one()
            if held and not force:
                raise problems.node_in_use(name, held)
            if held:
                await connection.execute(delete(addresses).where(addresses.c.node == name))
            await connection.execute(delete(nodes).where(nodes.c.name == name))
            await drop_drained(connection)
            await self._feed.append(connection, name, b"", deleted=True, trace=trace)

        await self._database.write(operation)


async def _check_underlay(
    connection: AsyncConnection, name: str, wanted: tuple[Address, Address | None]
) -> None:
    for address, statement in zip(wanted, (_NODE_WITH_IPV4, _NODE_WITH_IPV6), strict=True):
        if address is None:
            continue
        holder = (await connection.execute(statement, {"address": str(address), "name": name})).scalar()
        if holder is not None:
            raise problems.node_address_in_use(address, holder, name)


async def _pool(connection: AsyncConnection, name: str) -> Pool:
    pool = await read_pool(connection, name)
    if pool is None:
        raise problems.pool_not_found(name)
    return pool


async def _add(connection: AsyncConnection, node: Node) -> None:
    """The node's row, without CIDRs; its revision comes with the announcement."""
    await connection.execute(
        insert(nodes),
        {
            "name": node.name,
            "ipv4": str(node.ipv4),
            "ipv6": _text(node.ipv6),
            "pool": node.pool,
            "created_ns": node.created_ns,
            "revision": 0,
        },
    )


async def _first_cidrs(connection: AsyncConnection, pool: Pool, node: str) -> list[NodeCidr]:
    """A free network of each family of `pool`, IPv4 first."""
    carved = []
    for family in pool.families:
        cidr = await carve_from(connection, pool, family, router=True)
        if cidr is None:
            used, since_ns = (
                await connection.execute(_USE_OF_POOL, {"pool": pool.name, "family": family})
            ).one()
            raise problems.pool_exhausted(
                pool.name,
                family,
                of_family(pool.cidrs, family),
                pool.mask_size(family),
                pool.node_cidrs_total(family),
                node,
                used=used,
                since_ns=since_ns,
            )
        carved.append(NodeCidr(cidr, pool.name))
    return carved


async def _replace_drained(connection: AsyncConnection, node: Node) -> bool:
    """Puts another CIDR in the place of each first one that drains and is empty; whether any was replaced.

    That moves the router address, which only a loader that has just registered can follow.
    """
    if not any(cidr.draining for cidr in node.cidrs):
        return False
    pool = await _pool(connection, node.pool)
    left = len(node.cidrs)
    changed = False
    for family in (4, 6):
        first = node.first(family)
        if first is None or not first.draining or not await is_empty(connection, first.network):
            continue
        successor = await _successor(connection, node, pool, family)
        # A family that the pool has given up goes from the node as well, unless it would be left with none.
        given_up = family not in pool.families and len(of_family(node.pod_cidrs, family)) == 1 and left > 1
        if successor is None and not given_up:
            continue
        position = (await connection.execute(_POSITION, {"of_cidr": str(first.network)})).scalar_one()
        await connection.execute(_DROP_CIDR, {"of_cidr": str(first.network)})
        if successor is None:
            left -= 1
        elif successor in node.cidrs:
            left -= 1
            await connection.execute(
                _SET_POSITION, {"of_cidr": str(successor.network), "to_position": position}
            )
        else:
            await insert_cidrs(connection, node.name, [successor], position=position)
        changed = True
    if changed:
        await drop_drained(connection)
    return changed


async def _successor(connection: AsyncConnection, node: Node, pool: Pool, family: Family) -> NodeCidr | None:
    """The CIDR that shall have the node's router address: one that it holds already, else a new one."""
    for cidr in node.cidrs:
        if cidr.network.version == family and cidr.pool == pool.name and not cidr.draining:
            return cidr
    carved = await carve_from(connection, pool, family, router=True)
    return None if carved is None else NodeCidr(carved, pool.name)


def _text(ipv6: ipaddress.IPv6Address | None) -> str | None:
    return None if ipv6 is None else str(ipv6)
