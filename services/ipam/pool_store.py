"""Pools in SQL: made, changed while in use, counted, removed."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlalchemy import bindparam, delete, func, insert, select, union, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.ipam import problems
from services.ipam.cidr import first_overlap
from services.ipam.draining import drop_drained, mark_node_cidrs
from services.ipam.exclusions import encode_spans
from services.ipam.family import Network
from services.ipam.model import KUBERNETES_POOL, Pool
from services.ipam.node_rows import NODE_FEED, announce
from services.ipam.plan import PoolContent, plan_update
from services.ipam.pool_rows import read_pool, read_pools
from services.ipam.pool_usage import with_counts, with_usage
from services.ipam.schema import node_cidrs, nodes, pool_cidrs, pools
from services.ipam.selectors import encode_selector

_POOL_CIDRS = select(pool_cidrs.c.cidr, pool_cidrs.c.pool)
_GIVEN = select(node_cidrs.c.cidr).where(node_cidrs.c.pool == KUBERNETES_POOL)
_LAST_POSITION = select(func.max(pool_cidrs.c.position)).where(pool_cidrs.c.pool == bindparam("pool"))
_HOLDERS = union(
    select(nodes.c.name).where(nodes.c.pool == bindparam("pool")),
    select(node_cidrs.c.node).where(node_cidrs.c.pool == bindparam("pool")),
).subquery()
_SET_CONTENT = update(pools).where(pools.c.name == bindparam("of_name"))
_PLACE_CIDR = (
    update(pool_cidrs)
    .where(pool_cidrs.c.cidr == bindparam("of_cidr"))
    .values(draining=bindparam("to_draining"), position=bindparam("to_position"))
)
_DRAIN_CIDR = (
    update(pool_cidrs)
    .where(pool_cidrs.c.cidr == bindparam("of_cidr"))
    .values(draining=bindparam("to_draining"))
)


class PoolStore:
    """The pools that node CIDRs are carved from.

    `clock` returns Unix time in nanoseconds; `feed` is the node feed; `hold_seconds` is how long addresses
    are on hold after their release, which the counts follow.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], int],
        feed: Feed | None = None,
        *,
        hold_seconds: float = 0.0,
    ) -> None:
        self._database = database
        self._clock = clock
        self._feed = Feed(database, NODE_FEED) if feed is None else feed
        self._hold_ns = round(hold_seconds * 1e9)

    async def create(self, pool: Pool) -> Pool:
        """Adds `pool`; one that is there with the same content is returned.

        Raises AlreadyExists (POOL_EXISTS), FailedPrecondition (CIDR_OVERLAP), InvalidArgument
        (POOL_NAME_RESERVED).
        """
        if pool.name == KUBERNETES_POOL:
            raise problems.pool_reserved(pool.name)
        created_ns = self._clock()

        async def operation(connection: AsyncConnection) -> Pool:
            present = await read_pool(connection, pool.name)
            if present is None:
                await _check_overlap(connection, pool.name, pool.cidrs)
                await connection.execute(
                    insert(pools),
                    {
                        "name": pool.name,
                        "node_mask_size": pool.node_mask_size,
                        "node_mask_size_ipv6": pool.node_mask_size_ipv6,
                        "created_ns": created_ns,
                        **_content(pool),
                    },
                )
                await _insert_cidrs(connection, pool.name, list(enumerate(pool.cidrs)))
                present = replace(pool, revision=1, draining=(), used=0)
            elif not present.same_as(pool):
                masks = {family: present.mask_size(family) for family in present.families}
                raise problems.pool_exists(pool.name, present.cidrs, masks)
            return await self._counted(connection, present)

        return await self._database.write(operation)

    async def update(
        self, name: str, content: PoolContent, *, expected_revision: int = 0, trace: str = ""
    ) -> Pool:
        """Lets the pool consist of `content` from now on: CIDRs that it leaves out drain.

        With an `expected_revision` only if that is the pool's. Raises NotFound (POOL_NOT_FOUND), Aborted
        (POOL_CHANGED), FailedPrecondition (CIDR_OVERLAP), InvalidArgument (MASK_SIZE_INVALID,
        EXCLUSION_OUTSIDE, POOL_NAME_RESERVED).
        """
        if name == KUBERNETES_POOL:
            raise problems.pool_reserved(name)

        async def operation(connection: AsyncConnection) -> Pool:
            present = await read_pool(connection, name)
            if present is None:
                raise problems.pool_not_found(name)
            if expected_revision not in (0, present.revision):
                raise problems.pool_changed(name, expected_revision, present.revision)
            wanted = plan_update(present, content)
            if wanted == present:
                return await self._counted(connection, present)
            known = {*present.cidrs, *(one.network for one in present.draining)}
            new = [cidr for cidr in wanted.cidrs if cidr not in known]
            await _check_overlap(connection, name, wanted.cidrs, known)
            await connection.execute(
                _SET_CONTENT, {"of_name": name, "revision": wanted.revision, **_content(wanted)}
            )
            if (wanted.cidrs, wanted.draining) != (present.cidrs, present.draining):
                await _place_cidrs(connection, wanted, new)
                concerned = await mark_node_cidrs(connection, wanted)
                await drop_drained(connection)
                if concerned:
                    await announce(connection, self._feed, concerned, trace)
            changed = await read_pool(connection, name)
            assert changed is not None, "it was written just now"
            return await self._counted(connection, changed)

        return await self._database.write(operation)

    async def get(self, name: str) -> Pool:
        """The pool of that name and how full it is. Raises NotFound (POOL_NOT_FOUND)."""
        async with self._database.read() as connection:
            pool = await read_pool(connection, name)
            if pool is None:
                raise problems.pool_not_found(name)
            return await self._counted(connection, pool)

    async def list(self, *, after: str, limit: int) -> Sequence[Pool]:
        """Up to `limit` pools by name past `after`, without `usage`."""
        async with self._database.read() as connection:
            return await with_counts(connection, await read_pools(connection, after=after, limit=limit))

    async def delete(self, name: str) -> None:
        """Removes the pool, if it is there. Raises FailedPrecondition (POOL_IN_USE)."""

        async def operation(connection: AsyncConnection) -> None:
            count, example = (
                await connection.execute(
                    select(func.count(), func.min(_HOLDERS.c.name)).select_from(_HOLDERS), {"pool": name}
                )
            ).one()
            if count:
                raise problems.pool_in_use(name, count, example)
            await connection.execute(delete(pools).where(pools.c.name == name))

        await self._database.write(operation)

    async def _counted(self, connection: AsyncConnection, pool: Pool) -> Pool:
        return await with_usage(connection, pool, since=self._clock() - self._hold_ns)


