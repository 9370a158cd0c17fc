"""Nodes in SQL; every change of one is an event of the node feed."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.ipam import problems
from services.ipam.addresses import AddressRange
from services.ipam.cidr import capacity_of, carve
from services.ipam.family import Network, of_family
from services.ipam.model import Node, Pool
from services.ipam.pool_store import read_pool
from services.ipam.schema import addresses, node_cidrs, nodes

_NODE = select(nodes).where(nodes.c.name == bindparam("name"))
_NODE_WITH_IPV4 = select(nodes.c.name).where(
    nodes.c.ipv4 == bindparam("address"), nodes.c.name != bindparam("name")
)
_NODE_WITH_IPV6 = select(nodes.c.name).where(
    nodes.c.ipv6 == bindparam("address"), nodes.c.name != bindparam("name")
)
_NODES = select(nodes).where(nodes.c.name > bindparam("after")).order_by(nodes.c.name)
_NODE_CIDRS = select(node_cidrs.c.cidr, node_cidrs.c.node).order_by(node_cidrs.c.node, node_cidrs.c.position)
_MOVE_NODE = update(nodes).where(nodes.c.name == bindparam("of_name"))


class NodeStore:
    """The nodes and the pod CIDRs that they hold. `clock` returns Unix time in nanoseconds."""

    def __init__(self, database: Database, feed: Feed, clock: Callable[[], int]) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock

    async def register(
        self,
        name: str,
        ipv4: ipaddress.IPv4Address,
        pool: str,
        *,
        ipv6: ipaddress.IPv6Address | None = None,
        trace: str,
    ) -> Node:
        """The node of that name, moved to the underlay addresses `ipv4` and `ipv6`.

        One that is new gets a CIDR of each family that `pool` has. `trace` is the trace context of the
        change. Raises NotFound (POOL_NOT_FOUND), ResourceExhausted
        (POOL_EXHAUSTED), FailedPrecondition (NODE_POOL_CONFLICT, ADDRESS_IN_USE).
        """
        created_ns = self._clock()

        async def operation(connection: AsyncConnection) -> Node:
            present = await _read_node(connection, name)
            if present is not None and present.pool != pool:
                raise problems.node_pool_conflict(name, present.pool, pool)
            if present is not None and (present.ipv4, present.ipv6) == (ipv4, ipv6):
                return present
            for address, statement in ((ipv4, _NODE_WITH_IPV4), (ipv6, _NODE_WITH_IPV6)):
                if address is None:
                    continue
                who = {"address": str(address), "name": name}
                holder = (await connection.execute(statement, who)).scalar()
                if holder is not None:
                    raise problems.node_address_in_use(address, holder, name)
            if present is not None:
                return await self._move(connection, replace(present, ipv4=ipv4, ipv6=ipv6), trace)
            chosen = await read_pool(connection, pool)
            if chosen is None:
                raise problems.pool_not_found(pool)
            cidrs = await _carve_each(connection, chosen, name)
            return await self._add(connection, Node(name, ipv4, pool, cidrs, created_ns, ipv6), trace)

        return await self._database.write(operation)

    async def get(self, name: str) -> Node:
        """The node of that name. Raises NotFound (NODE_NOT_FOUND)."""
        async with self._database.read() as connection:
            node = await _read_node(connection, name)
        if node is None:
            raise problems.node_not_found(name)
        return node

    async def list(self, *, after: str, limit: int | None) -> tuple[Sequence[Node], int]:
        """Up to `limit` nodes by name past `after`, and the revision of the node feed that they show."""
        async with self._database.read() as connection:
            revision = await self._feed.revision_at(connection)
            rows = (await connection.execute(_NODES.limit(limit), {"after": after})).all()
            return await _with_node_cidrs(connection, rows), revision

    async def delete(self, name: str, *, force: bool, trace: str) -> None:
        """Removes the node, if it is there, and gives its CIDRs back.

        Raises FailedPrecondition (NODE_IN_USE) when addresses are held on it; `force` frees them.
        """

        async def operation(connection: AsyncConnection) -> None:
            if await _read_node(connection, name) is None:
                return
            held = (
                await connection.execute(
                    select(func.count()).select_from(addresses).where(addresses.c.node == name)
                )
            ).scalar_one()
            if held and not force:
                raise problems.node_in_use(name, held)
            if held:
                await connection.execute(delete(addresses).where(addresses.c.node == name))
            await connection.execute(delete(nodes).where(nodes.c.name == name))
            await self._feed.append(connection, name, b"", deleted=True, trace=trace)

        await self._database.write(operation)

    async def _move(self, connection: AsyncConnection, node: Node, trace: str) -> Node:
        revision = await self._feed.append(connection, node.name, encode_node(node), trace=trace)
        await connection.execute(
            _MOVE_NODE,
            {
                "of_name": node.name,
                "ipv4": str(node.ipv4),
                "ipv6": _text(node.ipv6),
                "revision": revision,
            },
        )
        return replace(node, revision=revision)

    async def _add(self, connection: AsyncConnection, node: Node, trace: str) -> Node:
        revision = await self._feed.append(connection, node.name, encode_node(node), trace=trace)
        await connection.execute(
            insert(nodes),
            {
                "name": node.name,
                "ipv4": str(node.ipv4),
                "ipv6": _text(node.ipv6),
                "pool": node.pool,
                "created_ns": node.created_ns,
                "revision": revision,
            },
        )
        ranges = [AddressRange(cidr) for cidr in node.pod_cidrs]
        await connection.execute(
            insert(node_cidrs),
            [
                {
                    "cidr": str(bounds.network),
                    "node": node.name,
                    "pool": node.pool,
                    "position": position,
                    "next_address": bounds.address(bounds.first).packed,
                    "family": bounds.network.version,
                }
                for position, bounds in enumerate(ranges)
            ],
        )
        return replace(node, revision=revision)


async def _carve_each(connection: AsyncConnection, pool: Pool, node: str) -> tuple[Network, ...]:
    """A free network of each family of `pool`, IPv4 first."""
    statement = select(node_cidrs.c.cidr).where(node_cidrs.c.pool == pool.name)
    taken = [ipaddress.ip_network(text) for text in (await connection.execute(statement)).scalars()]
    carved = []
    for family in pool.families:
        cidrs, mask_size = of_family(pool.cidrs, family), pool.mask_size(family)
        cidr = carve(cidrs, mask_size, of_family(taken, family))
        if cidr is None:
            total = capacity_of(cidrs, mask_size)
            raise problems.pool_exhausted(pool.name, family, cidrs, mask_size, total, node)
        carved.append(cidr)
    return tuple(carved)


def encode_node(node: Node) -> bytes:
    """The payload of a node's event. The revision is left out: it is the event's own."""
    return orjson.dumps(
        {
            "ipv4": str(node.ipv4),
            "ipv6": _text(node.ipv6),
            "pool": node.pool,
            "pod_cidrs": [str(cidr) for cidr in node.pod_cidrs],
            "created_ns": node.created_ns,
        }
    )


def decode_node(name: str, payload: bytes, revision: int) -> Node:
    """The inverse of `encode_node`, also of payloads from before nodes had `ipv6`."""
    fields = orjson.loads(payload)
    ipv6 = fields.get("ipv6")
    return Node(
        name=name,
        ipv4=ipaddress.IPv4Address(fields["ipv4"]),
        pool=fields["pool"],
        pod_cidrs=tuple(ipaddress.ip_network(cidr) for cidr in fields["pod_cidrs"]),
        created_ns=fields["created_ns"],
        ipv6=ipaddress.IPv6Address(ipv6) if ipv6 else None,
        revision=revision,
    )


async def _read_node(connection: AsyncConnection, name: str) -> Node | None:
    rows = (await connection.execute(_NODE, {"name": name})).all()
    return next(iter(await _with_node_cidrs(connection, rows)), None)


async def _with_node_cidrs(connection: AsyncConnection, rows: Sequence[Any]) -> list[Node]:
    if not rows:
        return []
    # One range scan instead of an IN of every name: the rows are a run of names.
    statement = _NODE_CIDRS.where(node_cidrs.c.node.between(rows[0].name, rows[-1].name))
    by_node: dict[str, list[Network]] = {}
    for row in (await connection.execute(statement)).all():
        by_node.setdefault(row.node, []).append(ipaddress.ip_network(row.cidr))
    return [
        Node(
            name=row.name,
            ipv4=ipaddress.IPv4Address(row.ipv4),
            pool=row.pool,
            pod_cidrs=tuple(by_node[row.name]),
            created_ns=row.created_ns,
            ipv6=ipaddress.IPv6Address(row.ipv6) if row.ipv6 else None,
            revision=row.revision,
        )
        for row in rows
    ]


def _text(ipv6: ipaddress.IPv6Address | None) -> str | None:
    return None if ipv6 is None else str(ipv6)
