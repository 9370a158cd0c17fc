"""Another CIDR for a node that has run out of addresses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.feed import Feed
from services.ipam import problems
from services.ipam.addresses import AddressRange
from services.ipam.cidr import carve_beside, merged, span_of
from services.ipam.exclusions import Span, excluded_count
from services.ipam.family import Family, Network, of_family
from services.ipam.model import NodeCidr, Pool
from services.ipam.node_rows import announce, insert_cidrs
from services.ipam.pool_rows import read_exclusions, read_pool, read_selectors
from services.ipam.schema import node_cidrs

__all__ = ["carve_from", "grow", "grow_by", "read_exclusions", "read_selectors", "useless"]

_TAKEN = select(node_cidrs.c.cidr).where(
    node_cidrs.c.pool == bindparam("pool"), node_cidrs.c.family == bindparam("family")
)


async def grow(
    connection: AsyncConnection, feed: Feed, node: str, pool: str, family: Family, trace: str
) -> Network | None:
    """Gives `node` another CIDR of `family` out of `pool`, tells the feed, and returns it.

    None when the pool has none left, which includes a pool without CIDRs of the family in service. For use
    inside a write; the node has to be there. Raises NotFound (POOL_NOT_FOUND).
    """
    return next(iter(await grow_by(connection, feed, node, pool, family, 1, trace)), None)


async def grow_by(
    connection: AsyncConnection,
    feed: Feed,
    node: str,
    pool: str,
    family: Family,
    addresses: int,
    trace: str,
) -> list[Network]:
    """The same for as many CIDRs as have room for that many `addresses`, or all that are left.

    One event for all of them.
    """
    chosen = await read_pool(connection, pool)
    if chosen is None:
        raise problems.pool_not_found(pool)
    carved: list[Network] = []
    for network in await _carvings(connection, chosen, family, router=False):
        bounds = AddressRange(network)
        carved.append(network)
        addresses -= bounds.capacity - excluded_count(chosen.excluded, bounds)
        if addresses <= 0:
            break
    if carved:
        await insert_cidrs(connection, node, [NodeCidr(network, pool) for network in carved])
        await announce(connection, feed, [node], trace)
    return carved


async def carve_from(
    connection: AsyncConnection, pool: Pool, family: Family, *, router: bool
) -> Network | None:
    """The lowest network of the pool's CIDRs in service that no node holds and that is of use to one.

    With `router` the node's router address will be in it: that one must not be excluded either. The caller
    inserts it within the same write.
    """
    return next(await _carvings(connection, pool, family, router=router), None)


async def _carvings(
    connection: AsyncConnection, pool: Pool, family: Family, *, router: bool
) -> Iterator[Network]:
    cidrs = of_family(pool.cidrs, family)
    if not cidrs:
        return iter(())
    rows = await connection.execute(_TAKEN, {"pool": pool.name, "family": family})
    taken = [span_of(text) for text in rows.scalars()]
    taken += useless(pool.excluded, cidrs, pool.mask_size(family), router=router)
    return carve_beside(cidrs, pool.mask_size(family), taken)


def useless(
    spans: Iterable[Span], cidrs: Sequence[Network], mask_size: int, *, router: bool
) -> list[tuple[int, int]]:
    """What `spans` make useless of `cidrs`, all of one family, as inclusive spans of numbers.

    That is every network of `mask_size` bits of which they leave no address to a pod, and with `router`
    those too whose router address they exclude.
    """
    found: list[tuple[int, int]] = []
    for cidr in cidrs:
        sample = AddressRange(type(cidr)((int(cidr.network_address), mask_size)))
        step = sample.network.num_addresses
        base, end = int(cidr.network_address), int(cidr.broadcast_address)
        of_family = ((span.first, span.last) for span in spans if span.family == cidr.version)
        for first, last in merged(of_family):
            # The lowest and highest network whose slots from sample.first to sample.last all are within.
            reaches = [(first - sample.first, last - sample.last)]
            if router:
                slot = int(sample.router) - base
                reaches.append((first - slot, last - slot))
            for low, high in reaches:
                start = max(base, base + -(-(low - base) // step) * step)
                stop = min(high, end - step + 1)
                if start <= stop:
                    found.append((start, base + (stop - base) // step * step + step - 1))
    return found
