"""What ipam keeps: pools, nodes and the addresses that owners hold, as plain values."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal, TypeAlias

from services.ipam.addresses import AddressRange
from services.ipam.cidr import capacity_of
from services.ipam.family import FAMILIES, Address, Family, Network, of_family

# How nodes come to their CIDRs; the same words as the setting has.
Mode: TypeAlias = Literal["kubernetes", "cluster-pool", "multi-pool"]


@dataclass(frozen=True, slots=True)
class Pool:
    """A named set of CIDRs out of which each node gets a network of each family that the set has.

    `node_mask_size` is the prefix length of a node's IPv4 network, `node_mask_size_ipv6` that of its IPv6
    one; 0 for a family that the pool does not have. `used` counts the nodes that hold networks of it now.
    """

    name: str
    cidrs: tuple[Network, ...]
    node_mask_size: int = 0
    node_mask_size_ipv6: int = 0
    used: int = 0

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that the pool has CIDRs of, IPv4 first."""
        return tuple(family for family in FAMILIES if of_family(self.cidrs, family))

    @property
    def capacity(self) -> int:
        """How many nodes the pool has networks for."""
        return min(capacity_of(of_family(self.cidrs, one), self.mask_size(one)) for one in self.families)

    def mask_size(self, family: Family) -> int:
        """The prefix length of a node's network of `family`."""
        return self.node_mask_size if family == 4 else self.node_mask_size_ipv6

    def same_as(self, other: Pool) -> bool:
        """Whether both describe the same pool; the order of the CIDRs does not count, nor does use."""
        return self._content() == other._content()

    def _content(self) -> tuple[str, int, int, frozenset[Network]]:
        return self.name, self.node_mask_size, self.node_mask_size_ipv6, frozenset(self.cidrs)


@dataclass(frozen=True, slots=True)
class Node:
    """A registered node and the pod CIDRs that it holds, IPv4 first.

    `ipv4` and `ipv6` are its underlay addresses, `created_ns` Unix time in nanoseconds, `revision` the one of
    the node feed at which it last changed.
    """

    name: str
    ipv4: ipaddress.IPv4Address
    pool: str
    pod_cidrs: tuple[Network, ...]
    created_ns: int
    ipv6: ipaddress.IPv6Address | None = None
    revision: int = 0

    def router(self, family: Family) -> Address | None:
        """The node's own address in its first CIDR of `family`, its pods' next hop; None without one."""
        return next((AddressRange(cidr).router for cidr in of_family(self.pod_cidrs, family)), None)


@dataclass(frozen=True, slots=True)
class AddressPair:
    """An address of each family, or None where one is not there or does not matter."""

    ipv4: ipaddress.IPv4Address | None = None
    ipv6: ipaddress.IPv6Address | None = None

    def of(self, family: Family) -> Address | None:
        """The address of `family`."""
        return self.ipv4 if family == 4 else self.ipv6


@dataclass(frozen=True, slots=True)
class Held:
    """One address in use, the node's CIDR that it is out of, and the node's router address of its family."""

    address: Address
    cidr: Network
    router: Address


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one owner has on one node: an address of each family that the node has, IPv4 first."""

    node: str
    owner: str
    held: tuple[Held, ...]
    created_ns: int

    def of(self, family: Family) -> Held | None:
        """What is held of `family`."""
        return next((one for one in self.held if one.address.version == family), None)
