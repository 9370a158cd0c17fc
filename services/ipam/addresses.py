"""Which addresses of a node's CIDR pods may have.

An address is spoken of as its *slot*: its distance from the network address.
"""

from __future__ import annotations

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
