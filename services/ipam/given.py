"""Mode kubernetes: a node's CIDRs come from outside, with its registration."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ipam import problems
from services.ipam.cidr import LONGEST_NODE_MASK, first_overlap
from services.ipam.family import Network, family_of
from services.ipam.model import KUBERNETES_POOL, NodeCidr
from services.ipam.node_rows import insert_cidrs, next_position
from services.ipam.pool_rows import read_pool
from services.ipam.schema import addresses, node_cidrs, pool_cidrs, pools

_POOL_CIDRS = select(pool_cidrs.c.cidr, pool_cidrs.c.pool)
_GIVEN = select(node_cidrs.c.cidr, node_cidrs.c.node).where(node_cidrs.c.pool == KUBERNETES_POOL)
_HELD = select(func.count()).select_from(addresses).where(addresses.c.cidr == bindparam("cidr"))
_DROP = delete(node_cidrs).where(node_cidrs.c.cidr == bindparam("of_cidr"))
_SET_POSITION = (
    update(node_cidrs)
    .where(node_cidrs.c.cidr == bindparam("of_cidr"))
    .values(position=bindparam("to_position"))
)


class GivenCidrs:
    """The CIDRs that the node `node` shall have, in this order.

    Raises InvalidArgument (POD_CIDRS_MISSING, CIDR_INVALID), FailedPrecondition (CIDR_OVERLAP: with each
    other).
    """

    def __init__(self, node: str, cidrs: Sequence[Network]) -> None:
        if not cidrs:
            raise problems.pod_cidrs_missing(node)
        for at, cidr in enumerate(cidrs):
            longest = LONGEST_NODE_MASK[family_of(cidr)]
            if cidr.prefixlen > longest:
                raise problems.invalid(
                    f"pod_cidrs[{at}]",
                    f"{cidr} has no room for a pod; expected a prefix length of at most {longest}",
                    reason="CIDR_INVALID",
                    value=str(cidr),
                )
        overlap = first_overlap(cidrs, ())
        if overlap is not None:
            raise problems.given_overlap(*overlap, node=node, holder=f"node {node!r}")
        self._node = node
        self._cidrs = tuple(cidrs)

    async def ensure_pool(self, connection: AsyncConnection, created_ns: int) -> None:
        """Makes the row that such CIDRs name as their pool."""
        pool = await read_pool(connection, KUBERNETES_POOL)
        if pool is None:
            await connection.execute(
                insert(pools), {"name": KUBERNETES_POOL, "node_mask_size": 0, "created_ns": created_ns}
            )
        elif pool.cidrs:
            # From before the name was reserved.
            raise problems.pool_name_taken(KUBERNETES_POOL, pool.cidrs)

    async def apply(self, connection: AsyncConnection, held: Sequence[NodeCidr]) -> bool:
        """Lets the node, which has `held`, have these instead; whether that changes anything.

        Raises FailedPrecondition (CIDR_OVERLAP, CIDR_IN_USE).
        """
        present = [cidr.network for cidr in held]
        if present == list(self._cidrs):
            return False
        new = [cidr for cidr in self._cidrs if cidr not in present]
        if new:
            await self._check_free(connection, new)
        gone = [cidr for cidr in present if cidr not in self._cidrs]
        for cidr in gone:
            count = (await connection.execute(_HELD, {"cidr": str(cidr)})).scalar_one()
            if count:
                raise problems.cidr_in_use(cidr, self._node, count)
        if gone:
            await connection.execute(_DROP, [{"of_cidr": str(cidr)} for cidr in gone])
        # Behind all that were: no two CIDRs have one position at any moment.
        base = await next_position(connection, self._node)
        for at, cidr in enumerate(self._cidrs, start=base):
            if cidr in present:
                await connection.execute(_SET_POSITION, {"of_cidr": str(cidr), "to_position": at})
            else:
                await insert_cidrs(connection, self._node, [NodeCidr(cidr, KUBERNETES_POOL)], position=at)
        return True

    async def _check_free(self, connection: AsyncConnection, new: Sequence[Network]) -> None:
        """Raises FailedPrecondition (CIDR_OVERLAP) when a pool or another node has addresses of `new`."""
        owners = {
            ipaddress.ip_network(row.cidr): f"pool {row.pool!r}"
            for row in (await connection.execute(_POOL_CIDRS)).all()
        }
        for row in (await connection.execute(_GIVEN)).all():
            if row.node != self._node:
                owners[ipaddress.ip_network(row.cidr)] = f"node {row.node!r}"
        overlap = first_overlap(new, owners)
        if overlap is not None:
            raise problems.given_overlap(*overlap, node=self._node, holder=owners[overlap[1]])
