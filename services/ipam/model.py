"""What ipam keeps: pools, nodes and the addresses that owners hold, as plain values."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from services.ipam.addresses import AddressRange


@dataclass(frozen=True, slots=True)
class Pool:
    """A named set of CIDRs out of which each node gets a network of `node_mask_size` bits.

    `used` counts the node CIDRs that nodes hold now.
    """

    name: str
    cidrs: tuple[ipaddress.IPv4Network, ...]
    node_mask_size: int
    used: int = 0

    def same_as(self, other: Pool) -> bool:
        """Whether both describe the same pool; the order of the CIDRs does not count, nor does use."""
        return (self.name, self.node_mask_size, set(self.cidrs)) == (
            other.name,
            other.node_mask_size,
            set(other.cidrs),
        )


@dataclass(frozen=True, slots=True)
class Node:
    """A registered node and the pod CIDRs that it holds, in the order in which it got them.

    `ipv4` is its underlay address, `created_ns` Unix time in nanoseconds, `revision` the one of the node
    feed at which it last changed.
    """

    name: str
    ipv4: ipaddress.IPv4Address
    pool: str
    pod_cidrs: tuple[ipaddress.IPv4Network, ...]
    created_ns: int
    revision: int = 0

    @property
    def router_ipv4(self) -> ipaddress.IPv4Address:
        """The node's own address in its first CIDR, the next hop of its pods."""
        return AddressRange(self.pod_cidrs[0]).router


@dataclass(frozen=True, slots=True)
class Allocation:
    """One address in use: who holds it, on which node and out of which CIDR."""

    address: ipaddress.IPv4Address
    node: str
    owner: str
    cidr: ipaddress.IPv4Network
    router_ipv4: ipaddress.IPv4Address
    created_ns: int
