"""Which address of a node's CIDR comes next.

An address is spoken of as its *slot*: its distance from the network address. The choice rotates: it
goes on after the slot that was handed out last and wraps at the end, so that an address that was just
released rests for as long as the CIDR allows, and nobody gets it while the flows, neighbour and ipcache
entries of its last owner are still about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.ipam.family import Address, Network

ROUTER_SLOT = 1


@dataclass(frozen=True, slots=True)
class AddressRange:
    """The slots of one node CIDR that pods may have.

    Left out are the network address (slot 0), the node's router address (slot 1) and IPv4's broadcast
    address (the last slot), which IPv6 does not have.
    """

    network: Network

    @property
    def router(self) -> Address:
        """The address that the node itself has in its CIDR, the pods' next hop."""
        return self.network[ROUTER_SLOT]

    @property
    def first(self) -> int:
        """The lowest slot that a pod may have."""
        return ROUTER_SLOT + 1

    @property
    def last(self) -> int:
        """The highest slot that a pod may have."""
        return self.network.num_addresses - (2 if self.network.version == 4 else 1)

    @property
    def capacity(self) -> int:
        """How many pods fit."""
        return self.last - self.first + 1

    def address(self, slot: int) -> Address:
        """The address in `slot`."""
        return self.network[slot]

    def slot(self, address: Address) -> int | None:
        """The slot of `address`, None when it is outside the CIDR or one that no pod may have."""
        if address not in self.network:
            return None
        slot = int(address) - int(self.network.network_address)
        return slot if self.first <= slot <= self.last else None

    def clamp(self, cursor: int) -> int:
        """`cursor` if it is a slot that a pod may have, else the first such slot."""
        return cursor if self.first <= cursor <= self.last else self.first

    def after(self, slot: int) -> int:
        """The slot to try first once `slot` has been handed out."""
        return self.clamp(slot + 1)

    def rotation(self, cursor: int) -> tuple[tuple[int, int], ...]:
        """The inclusive spans of slots to search, in order: from `cursor` to the end, then up to `cursor`."""
        start = self.clamp(cursor)
        if start == self.first:
            return ((self.first, self.last),)
        return ((start, self.last), (self.first, start - 1))


def first_gap(start: int, held: Sequence[int]) -> int:
    """The lowest slot >= `start` that is not in `held`.

    `held` holds distinct slots in ascending order, none below `start`. When it is one page of a longer
    list and the answer lies past the page's last slot, the search has to go on with the next page from there.
    """
    # Slots are distinct and ascending: held[i] == start + i holds for a prefix of the list only. Bisect it.
    low, high = 0, len(held)
    while low < high:
        middle = (low + high) // 2
        if held[middle] == start + middle:
            low = middle + 1
        else:
            high = middle
    return start + low


def choose_slot(bounds: AddressRange, cursor: int, held: Sequence[int]) -> int | None:
    """The next free slot in rotation, or None when the CIDR is full. `held` is ascending and complete."""
    for start, end in bounds.rotation(cursor):
        slot = first_gap(start, [taken for taken in held if start <= taken <= end])
        if slot <= end:
            return slot
    return None
