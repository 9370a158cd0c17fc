"""The programs, step by step as the page has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tests.fuzz.model import frames, neighbours
from tests.fuzz.model.conntrack import Conntrack, Judged
from tests.fuzz.model.parsing import (
    ETH_ARP,
    ETH_IPV4,
    ETH_IPV6,
    Fragments,
    Packet,
    addresses_only,
    ether_type,
    fixed_header,
    packet,
)
from tests.fuzz.model.reasons import Drop, Reason
from tests.fuzz.model.world import HOST, REMOTE_NODE, WORKLOADS, WORLD, Endpoint, World

ANY_MAC = bytes.fromhex("020000000001")
MARK_IDENTITY, MARK_OVERLAY = 0x0F00, 0x0400
MARK_MAGIC = 0x0F00


class Action(Enum):
    """What becomes of a packet."""

    DROP = "drop"
    PASS = "pass"
    REDIRECT = "redirect"


class Way(Enum):
    """How a redirect goes; the numbers are those that the programs' test builds note."""

    EGRESS = 1
    PEER = 2
    NEIGHBOUR = 3
    INGRESS = 4


@dataclass(frozen=True, slots=True)
class Forward:
    """Where a redirect leads; the last two for the overlay."""

    way: Way
    ifindex: int
    vni: int = 0
    remote: bytes = b"\0\0\0\0"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a packet; frame and mark as it leaves, None for what the page leaves open."""

    action: Action
    reason: Reason | None = None
    forward: Forward | None = None
    frame: bytes | None = None
    mark: int | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """A packet at a program.

    ``ingress`` is the device by which it came into the node's stack, 0 for the node's own. ``vni`` None:
    without tunnel metadata. ``gso`` is the size of a large packet's segments, 0 for a plain one.
    """

    program: str
    frame: bytes
    ifindex: int
    ingress: int = 0
    mark: int = 0
    vni: int | None = None
    vlan: bool = False
    gso: int = 0


def mark_of(identity: int) -> int:
    """The mark that carries an identity through the node's stack."""
    return MARK_IDENTITY | identity >> 16 & 0xFF | (identity & 0xFFFF) << 16


