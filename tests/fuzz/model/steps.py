"""What packets and decisions are, and the steps that programs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tests.fuzz.model import frames
from tests.fuzz.model.conntrack import Conntrack, Judged
from tests.fuzz.model.firewall import Firewall
from tests.fuzz.model.masquerade import Masquerade
from tests.fuzz.model.parsing import (
    ETH_IPV4,
    ETH_IPV6,
    Fragments,
    Header,
    Packet,
    Tuple5,
    addresses_only,
    ether_type,
    fixed_header,
    packet,
)
from tests.fuzz.model.reasons import Drop, Reason
from tests.fuzz.model.reports import About, Report, Reporter
from tests.fuzz.model.world import HOST, WORKLOADS, WORLD, Endpoint, Peer, World

MARK_IDENTITY, MARK_OVERLAY = 0x0F00, 0x0E00
MARK_MAGIC = 0x0F00
# Longer than that no packet waits for its departure, in seconds.
LONGEST_WAIT = 2


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
    """What becomes of a packet; frame, mark and queue as it leaves, None for what the page leaves open.

    ``queue`` is the device of the endpoint whose rate is to be kept, 0 for none. ``checksums`` are the places
    in the frame where 0 and 65535 are the same. ``is_paced``: it leaves when its endpoint's rate allows.
    """

    action: Action
    reason: Reason | None = None
    forward: Forward | None = None
    frame: bytes | None = None
    mark: int | None = None
    queue: int | None = None
    checksums: tuple[int, ...] = ()
    is_paced: bool = False


@dataclass(frozen=True, slots=True)
class Input:
    """A packet at a program.

    ``ingress`` is the device by which it came into the node's stack, 0 for the node's own. ``vni`` None:
    without tunnel metadata. ``gso`` is the size of a large packet's segments, 0 for a plain one. ``queue`` is
    the device of the endpoint that is in the queue mapping. ``is_summed``: the device has the sum over the
    whole packet, which must stay right.
    """

    program: str
    frame: bytes
    ifindex: int
    ingress: int = 0
    mark: int = 0
    vni: int | None = None
    vlan: bool = False
    gso: int = 0
    queue: int = 0
    is_summed: bool = False


def mark_of(identity: int) -> int:
    """The mark that carries an identity through the node's stack."""
    return MARK_IDENTITY | identity >> 16 & 0xFF | (identity & 0xFFFF) << 16


def point_of(local: Endpoint | None, peer: Peer) -> str:
    """Where a packet goes, in the words of a trace."""
    if local is not None:
        return "to-endpoint"
    if peer.identity == HOST:
        return "to-host"
    return "to-overlay" if peer.tunnel is not None else "to-network"


