"""CIDRs of pools on their way out: which CIDRs of nodes that makes drain, and when they are gone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ipam.cidr import span_of
from services.ipam.exclusions import encode_spans, touches
from services.ipam.family import FAMILIES, Network
from services.ipam.model import Pool
from services.ipam.pool_rows import read_pool
from services.ipam.schema import addresses, holds, node_cidrs, pool_cidrs, pools

_OF_POOL = select(node_cidrs.c.cidr, node_cidrs.c.node, node_cidrs.c.draining, node_cidrs.c.family).where(
    node_cidrs.c.pool == bindparam("pool")
)
_MARK = (
    update(node_cidrs)
    .where(node_cidrs.c.cidr == bindparam("of_cidr"))
    .values(draining=bindparam("to_draining"))
)
_DRAINING = select(pool_cidrs.c.pool).where(pool_cidrs.c.draining).distinct().order_by(pool_cidrs.c.pool)
_DROP = delete(pool_cidrs).where(pool_cidrs.c.cidr == bindparam("of_cidr"))
_PRUNE = (
    update(pools)
    .where(pools.c.name == bindparam("of_name"))
    .values(excluded=bindparam("to_excluded"), revision=pools.c.revision + 1)
)
_HELD = select(addresses.c.address).where(addresses.c.cidr == bindparam("cidr")).limit(1)
_ON_HOLD = select(holds.c.address).where(holds.c.cidr == bindparam("cidr")).limit(1)


class Spans:
    """CIDRs that do not overlap, asked for the one that a number is in."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = sorted(networks, key=lambda network: int(network.network_address))
        self._starts = [int(network.network_address) for network in self._networks]

    def around(self, number: int) -> Network | None:
        """The CIDR with the address `number`, None when none has it."""
        at = bisect_right(self._starts, number) - 1
        if at < 0 or number > int(self._networks[at].broadcast_address):
            return None
        return self._networks[at]


async def mark_node_cidrs(connection: AsyncConnection, pool: Pool) -> set[str]:
    """Lets the nodes' CIDRs of `pool` drain or not as the pool's own do; returns the nodes concerned.

    The caller announces them.
    """
    in_service = {family: Spans(cidr for cidr in pool.cidrs if cidr.version == family) for family in FAMILIES}
    changes, concerned = [], set()
    for row in (await connection.execute(_OF_POOL, {"pool": pool.name})).all():
        draining = in_service[row.family].around(span_of(row.cidr)[0]) is None
        if draining != bool(row.draining):
            changes.append({"of_cidr": row.cidr, "to_draining": draining})
            concerned.add(row.node)
    if changes:
        await connection.execute(_MARK, changes)
    return concerned


async def drop_drained(connection: AsyncConnection) -> int:
    """Removes the CIDRs that drain and of which no node holds a part any more; returns how many those were.

    What a pool excludes of them alone goes as well. For use inside a write.
    """
    dropped = 0
    for name in (await connection.execute(_DRAINING)).scalars().all():
        pool = await read_pool(connection, name)
        assert pool is not None, "pool_cidrs has a foreign key"
        rows = (await connection.execute(_OF_POOL.where(node_cidrs.c.draining), {"pool": name})).all()
        networks = [one.network for one in pool.draining]
        by_family = {
            family: Spans(network for network in networks if network.version == family) for family in FAMILIES
        }
        used = {by_family[row.family].around(span_of(row.cidr)[0]) for row in rows}
        gone = [network for network in networks if network not in used]
        if not gone:
            continue
        dropped += len(gone)
        await connection.execute(_DROP, [{"of_cidr": str(network)} for network in gone])
        stay = [*pool.cidrs, *(network for network in networks if network in used)]
        excluded = [span for span in pool.excluded if touches(span, stay)]
        if len(excluded) != len(pool.excluded):
            await connection.execute(_PRUNE, {"of_name": name, "to_excluded": encode_spans(excluded)})
    return dropped


async def is_empty(connection: AsyncConnection, cidr: Network) -> bool:
    """Whether no address of the node's CIDR is held or on hold."""
    for statement in (_HELD, _ON_HOLD):
        if (await connection.execute(statement, {"cidr": str(cidr)})).first() is not None:
            return False
    return True
