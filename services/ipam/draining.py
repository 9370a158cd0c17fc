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


async def draining_pools(connection: AsyncConnection) -> list[Pool]:
    """The pools that have CIDRs on their way out."""
    found = []
    for name in (await connection.execute(_DRAINING)).scalars().all():
        pool = await read_pool(connection, name)
        assert pool is not None, "pool_cidrs has a foreign key"
        found.append(pool)
    return found


async def wrongly_marked(connection: AsyncConnection, pool: Pool) -> dict[str, tuple[str, bool]]:
    """The nodes' CIDRs of `pool` that drain and should not, or the reverse: the node and how it should be.

    There are some after a change of the pool only, or when a replica of a version that knows nothing of
    draining has carved one.
    """
    in_service = {family: Spans(cidr for cidr in pool.cidrs if cidr.version == family) for family in FAMILIES}
    found = {}
    for row in (await connection.execute(_OF_POOL, {"pool": pool.name})).all():
        draining = in_service[row.family].around(span_of(row.cidr)[0]) is None
        if draining != bool(row.draining):
            found[row.cidr] = (row.node, draining)
    return found


async def mark_node_cidrs(connection: AsyncConnection, pool: Pool) -> set[str]:
    """Lets the nodes' CIDRs of `pool` drain or not as the pool's own do; returns the nodes concerned.

    The caller announces them.
    """
    wrong = await wrongly_marked(connection, pool)
    if wrong:
        await connection.execute(
            _MARK, [{"of_cidr": cidr, "to_draining": draining} for cidr, (_, draining) in wrong.items()]
        )
    return {node for node, _ in wrong.values()}


async def drained(connection: AsyncConnection, pool: Pool) -> list[Network]:
    """The CIDRs of `pool` that drain and of which no node holds a part any more."""
    networks = [one.network for one in pool.draining]
    by_family = {family: Spans(one for one in networks if one.version == family) for family in FAMILIES}
    rows = (await connection.execute(_OF_POOL, {"pool": pool.name})).all()
    used = {by_family[row.family].around(span_of(row.cidr)[0]) for row in rows}
    return [network for network in networks if network not in used]


async def drop_drained(connection: AsyncConnection) -> int:
    """Removes the CIDRs that have drained away; returns how many those were.

    What a pool excludes of them alone goes as well. For use inside a write.
    """
    dropped = 0
    for pool in await draining_pools(connection):
        gone = await drained(connection, pool)
        if not gone:
            continue
        dropped += len(gone)
        await connection.execute(_DROP, [{"of_cidr": str(network)} for network in gone])
        stay = [*pool.cidrs, *(one.network for one in pool.draining if one.network not in gone)]
        excluded = [span for span in pool.excluded if touches(span, stay)]
        if len(excluded) != len(pool.excluded):
            await connection.execute(_PRUNE, {"of_name": pool.name, "to_excluded": encode_spans(excluded)})
    return dropped


async def is_empty(connection: AsyncConnection, cidr: Network) -> bool:
    """Whether no address of the node's CIDR is held or on hold."""
    for statement in (_HELD, _ON_HOLD):
        if (await connection.execute(statement, {"cidr": str(cidr)})).first() is not None:
            return False
    return True
