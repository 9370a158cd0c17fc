"""Pools and nodes in SQL; every change of a node is an event of the node feed."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.ipam import problems
from services.ipam.addresses import AddressRange
from services.ipam.cidr import capacity_of, carve, first_overlap
from services.ipam.model import Node, Pool
from services.ipam.schema import addresses, node_cidrs, nodes, pool_cidrs, pools

_POOL = select(pools).where(pools.c.name == bindparam("name"))
_POOLS = select(pools).where(pools.c.name > bindparam("after")).order_by(pools.c.name)
_POOL_CIDRS = select(pool_cidrs.c.cidr, pool_cidrs.c.pool)
_USED = select(node_cidrs.c.pool, func.count().label("used")).group_by(node_cidrs.c.pool)
_NODE = select(nodes).where(nodes.c.name == bindparam("name"))
_NODE_WITH_ADDRESS = select(nodes.c.name).where(nodes.c.ipv4 == bindparam("ipv4"))
_NODES = select(nodes).where(nodes.c.name > bindparam("after")).order_by(nodes.c.name)
_NODE_CIDRS = select(node_cidrs.c.cidr, node_cidrs.c.node).order_by(node_cidrs.c.node, node_cidrs.c.position)
_MOVE_NODE = update(nodes).where(nodes.c.name == bindparam("of_name"))


class PoolStore:
    """The pools that node CIDRs are carved from. `clock` returns Unix time in nanoseconds."""

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def create(self, pool: Pool) -> Pool:
        """Adds `pool`; one that is there with the same content is returned.

        Raises AlreadyExists (POOL_EXISTS), FailedPrecondition (CIDR_OVERLAP).
        """
        created_ns = self._clock()

        async def operation(connection: AsyncConnection) -> Pool:
            present = await _read_pool(connection, pool.name)
            if present is not None:
                if not present.same_as(pool):
                    raise problems.pool_exists(
                        pool.name, ", ".join(map(str, present.cidrs)), present.node_mask_size
                    )
                return present
            owners = {
                ipaddress.IPv4Network(row.cidr): str(row.pool)
                for row in (await connection.execute(_POOL_CIDRS)).all()
            }
            overlap = first_overlap(pool.cidrs, owners)
            if overlap is not None:
                raise problems.cidr_overlap(*overlap, pool.name, owners.get(overlap[1], pool.name))
            await connection.execute(
                insert(pools),
                {"name": pool.name, "node_mask_size": pool.node_mask_size, "created_ns": created_ns},
            )
            await connection.execute(
                insert(pool_cidrs),
                [
                    {"cidr": str(cidr), "pool": pool.name, "position": position}
                    for position, cidr in enumerate(pool.cidrs)
                ],
            )
            return replace(pool, used=0)

        return await self._database.write(operation)

    async def get(self, name: str) -> Pool:
        """The pool of that name. Raises NotFound (POOL_NOT_FOUND)."""
        async with self._database.read() as connection:
            pool = await _read_pool(connection, name)
        if pool is None:
            raise problems.pool_not_found(name)
        return pool

    async def list(self, *, after: str, limit: int) -> Sequence[Pool]:
        """Up to `limit` pools by name past `after`."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_POOLS.limit(limit), {"after": after})).all()
            return await _with_cidrs(connection, rows)

    async def delete(self, name: str) -> None:
        """Removes the pool, if it is there. Raises FailedPrecondition (POOL_IN_USE)."""

        async def operation(connection: AsyncConnection) -> None:
            holders = (
                await connection.execute(
                    select(func.count(), func.min(nodes.c.name)).where(nodes.c.pool == name)
                )
            ).one()
            if holders[0]:
                raise problems.pool_in_use(name, holders[0], holders[1])
            await connection.execute(delete(pools).where(pools.c.name == name))

        await self._database.write(operation)


