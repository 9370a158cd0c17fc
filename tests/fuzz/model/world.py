"""What the node knows: its endpoints, who is at which address, whose policy is what."""

from __future__ import annotations

from dataclasses import dataclass, field

HOST, WORLD, REMOTE_NODE = 1, 2, 6
WORKLOADS = range(256, 65536)


@dataclass(frozen=True, slots=True)
class Node:
    """The node's configuration. Addresses that it does not have are None; ``vxlan`` 0: no overlay."""

    addresses: tuple[bytes, ...]
    host: int
    net: int
    vxlan: int
    nic: int
    mtu: int
    endpoint_routes: bool = False
    host_routing: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A local pod's device with its row."""

    ifindex: int
    endpoint_id: int
    identity: int
    subject: int
    pod_mac: bytes
    host_mac: bytes
    ipv4: bytes | None = None
    ipv6: bytes | None = None

    def addresses(self) -> tuple[bytes, ...]:
        """Those that it has."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address is not None)


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy entry. ``identity`` and ``protocol`` 0 are any; ``port`` counts in ``prefix`` leading bits."""

    identity: int
    protocol: int
    port: int
    prefix: int
    deny: bool = False

    def covers(self, identity: int, protocol: int, port: int) -> bool:
        """Whether the entry speaks of such a packet."""
        shift = 16 - self.prefix
        return (
            self.identity in (0, identity)
            and self.protocol in (0, protocol)
            and self.port >> shift == port >> shift
        )


@dataclass(frozen=True, slots=True)
class DirectionPolicy:
    """What a subject may do in one direction."""

    enforced: bool = False
    audit: bool = False
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """A subject's row and its entries."""

    epoch: int
    ingress: DirectionPolicy = field(default=DirectionPolicy())
    egress: DirectionPolicy = field(default=DirectionPolicy())


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at a prefix; ``tunnel`` is the node to send to, None where the overlay does not lead there."""

    identity: int
    tunnel: bytes | None = None


class World:
    """The state that the loader writes."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.devices: dict[int, Endpoint] = {}
        self.by_address: dict[bytes, Endpoint] = {}
        self.policies: dict[int, Policy] = {}
        self._ipcache: dict[tuple[bytes, int], Peer] = {}

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
        value = int.from_bytes(address, "big")
        bits = len(address) * 8
        best, longest = Peer(WORLD), -1
        for (network, length), peer in self._ipcache.items():
            if len(network) == len(address) and length > longest:
                shift = bits - length
                if int.from_bytes(network, "big") >> shift == value >> shift:
                    best, longest = peer, length
        return best
