"""Reading what a check of a node's addresses compares, in one snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import bindparam, select

from services.chassis.db import Database
from services.ipam import problems
from services.ipam.check import Finding, HeldAddress, UsedBy, compare, users_of
from services.ipam.schema import addresses, nodes

# Below the least limit on variables of one statement that any supported SQLite has.
_CHUNK: Final = 500

_NODE = select(nodes.c.name).where(nodes.c.name == bindparam("node"))
_HELD = select(addresses.c.address, addresses.c.node, addresses.c.owner, addresses.c.created_ns)
_HELD_ON_NODE = _HELD.where(addresses.c.node == bindparam("node"))
_HOLDERS = _HELD.where(addresses.c.address.in_(bindparam("wanted", expanding=True)))


class AddressCheck:
    """Compares what is held on a node with the endpoints that it is said to have.

    `clock` returns Unix time in nanoseconds.
    """

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def findings(
        self, node: str, endpoints: Sequence[UsedBy], min_age_seconds: int
    ) -> tuple[list[Finding], int]:
        """The differences, as `check.compare` has them, and how many owners were compared.

        Raises NotFound (NODE_NOT_FOUND).
        """
        used = users_of(endpoints)
        held: dict[bytes, HeldAddress] = {}
        async with self._database.read() as connection:
            if (await connection.execute(_NODE, {"node": node})).first() is None:
                raise problems.node_not_found(node)
            for row in (await connection.execute(_HELD_ON_NODE, {"node": node})).all():
                held[row.address] = HeldAddress(row.address, row.node, row.owner, row.created_ns)
            owners = len({one.owner for one in held.values()})
            # What an endpoint of this node uses may be held on another.
            strangers = [address for address in used if address not in held]
            for start in range(0, len(strangers), _CHUNK):
                wanted = {"wanted": strangers[start : start + _CHUNK]}
                for row in (await connection.execute(_HOLDERS, wanted)).all():
                    held[row.address] = HeldAddress(row.address, row.node, row.owner, row.created_ns)
        now_ns, min_age_ns = self._clock(), min_age_seconds * 1_000_000_000
        # Tens of thousands of addresses take tens of milliseconds, for which nobody else should wait.
        found = await asyncio.to_thread(compare, node, held, endpoints, now_ns=now_ns, min_age_ns=min_age_ns)
        return found, owners