def _content(pool: Pool) -> dict[str, object]:
    return {
        "excluded": encode_spans(pool.excluded),
        "pod_selector": encode_selector(pool.pod_selector),
        "namespace_selector": encode_selector(pool.namespace_selector),
    }


async def _check_overlap(
    connection: AsyncConnection,
    pool: str,
    wanted: Sequence[Network],
    known: frozenset[Network] | set[Network] = frozenset(),
) -> None:
    """Raises FailedPrecondition (CIDR_OVERLAP) when anybody else has addresses of `wanted`.

    `known` are the CIDRs that the pool has already. They cannot meet anybody else's, only new ones.
    """
    owners: dict[Network, str] = {}
    for row in (await connection.execute(_POOL_CIDRS)).all():
        owners[ipaddress.ip_network(row.cidr)] = row.pool
    for text in (await connection.execute(_GIVEN)).scalars():
        owners[ipaddress.ip_network(text)] = KUBERNETES_POOL
    overlap = first_overlap(wanted, ()) or first_overlap(
        [cidr for cidr in wanted if cidr not in known], owners
    )
    if overlap is not None:
        raise problems.cidr_overlap(*overlap, pool, owners.get(overlap[1], pool))


async def _place_cidrs(connection: AsyncConnection, pool: Pool, new: Sequence[Network]) -> None:
    """Puts the CIDRs in service in their order, those that are not among them on their way out."""
    last = (await connection.execute(_LAST_POSITION, {"pool": pool.name})).scalar_one()
    # Behind all that were: no two have one position at any moment.
    placed = list(enumerate(pool.cidrs, start=last + 1))
    kept = [
        {"of_cidr": str(cidr), "to_draining": False, "to_position": at}
        for at, cidr in placed
        if cidr not in new
    ]
    if kept:
        await connection.execute(_PLACE_CIDR, kept)
    await _insert_cidrs(connection, pool.name, [(at, cidr) for at, cidr in placed if cidr in new])
    drained = [{"of_cidr": str(one.network), "to_draining": True} for one in pool.draining]
    if drained:
        await connection.execute(_DRAIN_CIDR, drained)


async def _insert_cidrs(
    connection: AsyncConnection, pool: str, placed: Sequence[tuple[int, Network]]
) -> None:
    if placed:
        await connection.execute(
            insert(pool_cidrs), [{"cidr": str(cidr), "pool": pool, "position": at} for at, cidr in placed]
        )
