"""What the node knows: its endpoints, who is at which address, whose policy is what."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

HOST, WORLD, REMOTE_NODE, WORLD_IPV4, WORLD_IPV6 = 1, 2, 6, 9, 10
WORKLOADS = range(256, 65536)
# Of prefixes that policies name.
PREFIXES = range(0xFF0000, 0x1000000)
HOST_ENDPOINT = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket of the node, at ``address``, that hears what comes to ``port`` from anybody, or from ``peer``
    only.
    """

    address: bytes
    protocol: int
    port: int
    peer: tuple[bytes, int] | None = None

    def hears(self, protocol: int, port: int, peer: tuple[bytes, int]) -> bool:
        """Whether what the peer sends there is the socket's."""
        is_it = len(peer[0]) == len(self.address) and (protocol, port) == (self.protocol, self.port)
        return is_it and self.peer in (None, peer)


@dataclass(frozen=True, slots=True)
class Node:
    """The node's configuration. ``vxlan`` 0: no overlay; ``vxlan_port`` is that of its UDP packets.

    ``own`` is by family what masqueraded packets leave with, by one of ``ports`` (first, last); MACs are
    those of the devices ``host`` and ``net``.
    """

    addresses: tuple[bytes, ...]
    host: int
    net: int
    vxlan: int
    nic: int
    mtu: int
    endpoint_routes: bool = False
    host_routing: bool = True
    masquerade: bool = False
    own: dict[int, bytes] = field(default_factory=dict)
    ports: tuple[int, int] = (61000, 65535)
    sockets: tuple[Socket, ...] = ()
    vxlan_port: int = 8472
    host_mac: bytes = bytes(6)
    net_mac: bytes = bytes(6)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A local pod's device with its row. ``rate`` is in bytes a second, 0 without a limit."""

    ifindex: int
    endpoint_id: int
    identity: int
    subject: int
    pod_mac: bytes
    host_mac: bytes
    ipv4: bytes | None = None
    ipv6: bytes | None = None
    rate: int = 0

    def addresses(self) -> tuple[bytes, ...]:
        """Those that it has."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address is not None)


class Tier(IntEnum):
    """Who is asked, and in which order."""

    ADMIN = 0
    NORMAL = 1
    BASELINE = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy entry. ``identity`` and ``protocol`` 0 are any; ``port`` counts in ``prefix`` leading bits.

    ``cookie`` is what reports call it. With ``by_address`` the identity is the number of a prefix; with
    ``tried`` its policy is in audit mode. One that neither denies nor ``passes`` allows.
    """

    identity: int
    protocol: int
    port: int
    prefix: int
    deny: bool = False
    cookie: int = 0
    tier: Tier = Tier.NORMAL
    by_address: bool = False
    tried: bool = False
    passes: bool = False
    order: int = 0

    def covers(self, other: Other, protocol: int, port: int) -> bool:
        """Whether the entry speaks of such a packet."""
        shift = 16 - self.prefix
        is_whose = self.identity == other.number if self.by_address else self.identity in (0, other.identity)
        return is_whose and self.protocol in (0, protocol) and self.port >> shift == port >> shift


