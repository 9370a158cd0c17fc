"""What ipam keeps: pools, nodes and the addresses that owners hold, as plain values."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from services.ipam.addresses import AddressRange
from services.ipam.cidr import capacity_of
from services.ipam.exclusions import Span
from services.ipam.family import FAMILIES, Address, Family, Network, of_family

# How nodes come to their CIDRs; the same words as the setting has.
Mode: TypeAlias = Literal["kubernetes", "cluster-pool", "multi-pool"]

DEFAULT_POOL: Final = "default"
# What CIDRs that were given from outside say instead of a pool: a row without CIDRs of its own.
KUBERNETES_POOL: Final = "kubernetes"

Operator: TypeAlias = Literal["In", "NotIn", "Exists", "DoesNotExist"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement of a selector on the label `key`; `values` are for In and NotIn."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """A Kubernetes label selector: all of its requirements hold; one without any selects everything.

    `match_labels` are pairs of key and value by key.
    """

    match_labels: tuple[tuple[str, str], ...] = ()
    match_expressions: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolSelectors:
    """Which workloads get addresses of `pool`: those that `pod` and `namespace` select, where set."""

    pool: str
    pod: LabelSelector | None = None
    namespace: LabelSelector | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """For whom an address is, as far as the choice of a pool goes."""

    namespace: str = ""
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    namespace_annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DrainingCidr:
    """A CIDR of a pool on its way out: how many CIDRs of it nodes hold, and addresses held or on hold."""

    network: Network
    node_cidrs: int = 0
    addresses: int = 0


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """How much of one family of a pool is used; see PoolUsage of the API for each number."""

    family: Family
    node_cidrs_total: int
    node_cidrs_used: int
    capacity: int
    held: int
    on_hold: int
    excluded: int


@dataclass(frozen=True, slots=True)
class Pool:
    """A named set of CIDRs out of which nodes get networks of each family that the set has.

    `cidrs` are those in service. `node_mask_size` is the prefix length of a node's IPv4 network,
    `node_mask_size_ipv6` that of its IPv6 one; 0 for a family that the pool never had. `used` counts the
    nodes that hold networks of it now; it, the counts of `draining` and `usage` are filled in on request.
    """

    name: str
    cidrs: tuple[Network, ...]
    node_mask_size: int = 0
    node_mask_size_ipv6: int = 0
    used: int = 0
    excluded: tuple[Span, ...] = ()
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    draining: tuple[DrainingCidr, ...] = ()
    usage: tuple[PoolUsage, ...] = ()
    revision: int = 1

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that the pool has CIDRs in service of, IPv4 first."""
        return tuple(family for family in FAMILIES if of_family(self.cidrs, family))

    @property
    def capacity(self) -> int:
        """How many nodes the pool has networks for."""
        return min((self.node_cidrs_total(family) for family in self.families), default=0)

    @property
    def selectors(self) -> PoolSelectors:
        """Whom the pool is for."""
        return PoolSelectors(self.name, self.pod_selector, self.namespace_selector)

    def mask_size(self, family: Family) -> int:
        """The prefix length of a node's network of `family`."""
        return self.node_mask_size if family == 4 else self.node_mask_size_ipv6

    def node_cidrs_total(self, family: Family) -> int:
        """How many networks of `family` for nodes there are in the CIDRs in service."""
        return capacity_of(of_family(self.cidrs, family), self.mask_size(family))

    def same_as(self, other: Pool) -> bool:
        """Whether both describe the same pool; the order of the CIDRs does not count, nor does use."""
        return self._content() == other._content()

    def _content(self) -> tuple[object, ...]:
        return (
            self.name,
            self.node_mask_size,
            self.node_mask_size_ipv6,
            frozenset(self.cidrs),
            frozenset(self.excluded),
            self.pod_selector,
            self.namespace_selector,
        )


@dataclass(frozen=True, slots=True)
class NodeCidr:
    """A CIDR that a node holds and the pool that it is of; from a draining one nothing more is allocated."""

    network: Network
    pool: str
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A registered node and the CIDRs that it holds, in the order in which it got them.

    The first CIDR of each family holds the node's router address. `ipv4` and `ipv6` are its underlay
    addresses, `created_ns` Unix time in nanoseconds, `revision` the one of the node feed at which it last
    changed.
    """

    name: str
    ipv4: ipaddress.IPv4Address
    pool: str
    cidrs: tuple[NodeCidr, ...]
    created_ns: int
    ipv6: ipaddress.IPv6Address | None = None
    revision: int = 0

    @property
    def pod_cidrs(self) -> tuple[Network, ...]:
        """The networks of its CIDRs."""
        return tuple(cidr.network for cidr in self.cidrs)

    def first(self, family: Family) -> NodeCidr | None:
        """The CIDR of `family` that has the router address; None without one."""
        return next((cidr for cidr in self.cidrs if cidr.network.version == family), None)

    def router(self, family: Family) -> Address | None:
        """The node's own address in its first CIDR of `family`, its pods' next hop; None without one."""
        first = self.first(family)
        return None if first is None else AddressRange(first.network).router


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
    """What one owner has on one node: an address of each family that node and pool have, IPv4 first."""

    node: str
    owner: str
    held: tuple[Held, ...]
    created_ns: int
    pool: str = ""

    def of(self, family: Family) -> Held | None:
        """What is held of `family`."""
        return next((one for one in self.held if one.address.version == family), None)
