"""The search for free addresses: in the CIDRs that a node has, then in further ones of the pool."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.feed import Feed
from services.chassis.telemetry import traceparent_of
from services.ipam.address_rows import TakenRow, read_taken, read_taken_between
from services.ipam.allocation import NodeCidr, Supply, bounds_of, free_slots, next_slots
from services.ipam.growth import grow_by
from services.ipam.holds import is_over
from services.ipam.model import Mode

# Up to how many free addresses are guessed at the cursors and looked up by name, before spans are read.
GUESSED: Final = 64
SPARE_GUESSES: Final = 4
# How many taken addresses a step of the search reads: at first, and at most when it goes on.
SEARCH_ROWS: Final = 512
MOST_SEARCH_ROWS: Final = 8192
# For how long a CIDR that was found full is passed over, as long as there are others.
FULL_SECONDS: Final = 1.0
MOST_FULL: Final = 4096


class FullCidrs:
    """CIDRs that were full a moment ago. Hints, nothing that may be relied on."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, cidr: str) -> None:
        """Lets searches pass `cidr` over for a moment."""
        if len(self._until) >= MOST_FULL:
            self._until.clear()
        self._until[cidr] = time.monotonic() + FULL_SECONDS

    def discard(self, cidr: str) -> None:
        """`cidr` has room again."""
        self._until.pop(cidr, None)

    def __contains__(self, cidr: str) -> bool:
        until = self._until.get(cidr)
        if until is None:
            return False
        if until < time.monotonic():
            del self._until[cidr]
            return False
        return True


class Search:
    """One turn's search. `now_ns` is the present, `hold_ns` how long holds last."""

    def __init__(
        self, connection: AsyncConnection, feed: Feed, full: FullCidrs, mode: Mode, hold_ns: int, now_ns: int
    ) -> None:
        self._connection = connection
        self._feed = feed
        self._full = full
        self._mode = mode
        self._hold_ns = hold_ns
        self._now_ns = now_ns
        # Who has an address that was looked up by name, or had it until a moment ago.
        self.holders: dict[bytes, TakenRow] = {}
        # Addresses whose holds are over and have not been swept.
        self.over: set[bytes] = set()

    async def run(self, supplies: Iterable[Supply]) -> None:
        """Finds what `supplies` are to give, as far as there is so much.

        Looks up in `holders` whatever they have reserved.
        """
        supplies = tuple(supplies)
        await self._guess(supplies)
        for supply in supplies:
            await self._find(supply)

    async def _guess(self, supplies: tuple[Supply, ...]) -> None:
        """Looks up the addresses asked for, and those that come next where only a few are wanted.

        One statement for all nodes. What is guessed wrong is searched for afterwards.
        """
        guesses: list[tuple[Supply, NodeCidr, list[int]]] = []
        probed: dict[bytes, None] = {}
        for supply in supplies:
            for number in supply.reserved:
                probed[number.to_bytes(4 if supply.family == 4 else 16, "big")] = None
            cidr = next(
                (
                    one
                    for one in supply.node.usable(supply.pool, supply.family)
                    if one.bounds.text not in self._full
                ),
                None,
            )
            if not 0 < supply.demand <= GUESSED or cidr is None:
                continue
            count = supply.demand + SPARE_GUESSES
            slots = next_slots(cidr, supply.avoided(cidr), supply.excluded(cidr), count)
            guesses.append((supply, cidr, slots))
            probed.update((cidr.bounds.packed(slot), None) for slot in slots)
        if not probed:
            return
        taken: set[bytes] = set()
        for row in await read_taken(self._connection, probed):
            if is_over(row.released_ns, self._hold_ns, self._now_ns):
                self.over.add(row.address)
            else:
                taken.add(row.address)
                if row.released_ns < 0 or row.address not in self.holders:
                    self.holders[row.address] = row
        for supply, cidr, slots in guesses:
            supply.add(cidr, [slot for slot in slots if cidr.bounds.packed(slot) not in taken])
            if supply.missing:
                # A search starts at the cursor again and finds these as well.
                supply.picks.clear()

    async def _find(self, supply: Supply) -> None:
        """Finds what `supply` is to give: in the node's CIDRs, then in further ones."""
        if not supply.missing:
            return
        passed: list[NodeCidr] = []
        for cidr in supply.node.usable(supply.pool, supply.family):
            if cidr.bounds.text in self._full:
                passed.append(cidr)
            elif supply.missing:
                await self._search(supply, cidr)
        for cidr in passed:
            if supply.missing:
                await self._search(supply, cidr)
        while supply.missing and self._mode != "kubernetes":
            networks = await grow_by(
                self._connection,
                self._feed,
                supply.node.name,
                supply.pool,
                supply.family,
                supply.missing,
                traceparent_of(supply.trace),
            )
            if not networks:
                break
            supply.grown = True
            for network in networks:
                bounds = bounds_of(str(network))
                cidr = NodeCidr(bounds, supply.pool, draining=False, cursor=bounds.first)
                supply.node.cidrs.append(cidr)
                supply.add(cidr, next_slots(cidr, (), supply.excluded(cidr), supply.missing))

    async def _search(self, supply: Supply, cidr: NodeCidr) -> None:
        """Reads who has what from the cursor on, page by page, until enough is free."""
        bounds, before = cidr.bounds, len(supply.picks)
        excluded, avoided = supply.excluded(cidr), supply.avoided(cidr)
        limit = max(SEARCH_ROWS, min(2 * supply.missing, MOST_SEARCH_ROWS))
        for start, end in bounds.rotation(cidr.cursor):
            while start <= end and supply.missing:
                taken, known = await self._taken_slots(cidr, start, end, limit)
                slots = free_slots(start, known, taken | avoided, excluded, supply.missing)
                supply.add(cidr, slots)
                start = known + 1
                limit = min(2 * limit, MOST_SEARCH_ROWS)
        if len(supply.picks) == before:
            self._full.add(bounds.text)
        else:
            self._full.discard(bounds.text)

    async def _taken_slots(self, cidr: NodeCidr, start: int, end: int, limit: int) -> tuple[set[int], int]:
        """The slots from `start` on that are taken, and up to which slot that is all."""
        bounds = cidr.bounds
        rows = await read_taken_between(
            self._connection, bounds.family, bounds.packed(start), bounds.packed(end), limit
        )
        hold_ns, now_ns = self._hold_ns, self._now_ns
        taken: set[int] = set()
        for address, released_ns in rows:
            if is_over(released_ns, hold_ns, now_ns):
                self.over.add(address)
            else:
                taken.add(bounds.slot(address))
        if len(rows) < limit:
            return taken, end
        # What is known of the last one may be half of it: held, and a row of an earlier release.
        return taken, bounds.slot(rows[-1][0]) - 1