@dataclass(frozen=True, slots=True)
class DirectionPolicy:
    """What a subject may do in one direction.

    ``audit`` is the node's audit mode; with ``tries_to_enforce`` a policy in audit mode would enforce.
    """

    enforced: bool = False
    audit: bool = False
    entries: tuple[Entry, ...] = ()
    tries_to_enforce: bool = False

    @property
    def is_in_force(self) -> bool:
        """Whether it can deny anything."""
        binding = [entry for entry in self.entries if not entry.tried]
        return self.enforced or any(
            entry.deny or entry.tier is not Tier.NORMAL or entry.by_address for entry in binding
        )

    @property
    def is_tried(self) -> bool:
        """Whether there is a policy in audit mode."""
        return self.tries_to_enforce or any(entry.tried for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Policy:
    """A subject's row and its entries. The epoch is also the revision that reports name."""

    epoch: int
    ingress: DirectionPolicy = field(default=DirectionPolicy())
    egress: DirectionPolicy = field(default=DirectionPolicy())


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at a prefix; ``tunnel`` is the node to send to, None where the overlay does not lead there."""

    identity: int
    tunnel: bytes | None = None


@dataclass(frozen=True, slots=True)
class Other:
    """Who is at the other end of a flow. ``number`` is that of its address's prefix, None without one."""

    identity: int
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Failsafe:
    """A port that no host policy closes; ``ingress``: of those who call the node, not whom it calls."""

    ingress: bool
    protocol: int
    port: int


class World:
    """The state that the loader writes.

    ``host_subject`` 0: no policy selects the node. ``excluded`` are the destinations that keep pods' own
    addresses. ``wants_events`` and ``wants_trace``: whether somebody reads reports, and of which kinds.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.devices: dict[int, Endpoint] = {}
        self.by_address: dict[bytes, Endpoint] = {}
        self.policies: dict[int, Policy] = {}
        self.host_subject = 0
        self.failsafe: frozenset[Failsafe] = frozenset()
        self.excluded: tuple[tuple[bytes, int], ...] = ()
        self.wants_events = False
        self.wants_trace = False
        self._ipcache: dict[tuple[bytes, int], Peer] = {}
        self._blocks: dict[tuple[bytes, int], int] = {}

    @property
    def host(self) -> Endpoint | None:
        """The node as an endpoint, while a policy selects it."""
        node = self.node
        if not self.host_subject:
            return None
        return Endpoint(node.host, HOST_ENDPOINT, HOST, self.host_subject, node.host_mac, node.net_mac)

    def put_endpoint(self, endpoint: Endpoint) -> None:
        """A new endpoint, or new content for one: its addresses are its own from now on."""
        before = self.devices.get(endpoint.ifindex)
        if before is not None:
            self.remove_endpoint(before.ifindex)
        self.devices[endpoint.ifindex] = endpoint
        for address in endpoint.addresses():
            self.by_address[address] = endpoint

    def remove_endpoint(self, ifindex: int) -> None:
        """The endpoint goes; an address that another one has by now stays."""
        endpoint = self.devices.pop(ifindex)
        for address in endpoint.addresses():
            if self.by_address.get(address) is endpoint:
                del self.by_address[address]

    def put_peer(self, network: bytes, length: int, peer: Peer) -> None:
        """An ipcache entry."""
        self._ipcache[network, length] = peer

    def remove_peer(self, network: bytes, length: int) -> None:
        """An ipcache entry goes."""
        del self._ipcache[network, length]

    def prefixes(self) -> list[tuple[bytes, int]]:
        """What the ipcache has entries for."""
        return list(self._ipcache)

    def peer_at(self, address: bytes) -> Peer:
        """Who is at an address."""
        if address in self.node.addresses:
            return Peer(HOST)
        best, longest = Peer(WORLD), -1
        for (network, length), peer in self._ipcache.items():
            if length > longest and is_within(address, network, length):
                best, longest = peer, length
        return best

    def put_block(self, network: bytes, length: int, number: int) -> None:
        """The number of a prefix that policies know addresses by."""
        self._blocks[network, length] = number

    def remove_block(self, network: bytes, length: int) -> None:
        """Policies know no addresses by that prefix any more."""
        self._blocks.pop((network, length), None)

    def blocks(self) -> list[tuple[bytes, int]]:
        """The prefixes with numbers."""
        return list(self._blocks)

    def other(self, identity: int, address: bytes) -> Other:
        """Who is at the other end of a flow."""
        holding = [block for block in self._blocks if is_within(address, *block)]
        longest = max(holding, key=lambda block: block[1], default=None)
        return Other(identity, self._blocks[longest] if longest is not None else None)


def is_outside(identity: int) -> bool:
    """Whether nobody of the cluster has it."""
    return identity in (WORLD, WORLD_IPV4, WORLD_IPV6) or identity in PREFIXES


def is_within(address: bytes, network: bytes, length: int) -> bool:
    """Whether the address is in the prefix."""
    shift = len(address) * 8 - length
    return (
        len(network) == len(address)
        and int.from_bytes(network, "big") >> shift == int.from_bytes(address, "big") >> shift
    )