class NodeStore:
    """The nodes and the pod CIDRs that they hold. `clock` returns Unix time in nanoseconds."""

    def __init__(self, database: Database, feed: Feed, clock: Callable[[], int]) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock

    async def register(self, name: str, ipv4: ipaddress.IPv4Address, pool: str, *, trace: str) -> Node:
        """The node of that name, made with a CIDR of `pool` if it is new, moved to `ipv4` otherwise.

        `trace` is the trace context of the change. Raises NotFound (POOL_NOT_FOUND), ResourceExhausted
        (POOL_EXHAUSTED), FailedPrecondition (NODE_POOL_CONFLICT, ADDRESS_IN_USE).
        """
        created_ns = self._clock()

        async def operation(connection: AsyncConnection) -> Node:
            present = await _read_node(connection, name)
            if present is not None and present.pool != pool:
                raise problems.node_pool_conflict(name, present.pool, pool)
            if present is not None and present.ipv4 == ipv4:
                return present
            holder = (await connection.execute(_NODE_WITH_ADDRESS, {"ipv4": str(ipv4)})).scalar()
            if holder is not None:
                raise problems.node_address_in_use(ipv4, holder, name)
            if present is not None:
                return await self._move(connection, replace(present, ipv4=ipv4), trace)
            return await self._add(connection, name, ipv4, pool, created_ns, trace)

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
            _MOVE_NODE, {"of_name": node.name, "ipv4": str(node.ipv4), "revision": revision}
        )
        return replace(node, revision=revision)

    async def _add(
        self,
        connection: AsyncConnection,
        name: str,
        ipv4: ipaddress.IPv4Address,
        pool_name: str,
        created_ns: int,
        trace: str,
    ) -> Node:
        pool = await _read_pool(connection, pool_name)
        if pool is None:
            raise problems.pool_not_found(pool_name)
        taken = (
            await connection.execute(select(node_cidrs.c.cidr).where(node_cidrs.c.pool == pool_name))
        ).scalars()
        cidr = carve(pool.cidrs, pool.node_mask_size, map(ipaddress.IPv4Network, taken))
        if cidr is None:
            raise problems.pool_exhausted(
                pool_name,
                ", ".join(map(str, pool.cidrs)),
                pool.node_mask_size,
                capacity_of(pool.cidrs, pool.node_mask_size),
                name,
            )
        node = Node(name, ipv4, pool_name, (cidr,), created_ns)
        revision = await self._feed.append(connection, name, encode_node(node), trace=trace)
        await connection.execute(
            insert(nodes),
            {
                "name": name,
                "ipv4": str(ipv4),
                "pool": pool_name,
                "created_ns": created_ns,
                "revision": revision,
            },
        )
        bounds = AddressRange(cidr)
        await connection.execute(
            insert(node_cidrs),
            {
                "cidr": str(cidr),
                "node": name,
                "pool": pool_name,
                "position": 0,
                "next_address": bounds.address(bounds.first).packed,
            },
        )
        return replace(node, revision=revision)


def encode_node(node: Node) -> bytes:
    """The payload of a node's event. The revision is left out: it is the event's own."""
    return orjson.dumps(
        {
            "ipv4": str(node.ipv4),
            "pool": node.pool,
            "pod_cidrs": [str(cidr) for cidr in node.pod_cidrs],
            "created_ns": node.created_ns,
        }
    )


def decode_node(name: str, payload: bytes, revision: int) -> Node:
    """The inverse of `encode_node`."""
    fields = orjson.loads(payload)
    return Node(
        name=name,
        ipv4=ipaddress.IPv4Address(fields["ipv4"]),
        pool=fields["pool"],
        pod_cidrs=tuple(ipaddress.IPv4Network(cidr) for cidr in fields["pod_cidrs"]),
        created_ns=fields["created_ns"],
        revision=revision,
    )


async def _read_pool(connection: AsyncConnection, name: str) -> Pool | None:
    rows = (await connection.execute(_POOL, {"name": name})).all()
    return next(iter(await _with_cidrs(connection, rows)), None)


async def _with_cidrs(connection: AsyncConnection, rows: Sequence[Any]) -> list[Pool]:
    if not rows:
        return []
    names = [row.name for row in rows]
    cidrs = (
        await connection.execute(
            _POOL_CIDRS.where(pool_cidrs.c.pool.in_(names)).order_by(pool_cidrs.c.pool, pool_cidrs.c.position)
        )
    ).all()
    used = {
        row.pool: row.used
        for row in (await connection.execute(_USED.where(node_cidrs.c.pool.in_(names)))).all()
    }
    by_pool = _group((row.pool, row.cidr) for row in cidrs)
    return [
        Pool(row.name, tuple(by_pool.get(row.name, ())), row.node_mask_size, used.get(row.name, 0))
        for row in rows
    ]


async def _read_node(connection: AsyncConnection, name: str) -> Node | None:
    rows = (await connection.execute(_NODE, {"name": name})).all()
    return next(iter(await _with_node_cidrs(connection, rows)), None)


async def _with_node_cidrs(connection: AsyncConnection, rows: Sequence[Any]) -> list[Node]:
    if not rows:
        return []
    # One range scan instead of an IN of every name: the rows are a run of names.
    statement = _NODE_CIDRS.where(node_cidrs.c.node.between(rows[0].name, rows[-1].name))
    by_node = _group((row.node, row.cidr) for row in (await connection.execute(statement)).all())
    return [
        Node(
            name=row.name,
            ipv4=ipaddress.IPv4Address(row.ipv4),
            pool=row.pool,
            pod_cidrs=tuple(by_node[row.name]),
            created_ns=row.created_ns,
            revision=row.revision,
        )
        for row in rows
    ]


def _group(pairs: Iterable[tuple[str, str]]) -> Mapping[str, list[ipaddress.IPv4Network]]:
    grouped: dict[str, list[ipaddress.IPv4Network]] = {}
    for key, cidr in pairs:
        grouped.setdefault(key, []).append(ipaddress.IPv4Network(cidr))
    return grouped
