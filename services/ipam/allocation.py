"""Which addresses a set of allocations gets: pure computation, in numbers.

An address is spoken of as its slot, the distance from its CIDR's network address (see addresses.py).
Everything here works on `int`s: an `ipaddress` object takes longer to make than the choice of its value.

The choice rotates: it goes on after the slot that was handed out last and wraps at the end, so that an
address that was released rests for as long as the CIDR allows, beyond the time for which it is on hold.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from opentelemetry.trace import Span

from services.ipam.addresses import AddressRange
from services.ipam.exclusions import decode_spans, spans_within
from services.ipam.family import Address, Family, Network, family_of

Slots = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """A CIDR of a node in numbers: its slots from `first` to `last` are for pods.

    `base` is the network address, `size` the length of a packed address.
    """

    text: str
    network: Network
    family: Family
    base: int
    size: int
    first: int
    last: int
    router: Address

    def packed(self, slot: int) -> bytes:
        """The address in `slot` as the database has it."""
        return (self.base + slot).to_bytes(self.size, "big")

    def address(self, slot: int) -> Address:
        """The address in `slot`."""
        number = self.base + slot
        return ipaddress.IPv4Address(number) if self.size == 4 else ipaddress.IPv6Address(number)

    def slot(self, packed: bytes) -> int:
        """The slot of a packed address, which has to be one of the CIDR's."""
        return int.from_bytes(packed, "big") - self.base

    def clamp(self, slot: int) -> int:
        """`slot` if a pod may have it, else the first that one may."""
        return slot if self.first <= slot <= self.last else self.first

    def rotation(self, cursor: int) -> Slots:
        """The spans of slots to search, in order: from `cursor` to the end, then up to `cursor`."""
        start = self.clamp(cursor)
        if start == self.first:
            return ((self.first, self.last),)
        return ((start, self.last), (self.first, start - 1))


# A node has a few CIDRs, and every allocation on it asks for them.
@lru_cache(maxsize=8192)
def bounds_of(text: str) -> Bounds:
    """The CIDR written as `text`, which is as the database has it."""
    usable = AddressRange(ipaddress.ip_network(text))
    return Bounds(
        text=text,
        network=usable.network,
        family=family_of(usable.network),
        base=int(usable.network.network_address),
        size=usable.network.max_prefixlen // 8,
        first=usable.first,
        last=usable.last,
        router=usable.router,
    )


@lru_cache(maxsize=8192)
def excluded_slots(exclusions: str, text: str) -> Slots:
    """The slots of the CIDR `text` that a pool's `exclusions` cover: disjoint, ascending, both ends included.

    Both are as the database has them.
    """
    return tuple(spans_within(decode_spans(exclusions), bounds_of(text).network))


@dataclass(slots=True, eq=False)
class NodeCidr:
    """A CIDR of a node and the slot at which the search for a free address starts."""

    bounds: Bounds
    pool: str
    draining: bool
    cursor: int


@dataclass(slots=True, eq=False)
class NodeCidrs:
    """A node's own pool and its CIDRs, in the order in which it got them."""

    name: str
    pool: str
    cidrs: list[NodeCidr] = field(default_factory=list)

    def router(self, family: Family) -> Address | None:
        """The node's router address, which is in its first CIDR of `family`; None without one."""
        for cidr in self.cidrs:
            if cidr.bounds.family == family:
                return cidr.bounds.router
        return None

    def usable(self, pool: str, family: Family) -> list[NodeCidr]:
        """The CIDRs that allocations of `pool` and `family` may come from."""
        return [
            cidr
            for cidr in self.cidrs
            if cidr.pool == pool and cidr.bounds.family == family and not cidr.draining
        ]

    def having(self, address: Address) -> NodeCidr | None:
        """The CIDR of which pods may have `address`; None when there is none."""
        number, family = int(address), address.version
        for cidr in self.cidrs:
            bounds = cidr.bounds
            if bounds.family == family and bounds.first <= number - bounds.base <= bounds.last:
                return cidr
        return None

    def pool_of(self, text: str) -> str:
        """The pool of the node's CIDR `text`; empty when it has no such CIDR."""
        return next((cidr.pool for cidr in self.cidrs if cidr.bounds.text == text), "")

    def networks(self, pool: str | None = None) -> tuple[Network, ...]:
        """The networks of the node, those of `pool` only where one is given."""
        return tuple(cidr.bounds.network for cidr in self.cidrs if pool is None or cidr.pool == pool)


def free_slots(start: int, end: int, taken: Collection[int], excluded: Slots, count: int) -> list[int]:
    """The lowest `count` slots from `start` to `end` that are neither taken nor excluded, or all there are.

    Costs as many steps as slots are found or taken, however wide the span and what is excluded of it.
    """
    found: list[int] = []
    slot = start
    for first, last in (*excluded, (end + 1, end + 1)):
        stop = min(first, end + 1)
        while slot < stop and len(found) < count:
            if slot not in taken:
                found.append(slot)
            slot += 1
        if len(found) == count or stop > end:
            break
        slot = max(slot, last + 1)
    return found


def next_slots(cidr: NodeCidr, taken: Collection[int], excluded: Slots, count: int) -> list[int]:
    """The next `count` slots in rotation of a CIDR of which all that is `taken` is known."""
    found: list[int] = []
    for start, end in cidr.bounds.rotation(cidr.cursor):
        if len(found) < count:
            found += free_slots(start, end, taken, excluded, count - len(found))
    return found


@dataclass(slots=True, eq=False)
class Supply:
    """Free addresses of one node, pool and family, in the order in which they are given.

    `demand` is how many are wanted at most, `reserved` numbers of addresses that somebody has asked for by
    name.
    """

    node: NodeCidrs
    pool: str
    family: Family
    exclusions: str
    trace: str | Span
    demand: int = 0
    reserved: set[int] = field(default_factory=set)
    grown: bool = False
    picks: list[tuple[NodeCidr, int]] = field(default_factory=list)
    _given: int = 0

    @property
    def missing(self) -> int:
        """How many more have to be found."""
        return self.demand - len(self.picks)

    @property
    def left(self) -> int:
        """How many have been found and not given."""
        return len(self.picks) - self._given

    def add(self, cidr: NodeCidr, slots: Iterable[int]) -> None:
        """Puts free slots of `cidr`, in rotation, behind what there is, as far as they are wanted."""
        for slot in slots:
            if len(self.picks) == self.demand:
                return
            self.picks.append((cidr, slot))

    def give(self, count: int) -> list[tuple[NodeCidr, int]]:
        """The next `count`, which have to be there; the cursors move behind them."""
        given = self.picks[self._given : self._given + count]
        self._given += count
        for cidr, slot in given:
            cidr.cursor = cidr.bounds.clamp(slot + 1)
        return given

    def excluded(self, cidr: NodeCidr) -> Slots:
        """What the pool excludes of `cidr`."""
        return excluded_slots(self.exclusions, cidr.bounds.text)

    def excluded_count(self, cidr: NodeCidr) -> int:
        """How many addresses of `cidr` that pods may have otherwise the pool excludes."""
        first, last = cidr.bounds.first, cidr.bounds.last
        return sum(max(0, min(end, last) - max(start, first) + 1) for start, end in self.excluded(cidr))

    def avoided(self, cidr: NodeCidr) -> set[int]:
        """The slots of `cidr` that are reserved."""
        base, last = cidr.bounds.base, cidr.bounds.last
        return {number - base for number in self.reserved if 0 <= number - base <= last}
