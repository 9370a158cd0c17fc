"""CIDRs that nodes no longer need go back to their pools."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from sqlalchemy import delete, exists, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.errors import FimbriaError
from services.chassis.feed import Feed
from services.chassis.logs import get_logger
from services.ipam.draining import drained, draining_pools, drop_drained, mark_node_cidrs, wrongly_marked
from services.ipam.model import KUBERNETES_POOL
from services.ipam.node_rows import announce
from services.ipam.schema import addresses, holds, node_cidrs

# CIDRs that go back in one transaction: each is an event of the node feed.
MOST_AT_ONCE: Final = 256

log = get_logger(__name__)

_before = node_cidrs.alias("earlier")
# Empty, and another CIDR of the family has the router address. What is given from outside stays.
_EMPTY = (
    select(
        node_cidrs.c.cidr,
        node_cidrs.c.node,
        node_cidrs.c.position,
        node_cidrs.c.next_address,
        node_cidrs.c.draining,
    )
    .where(
        node_cidrs.c.pool != KUBERNETES_POOL,
        exists().where(
            _before.c.node == node_cidrs.c.node,
            _before.c.family == node_cidrs.c.family,
            _before.c.position < node_cidrs.c.position,
        ),
        ~exists().where(addresses.c.cidr == node_cidrs.c.cidr),
        ~exists().where(holds.c.cidr == node_cidrs.c.cidr),
    )
    .order_by(node_cidrs.c.cidr)
)


@dataclass(frozen=True, slots=True)
class _Seen:
    """An empty CIDR as it was found: with its cursor, which moves when an address of it is given."""

    cidr: str
    node: str
    position: int
    next_address: bytes


class GiveBack:
    """Takes back CIDRs that hold nothing, never the first of a family of a node.

    One that drains goes at once, another when it was found empty in every turn for `idle_seconds` by
    `monotonic`, and no address of it was given in between. Any number of replicas may do this at the same
    time: what a turn has seen is verified again in the write.
    """

    def __init__(
        self,
        database: Database,
        feed: Feed,
        idle_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._feed = feed
        self._idle_seconds = idle_seconds
        self._monotonic = monotonic
        self._since: dict[_Seen, float] = {}

    @property
    def interval(self) -> float:
        """Seconds between turns: short beside the time that CIDRs are kept."""
        return min(5.0, max(0.2, self._idle_seconds / 10))

    async def run(self) -> NoReturn:
        """Turns without end, a background task. What a store that cannot be used puts off is done later."""
        while True:
            await asyncio.sleep(self.interval)
            try:
                await self.turn()
            except FimbriaError as exc:
                log.warning("giving empty CIDRs back is put off", reason=exc.reason)

    async def turn(self) -> list[str]:
        """Looks once; returns the CIDRs that went back."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_EMPTY)).all()
            upkeep = await _needs_upkeep(connection)
        # After the read: what is seen now has been empty since now at the latest.
        now = self._monotonic()
        found = {_seen(row): bool(row.draining) for row in rows}
        self._since = {seen: self._since.get(seen, now) for seen in found}
        due = [
            seen
            for seen, draining in found.items()
            if draining or now - self._since[seen] >= self._idle_seconds
        ]
        if not due and not upkeep:
            return []
        given: list[str] = []
        for start in range(0, max(len(due), 1), MOST_AT_ONCE):
            given += await self._give_back(frozenset(due[start : start + MOST_AT_ONCE]))
        return given

    async def _give_back(self, due: frozenset[_Seen]) -> list[str]:
        async def operation(connection: AsyncConnection) -> list[str]:
            going: list[_Seen] = []
            if due:
                wanted = _EMPTY.where(node_cidrs.c.cidr.in_([seen.cidr for seen in due]))
                going = [
                    seen for row in (await connection.execute(wanted)).all() if (seen := _seen(row)) in due
                ]
            if going:
                cidrs = [seen.cidr for seen in going]
                await connection.execute(delete(node_cidrs).where(node_cidrs.c.cidr.in_(cidrs)))
            concerned = {seen.node for seen in going}
            for pool in await draining_pools(connection):
                concerned |= await mark_node_cidrs(connection, pool)
            await drop_drained(connection)
            await announce(connection, self._feed, concerned, "")
            return [seen.cidr for seen in going]

        given = await self._database.write(operation)
        if given:
            log.info("empty CIDRs went back", cidrs=given)
        return given


async def _needs_upkeep(connection: AsyncConnection) -> bool:
    """Whether a pool's CIDR has drained away, or a node's CIDR does not drain as the pool's does."""
    for pool in await draining_pools(connection):
        if await drained(connection, pool) or await wrongly_marked(connection, pool):
            return True
    return False


def _seen(row: Any) -> _Seen:
    return _Seen(row.cidr, row.node, row.position, bytes(row.next_address))
