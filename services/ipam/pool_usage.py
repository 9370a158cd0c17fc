"""How full a pool is: counted in the database, in one snapshot with what it consists of."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import LargeBinary, Table, and_, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ipam.addresses import ROUTER_SLOT
from services.ipam.cidr import merged, span_of
from services.ipam.draining import Spans
from services.ipam.family import FAMILIES, Family
from services.ipam.model import DrainingCidr, Pool, PoolUsage
from services.ipam.schema import addresses, holds, node_cidrs

_USED = (
    select(node_cidrs.c.pool, func.count(node_cidrs.c.node.distinct()).label("used"))
    .where(node_cidrs.c.pool.in_(bindparam("names", expanding=True)))
    .group_by(node_cidrs.c.pool)
)
_CIDRS = select(node_cidrs.c.cidr, node_cidrs.c.family).where(node_cidrs.c.pool == bindparam("pool"))


def _in_draining(table: Table) -> Any:
    """The addresses of `table` in each draining CIDR of a node, of the pools that `names` lists."""
    return (
        select(table.c.cidr, func.count().label("addresses"))
        .join(node_cidrs, node_cidrs.c.cidr == table.c.cidr)
        .where(node_cidrs.c.pool.in_(bindparam("names", expanding=True)), node_cidrs.c.draining)
        .group_by(table.c.cidr)
    )


_DRAINING = select(node_cidrs.c.cidr, node_cidrs.c.family, node_cidrs.c.pool).where(
    node_cidrs.c.pool.in_(bindparam("names", expanding=True)), node_cidrs.c.draining
)
_HELD_IN_DRAINING = _in_draining(addresses)
_ON_HOLD_IN_DRAINING = _in_draining(holds)


def _of_pool(table: Table) -> Any:
    """How many addresses of `table` are of the pool and family."""
    return (
        select(func.count())
        .select_from(table)
        .join(node_cidrs, node_cidrs.c.cidr == table.c.cidr)
        .where(node_cidrs.c.pool == bindparam("pool"), node_cidrs.c.family == bindparam("family"))
    )


def _between(table: Table) -> Any:
    """The condition that an address of `table` lies between `start` and `end`, both packed."""
    return and_(
        table.c.family == bindparam("family"),
        table.c.address.between(bindparam("start", type_=LargeBinary), bindparam("end", type_=LargeBinary)),
    )


_HELD = _of_pool(addresses)
# What was released before `since` is on hold no longer, though it may not have been swept away.
_ON_HOLD = _of_pool(holds).where(holds.c.released_ns > bindparam("since"))
_HELD_EXCLUDED = _HELD.where(_between(addresses))
_ON_HOLD_EXCLUDED = _ON_HOLD.where(_between(holds))


async def with_counts(connection: AsyncConnection, pools: Sequence[Pool]) -> list[Pool]:
    """The pools with how many nodes use them, and what is left in their CIDRs that drain."""
    if not pools:
        return []
    names = {"names": [pool.name for pool in pools]}
    used = {row.pool: row.used for row in (await connection.execute(_USED, names)).all()}
    draining = [pool.name for pool in pools if pool.draining]
    counted = await _count_draining(connection, draining) if draining else {}
    return [
        replace(
            pool,
            used=used.get(pool.name, 0),
            draining=_counted(pool, counted.get(pool.name, [])),
        )
        for pool in pools
    ]


async def with_usage(connection: AsyncConnection, pool: Pool, *, since: int) -> Pool:
    """The pool with its counts and, for each of its families, how full it is.

    What was released at `since`, Unix time in nanoseconds, or earlier is on hold no longer.
    """
    (counted,) = await with_counts(connection, [pool])
    rows = (await connection.execute(_CIDRS, {"pool": pool.name})).all()
    spans = {family: [span_of(row.cidr) for row in rows if row.family == family] for family in FAMILIES}
    usage = [
        await _usage(connection, pool, family, spans[family], since)
        for family in FAMILIES
        if spans[family] or family in pool.families
    ]
    return replace(counted, usage=tuple(usage))


async def _usage(
    connection: AsyncConnection, pool: Pool, family: Family, held: Sequence[tuple[int, int]], since: int
) -> PoolUsage:
    """`held` are the CIDRs of the family that nodes hold, as spans of numbers."""
    of_pool = {"pool": pool.name, "family": family}
    counts = []
    excluded_spans = merged((span.first, span.last) for span in pool.excluded if span.family == family)
    for whole, part, more in (
        (_HELD, _HELD_EXCLUDED, {}),
        (_ON_HOLD, _ON_HOLD_EXCLUDED, {"since": since}),
    ):
        count = (await connection.execute(whole, {**of_pool, **more})).scalar_one()
        for first, last in excluded_spans if count else ():
            between = {"start": _packed(first, family), "end": _packed(last, family)}
            # What is excluded by now and held from before takes nothing from what is left to give.
            count -= (await connection.execute(part, {**of_pool, **more, **between})).scalar_one()
        counts.append(count)
    excluded, usable = _excluded(excluded_spans, family, held)
    return PoolUsage(
        family=family,
        node_cidrs_total=pool.node_cidrs_total(family),
        node_cidrs_used=len(held),
        capacity=usable - excluded,
        held=counts[0],
        on_hold=counts[1],
        excluded=excluded,
    )


def _excluded(
    spans: Sequence[tuple[int, int]], family: Family, held: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Of the addresses that pods could have in the CIDRs `held`: how many `spans` exclude, and all of them.

    `spans` are disjoint and ascending.
    """
    starts = [first for first, _ in spans]
    excluded = usable = 0
    for cidr_first, cidr_last in held:
        # Without network and router address, and IPv4's broadcast address; see addresses.AddressRange.
        first, last = cidr_first + ROUTER_SLOT + 1, cidr_last - (1 if family == 4 else 0)
        usable += last - first + 1
        at = max(bisect_right(starts, first) - 1, 0)
        while at < len(spans) and spans[at][0] <= last:
            excluded += max(0, min(spans[at][1], last) - max(spans[at][0], first) + 1)
            at += 1
    return excluded, usable