class Steps:
    """A node's state and what its programs have in common."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fragments = Fragments()
        self.conntrack = Conntrack(world)
        self.masquerade = Masquerade(world, self.conntrack)
        self.firewall = Firewall(world, self.conntrack)
        # Which device the node routes an address to, 0 for none; whoever made the node knows.
        self.route: Callable[[bytes], int] = lambda address: 0
        # Which port the programs gave a flow whose packet, with its port at that place in the frame (None for
        # a later fragment), they translated; None if they dropped it.
        self.chosen: Callable[[Tuple5, int | None], int | None] = lambda flow, place: None
        # How long an endpoint's next packet would have to wait, in seconds.
        self.wait: Callable[[int], float] = lambda ifindex: 0.0
        self._begin(Input("", b"", 0), is_ingress=True)

    @property
    def reports(self) -> list[Report]:
        """Those on the last packet."""
        return self._reporter.made

    def _begin(self, given: Input, *, is_ingress: bool) -> About:
        self._reporter = Reporter(self.world, About(given.ifindex, is_ingress, given.frame))
        return self._reporter.about

    # Reading

    def _addresses(self, frame: bytes) -> Header:
        """The IP header's addresses; Drop for what has no whole header."""
        header = addresses_only(frame)
        self._reporter.about.addresses = header.source, header.destination
        return header

    def _fixed(self, frame: bytes) -> Header:
        self._addresses(frame)
        return fixed_header(frame)

    def _parsed(self, frame: bytes, header: Header | None = None) -> Packet:
        found = packet(frame, header if header is not None else self._fixed(frame), self.fragments)
        self._reporter.about.packet = found
        return found

    def _is_ip(self, frame: bytes) -> bool:
        return ether_type(frame) in (ETH_IPV4, ETH_IPV6)

    # Who sent it

    def _sender(self, given: Input, source: bytes) -> int:
        """Who sent a packet that the node's stack hands over."""
        if given.ingress == 0:
            identity = HOST
        elif given.mark & MARK_MAGIC == MARK_IDENTITY:
            identity = given.mark >> 16 | (given.mark & 0xFF) << 16
        else:
            return self._came_by_device(source)
        self._reporter.about.source_identity = identity
        return identity

    def _came_by_device(self, source: bytes) -> int:
        identity = self.world.peer_at(source).identity
        if identity == HOST:
            identity = WORLD
        self._reporter.about.source_identity = identity
        if identity in WORKLOADS and self.world.node.vxlan:
            raise Drop(Reason.INVALID_SOURCE)
        return identity

    # Verdicts

    def _judge(self, parsed: Packet, judged: list[Judged], point: str) -> None:
        self.conntrack.judge(parsed, judged, self._reporter, point)

    def _receives(self, parsed: Packet, local: Endpoint, sender: int) -> None:
        about = self._reporter.about
        about.destination_identity = local.identity
        self._judge(parsed, [Judged(local, False, sender)], "to-endpoint")

    # Forwarding

    def _to_stack(self, frame: bytes, sender: int) -> Decision:
        return Decision(Action.PASS, frame=frame, mark=mark_of(sender))

    def _sends(self, frame: bytes, host: Endpoint, point: str) -> None:
        """The node's own packet is judged by its policy."""
        raise NotImplementedError

    def _to_host(self, frame: bytes, sender: int) -> Decision:
        """To the node itself."""
        host, node = self.world.host, self.world.node
        if host is None:
            return self._to_stack(frame, sender)
        frame = frames.addressed(frame, host.pod_mac, host.host_mac)
        forward = Forward(Way.EGRESS, node.net)
        return Decision(Action.REDIRECT, forward=forward, frame=frame, mark=mark_of(sender))

    def _deliver(
        self, frame: bytes, parsed: Packet, local: Endpoint, sender: int, checksums: tuple[int, ...] = ()
    ) -> Decision:
        """To a local endpoint."""
        if self.world.node.endpoint_routes or parsed.hop_limit <= 1:
            return Decision(Action.PASS, frame=frame, mark=mark_of(sender), checksums=checksums)
        frame = frames.addressed(frames.hop(frame, parsed.family), local.pod_mac, local.host_mac)
        forward = Forward(Way.PEER, local.ifindex)
        return Decision(Action.REDIRECT, forward=forward, frame=frame, mark=0, queue=0, checksums=checksums)

    def _encapsulate(self, frame: bytes, tunnel: bytes, sender: int, queue: int | None = None) -> Decision:
        vxlan = self.world.node.vxlan
        if not vxlan:
            raise Drop(Reason.NO_TUNNEL_ENDPOINT)
        forward = Forward(Way.EGRESS, vxlan, sender, tunnel)
        return Decision(Action.REDIRECT, forward=forward, frame=frame, mark=0, queue=queue)

    def _paced(self, given: Input) -> bool:
        """Whether the packet leaves when the queue mapping's endpoint may send; Drop if that is too far."""
        endpoint = self.world.devices.get(given.queue)
        if endpoint is None or not endpoint.rate:
            return False
        if self.wait(endpoint.ifindex) > LONGEST_WAIT:
            raise Drop(Reason.BANDWIDTH)
        return True
