"""Pools as rows: reading what one consists of, on whatever connection is at hand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_network
from typing import Any

from sqlalchemy import bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ipam.exclusions import Span, decode_spans
from services.ipam.family import Network
from services.ipam.model import DrainingCidr, Pool, PoolSelectors
from services.ipam.schema import pool_cidrs, pools
from services.ipam.selectors import decode_selector

_POOL = select(pools).where(pools.c.name == bindparam("name"))
_POOLS = (
    select(pools).where(pools.c.name > bindparam("after")).order_by(pools.c.name).limit(bindparam("most"))
)
_CIDRS = (
    select(pool_cidrs.c.pool, pool_cidrs.c.cidr, pool_cidrs.c.draining)
    .where(pool_cidrs.c.pool.in_(bindparam("names", expanding=True)))
    .order_by(pool_cidrs.c.pool, pool_cidrs.c.position)
)
_SELECTORS = (
    select(pools.c.name, pools.c.pod_selector, pools.c.namespace_selector)
    .where(or_(pools.c.pod_selector.is_not(None), pools.c.namespace_selector.is_not(None)))
    .order_by(pools.c.name)
)
_EXCLUDED = select(pools.c.name, pools.c.excluded).where(
    pools.c.name.in_(bindparam("names", expanding=True)), pools.c.excluded != "[]"
)


async def read_pool(connection: AsyncConnection, name: str) -> Pool | None:
    """The pool of that name as `connection` sees it, None when there is none; nothing is counted."""
    rows = (await connection.execute(_POOL, {"name": name})).all()
    return next(iter(await _with_cidrs(connection, rows)), None)


async def read_pools(connection: AsyncConnection, *, after: str, limit: int) -> list[Pool]:
    """Up to `limit` pools by name past `after`; nothing is counted."""
    rows = (await connection.execute(_POOLS, {"after": after, "most": limit})).all()
    return await _with_cidrs(connection, rows)


async def read_selectors(connection: AsyncConnection) -> Sequence[PoolSelectors]:
    """The pools that choose workloads, by name."""
    return [
        PoolSelectors(row.name, decode_selector(row.pod_selector), decode_selector(row.namespace_selector))
        for row in (await connection.execute(_SELECTORS)).all()
    ]


async def read_exclusions(
    connection: AsyncConnection, pools: Collection[str]
) -> Mapping[str, Sequence[Span]]:
    """What each of `pools` excludes; a pool that excludes nothing is left out."""
    if not pools:
        return {}
    rows = (await connection.execute(_EXCLUDED, {"names": list(pools)})).all()
    return {row.name: decode_spans(row.excluded) for row in rows}


async def _with_cidrs(connection: AsyncConnection, rows: Sequence[Any]) -> list[Pool]:
    if not rows:
        return []
    in_service: dict[str, list[Network]] = {}
    draining: dict[str, list[DrainingCidr]] = {}
    for row in (await connection.execute(_CIDRS, {"names": [row.name for row in rows]})).all():
        if row.draining:
            draining.setdefault(row.pool, []).append(DrainingCidr(ip_network(row.cidr)))
        else:
            in_service.setdefault(row.pool, []).append(ip_network(row.cidr))
    return [
        Pool(
            row.name,
            tuple(in_service.get(row.name, ())),
            row.node_mask_size,
            row.node_mask_size_ipv6,
            excluded=decode_spans(row.excluded),
            pod_selector=decode_selector(row.pod_selector),
            namespace_selector=decode_selector(row.namespace_selector),
            draining=tuple(draining.get(row.name, ())),
            revision=row.revision,
        )
        for row in rows
    ]