async def _count_draining(
    connection: AsyncConnection, names: Sequence[str]
) -> dict[str, list[tuple[Family, int, int]]]:
    """For each draining CIDR of nodes, by pool: its family, first address, addresses held and on hold."""
    counts: dict[str, int] = {}
    for statement in (_HELD_IN_DRAINING, _ON_HOLD_IN_DRAINING):
        for row in (await connection.execute(statement, {"names": names})).all():
            counts[row.cidr] = counts.get(row.cidr, 0) + row.addresses
    found: dict[str, list[tuple[Family, int, int]]] = {}
    for row in (await connection.execute(_DRAINING, {"names": names})).all():
        family: Family = 4 if row.family == 4 else 6
        found.setdefault(row.pool, []).append((family, span_of(row.cidr)[0], counts.get(row.cidr, 0)))
    return found


def _counted(pool: Pool, rows: Sequence[tuple[Family, int, int]]) -> tuple[DrainingCidr, ...]:
    """The draining CIDRs of `pool` with the counts of `rows`: family, first address, addresses held."""
    by_family = {
        family: Spans(one.network for one in pool.draining if one.network.version == family)
        for family in FAMILIES
    }
    cidrs: dict[object, int] = {}
    found: dict[object, int] = {}
    for family, first, count in rows:
        network = by_family[family].around(first)
        cidrs[network] = cidrs.get(network, 0) + 1
        found[network] = found.get(network, 0) + count
    return tuple(
        DrainingCidr(one.network, cidrs.get(one.network, 0), found.get(one.network, 0))
        for one in pool.draining
    )


def _packed(number: int, family: Family) -> bytes:
    return number.to_bytes(4 if family == 4 else 16, "big")