class Model:
    """A node: give it packets with :meth:`run`, change ``world`` in between."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fragments = Fragments()
        self.conntrack = Conntrack(world)
        # Which device the node routes an address to, 0 for none; whoever made the node knows.
        self.route: Callable[[bytes], int] = lambda address: 0

    def run(self, given: Input) -> Decision:
        """What the program makes of the packet."""
        try:
            return getattr(self, given.program)(given)  # type: ignore[no-any-return]
        except Drop as drop:
            return Decision(Action.DROP, reason=drop.reason)

    # Programs

    def from_container(self, given: Input) -> Decision:
        endpoint = self.world.devices.get(given.ifindex)
        if endpoint is None:
            raise Drop(Reason.NO_ENDPOINT_ROW)
        if given.vlan:
            raise Drop(Reason.UNSUPPORTED_L2)
        kind = ether_type(given.frame)
        if kind == ETH_ARP:
            answer = neighbours.arp(given.frame, endpoint)
            return Decision(
                Action.REDIRECT, forward=Forward(Way.PEER, endpoint.ifindex), frame=answer, mark=0
            )
        if kind not in (ETH_IPV4, ETH_IPV6):
            raise Drop(Reason.UNSUPPORTED_L3)
        header = fixed_header(given.frame)
        if kind == ETH_IPV6 and neighbours.is_solicitation(given.frame):
            answer = neighbours.solicitation(given.frame, header, endpoint)
            return Decision(
                Action.REDIRECT, forward=Forward(Way.PEER, endpoint.ifindex), frame=answer, mark=0
            )
        if header.source != (endpoint.ipv4 if header.family == 4 else endpoint.ipv6):
            raise Drop(Reason.INVALID_SOURCE)
        parsed = packet(given.frame, header, self.fragments)
        if parsed.is_error and parsed.flow.source != parsed.source:
            raise Drop(Reason.INVALID_SOURCE)
        local = self.world.by_address.get(parsed.destination)
        peer = self.world.peer_at(parsed.destination)
        judged = [Judged(endpoint, True, local.identity if local else peer.identity)]
        if local is not None and not self.world.node.endpoint_routes:
            judged.append(Judged(local, False, endpoint.identity))
        self.conntrack.judge(parsed, judged, len(given.frame))
        if local is not None:
            return self._deliver(given, parsed, local, endpoint.identity)
        if peer.identity == HOST:
            return self._to_stack(given, endpoint.identity)
        if peer.tunnel is not None:
            return self._to_tunnel(given, peer.tunnel, endpoint.identity)
        return self._elsewhere(given, parsed, endpoint.identity)

    def to_container(self, given: Input) -> Decision:
        kind = ether_type(given.frame)
        is_nodes_discovery = kind == ETH_IPV6 and given.ingress == 0 and neighbours.is_discovery(given.frame)
        if kind == ETH_ARP or is_nodes_discovery:
            return Decision(Action.PASS, frame=given.frame)
        endpoint = self.world.devices.get(given.ifindex)
        if endpoint is None:
            raise Drop(Reason.NO_ENDPOINT_ROW)
        if kind not in (ETH_IPV4, ETH_IPV6):
            raise Drop(Reason.UNSUPPORTED_L3)
        header = fixed_header(given.frame)
        parsed = packet(given.frame, header, self.fragments)
        if parsed.destination != (endpoint.ipv4 if header.family == 4 else endpoint.ipv6):
            raise Drop(Reason.NO_LOCAL_CONTAINER)
        sender = self._sender(given, parsed.source)
        self.conntrack.judge(parsed, [Judged(endpoint, False, sender)], len(given.frame))
        return Decision(Action.PASS, frame=given.frame)

    def from_overlay(self, given: Input) -> Decision:
        if given.vlan:
            raise Drop(Reason.UNSUPPORTED_L2)
        if ether_type(given.frame) not in (ETH_IPV4, ETH_IPV6):
            raise Drop(Reason.UNSUPPORTED_L3)
        if given.vni is None:
            raise Drop(Reason.NO_TUNNEL_KEY)
        if given.vni == 0:
            raise Drop(Reason.INVALID_IDENTITY)
        sender = REMOTE_NODE if given.vni == HOST else given.vni
        parsed = packet(given.frame, fixed_header(given.frame), self.fragments)
        local = self.world.by_address.get(parsed.destination)
        if local is None and parsed.destination not in self.world.node.addresses:
            raise Drop(Reason.NO_LOCAL_CONTAINER)
        if local is None:
            return self._to_stack(given, sender)
        self.conntrack.judge(parsed, [Judged(local, False, sender)], len(given.frame))
        return self._deliver(given, parsed, local, sender)

    def from_host(self, given: Input) -> Decision:
        kind = ether_type(given.frame)
        if kind == ETH_ARP:
            # The node is its own neighbour there; which MAC it is told is all the same.
            answer = neighbours.arp_of_anybody(given.frame, ANY_MAC)
            return Decision(Action.REDIRECT, forward=Forward(Way.INGRESS, given.ifindex), frame=answer)
        if kind not in (ETH_IPV4, ETH_IPV6):
            raise Drop(Reason.UNSUPPORTED_L3)
        header = addresses_only(given.frame)
        sender = self._sender(given, header.source)
        local = self.world.by_address.get(header.destination)
        if local is not None:
            frame = frames.addressed(given.frame, local.pod_mac, local.host_mac)
            return Decision(
                Action.REDIRECT, forward=Forward(Way.EGRESS, local.ifindex), frame=frame, mark=mark_of(sender)
            )
        tunnel = self.world.peer_at(header.destination).tunnel
        if tunnel is None:
            raise Drop(Reason.NO_LOCAL_CONTAINER)
        # The stack's route has the tunnel's MTU: what is larger does not come here.
        return self._encapsulate(given, tunnel, sender)

    # Steps that they share

    def _sender(self, given: Input, source: bytes) -> int:
        """Who sent a packet that the node's stack hands over."""
        if given.ingress == 0:
            return HOST
        if given.mark & MARK_MAGIC == MARK_IDENTITY:
            return given.mark >> 16 | (given.mark & 0xFF) << 16
        return self._came_by_device(source)

    def _came_by_device(self, source: bytes) -> int:
        identity = self.world.peer_at(source).identity
        if identity == HOST:
            return WORLD
        if identity in WORKLOADS and self.world.node.vxlan:
            raise Drop(Reason.INVALID_SOURCE)
        return identity

    def _to_stack(self, given: Input, sender: int) -> Decision:
        return Decision(Action.PASS, frame=given.frame, mark=mark_of(sender))

    def _deliver(self, given: Input, parsed: Packet, local: Endpoint, sender: int) -> Decision:
        if self.world.node.endpoint_routes or parsed.hop_limit <= 1:
            return self._to_stack(given, sender)
        frame = frames.addressed(frames.hop(given.frame, parsed.family), local.pod_mac, local.host_mac)
        return Decision(Action.REDIRECT, forward=Forward(Way.PEER, local.ifindex), frame=frame, mark=0)

    def _to_tunnel(self, given: Input, tunnel: bytes, sender: int) -> Decision:
        node = self.world.node
        size = given.gso or len(given.frame) - 14
        if node.vxlan and size > node.mtu - 50:
            return self._to_stack(given, sender)
        return self._encapsulate(given, tunnel, sender)

    def _encapsulate(self, given: Input, tunnel: bytes, sender: int) -> Decision:
        vxlan = self.world.node.vxlan
        if not vxlan:
            raise Drop(Reason.NO_TUNNEL_ENDPOINT)
        forward = Forward(Way.EGRESS, vxlan, sender, tunnel)
        return Decision(Action.REDIRECT, forward=forward, frame=given.frame, mark=0)

    def _elsewhere(self, given: Input, parsed: Packet, sender: int) -> Decision:
        node = self.world.node
        device = self.route(parsed.destination) if node.host_routing and parsed.hop_limit > 1 else 0
        if not device or (not given.gso and parsed.length > node.mtu):
            return self._to_stack(given, sender)
        frame = frames.hop(given.frame, parsed.family)
        # The device's to_netdev is told who sends.
        return Decision(
            Action.REDIRECT, forward=Forward(Way.NEIGHBOUR, device), frame=frame, mark=mark_of(sender)
        )
