"""Pools in SQL."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.ipam import problems
from services.ipam.cidr import first_overlap
from services.ipam.family import Network
from services.ipam.model import Pool
from services.ipam.schema import node_cidrs, nodes, pool_cidrs, pools

_POOL = select(pools).where(pools.c.name == bindparam("name"))
_POOLS = select(pools).where(pools.c.name > bindparam("after")).order_by(pools.c.name)
_POOL_CIDRS = select(pool_cidrs.c.cidr, pool_cidrs.c.pool)
_USED = select(node_cidrs.c.pool, func.count(node_cidrs.c.node.distinct()).label("used")).group_by(
    node_cidrs.c.pool
)


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
            present = await read_pool(connection, pool.name)
            if present is not None:
                if not present.same_as(pool):
                    masks = {family: present.mask_size(family) for family in present.families}
                    raise problems.pool_exists(pool.name, present.cidrs, masks)
                return present
            owners = {
                ipaddress.ip_network(row.cidr): str(row.pool)
                for row in (await connection.execute(_POOL_CIDRS)).all()
            }
            overlap = first_overlap(pool.cidrs, owners)
            if overlap is not None:
                raise problems.cidr_overlap(*overlap, pool.name, owners.get(overlap[1], pool.name))
            await connection.execute(
                insert(pools),
                {
                    "name": pool.name,
                    "node_mask_size": pool.node_mask_size,
                    "node_mask_size_ipv6": pool.node_mask_size_ipv6,
                    "created_ns": created_ns,
                },
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
            pool = await read_pool(connection, name)
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


async def read_pool(connection: AsyncConnection, name: str) -> Pool | None:
    """The pool of that name as `connection` sees it, None when there is none."""
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
    by_pool: dict[str, list[Network]] = {}
    for row in cidrs:
        by_pool.setdefault(row.pool, []).append(ipaddress.ip_network(row.cidr))
    return [
        Pool(
            row.name,
            tuple(by_pool[row.name]),
            row.node_mask_size,
            row.node_mask_size_ipv6,
            used.get(row.name, 0),
        )
        for row in rows
    ]
