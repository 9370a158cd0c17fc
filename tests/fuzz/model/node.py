"""The programs on the node's own devices, step by step as the page has them."""

from __future__ import annotations

from tests.fuzz.model import frames, neighbours
from tests.fuzz.model.conntrack import RESPONDER
from tests.fuzz.model.masquerade import is_multicast
from tests.fuzz.model.parsing import ETH_ARP, ETH_IPV6, ETHERNET, UDP, Header, Packet, ether_type
from tests.fuzz.model.reasons import Drop, Reason
from tests.fuzz.model.rewriting import readdressed
from tests.fuzz.model.steps import (
    MARK_IDENTITY,
    MARK_MAGIC,
    MARK_OVERLAY,
    Action,
    Decision,
    Forward,
    Input,
    Steps,
    Way,
    mark_of,
)
from tests.fuzz.model.world import HOST, Endpoint

ANY_MAC = bytes.fromhex("020000000001")
_ICMP_ID = 4


class NodePrograms(Steps):
    """from_host, to_host, from_netdev and to_netdev."""

    def from_host(self, given: Input) -> Decision:
        """What the node sends to pods."""
        about = self._begin(given, is_ingress=False)
        if ether_type(given.frame) == ETH_ARP:
            about.addresses = neighbours.arp_addresses(given.frame)
            # The node is its own neighbour there; which MAC it is told is all the same.
            answer = neighbours.arp_of_node(given.frame, ANY_MAC)
            return Decision(Action.REDIRECT, forward=Forward(Way.INGRESS, given.ifindex), frame=answer)
        if not self._is_ip(given.frame):
            raise Drop(Reason.UNSUPPORTED_L3)
        header = self._addresses(given.frame)
        sender = self._sender(given, header.source)
        local = self.world.by_address.get(header.destination)
        peer = self.world.peer_at(header.destination)
        about.destination_identity = local.identity if local is not None else peer.identity
        if self.world.host is not None and given.ingress == 0:
            # What goes nowhere is on its way to the network until that is found.
            elsewhere = "to-overlay" if peer.tunnel is not None else "to-network"
            self._sends(given.frame, self.world.host, "to-endpoint" if local is not None else elsewhere)
        if local is not None:
            frame = frames.addressed(given.frame, local.pod_mac, local.host_mac)
            forward = Forward(Way.EGRESS, local.ifindex)
            return Decision(Action.REDIRECT, forward=forward, frame=frame, mark=mark_of(sender))
        if peer.tunnel is None:
            raise Drop(Reason.NO_LOCAL_CONTAINER)
        # The stack's route has the tunnel's MTU: what is larger does not come here.
        return self._encapsulate(given.frame, peer.tunnel, sender)

    def to_host(self, given: Input) -> Decision:
        """What pods send to the node."""
        self._begin(given, is_ingress=True)
        host = self.world.host
        if host is not None and self._is_ip(given.frame) and not self._is_discovery(given.frame):
            self._reporter.about.destination_identity = HOST
            parsed = self._parsed_or_not(given.frame)
            source = self._source(given.frame)
            # What is marked did come by a device, the pod's.
            is_marked = given.mark & MARK_MAGIC == MARK_IDENTITY
            sender = self._sender(given, source) if is_marked else self._came_by_device(source)
            self._judged_by_node(host, parsed, sends=False, other=sender)
        return Decision(Action.PASS, frame=given.frame, mark=given.mark)

    def from_netdev(self, given: Input) -> Decision:
        """What comes in from the network."""
        self._begin(given, is_ingress=True)
        passed = Decision(Action.PASS, frame=given.frame, mark=0, queue=0)
        try:
            header = self._addresses(given.frame)
        except Drop:
            return passed
        if header.destination in self.world.node.addresses:
            return self._for_node(given, header) or passed
        if header.destination in self.world.by_address:
            return self._for_endpoint(given.frame, self._parsed(given.frame))
        host = self.world.host
        if host is not None and self._is_heard(header) and not self._is_discovery(given.frame):
            self._receives_as_node(host, header, self._parsed_or_not(given.frame))
        return passed

    def to_netdev(self, given: Input) -> Decision:
        """What leaves by a device of the node."""
        about = self._begin(given, is_ingress=False)
        passed = Decision(Action.PASS, frame=given.frame, mark=given.mark)
        if given.mark == MARK_OVERLAY:
            return passed
        is_paced = self._paced(given)
        passed = Decision(Action.PASS, frame=given.frame, mark=given.mark, is_paced=is_paced)
        try:
            header = self._addresses(given.frame)
        except Drop:
            return passed
        host, local = self.world.host, self.world.by_address.get(header.source)
        if self.world.node.masquerade and local is not None:
            about.source_identity, about.endpoint_id = local.identity, local.endpoint_id
            return self._masqueraded(given, header, is_paced=is_paced) or passed
        # What the stack forwards may have been given the node's address, as answers show.
        is_own = given.ingress == 0 or self.world.peer_at(header.source).identity == HOST
        if host is not None and is_own and not self._is_discovery(given.frame):
            about.source_identity = HOST
            about.destination_identity = self.world.peer_at(header.destination).identity
            self._sends(given.frame, host, "to-network")
        return passed

    # Steps

    def _is_discovery(self, frame: bytes) -> bool:
        return ether_type(frame) == ETH_IPV6 and neighbours.is_discovery(frame)

    def _is_heard(self, header: Header) -> bool:
        """Whether the stack would not forward a packet, but take it for the node's, or lose it."""
        stays = header.family == 6 and neighbours.is_of_link(header.source)
        return stays or is_multicast(header.destination) or not self.route(header.destination)

    def _source(self, frame: bytes) -> bytes:
        """The source's address, the unspecified one if there is no whole header."""
        try:
            return self._addresses(frame).source
        except Drop:
            return bytes(16 if ether_type(frame) == ETH_IPV6 else 4)

    def _parsed_or_not(self, frame: bytes) -> Packet | Drop:
        try:
            return self._parsed(frame)
        except Drop as drop:
            return drop

    def _judged_by_node(
        self, host: Endpoint, parsed: Packet | Drop, *, sends: bool, other: int, point: str = "to-host"
    ) -> None:
        reporter = self._reporter
        if isinstance(parsed, Drop):
            self.firewall.unparsed(parsed, sends=sends, other=other, host=host, reporter=reporter)
        else:
            self.firewall.parsed(
                parsed, sends=sends, other=other, host=host, reporter=reporter,
                point=point,
            )  # fmt: skip

    def _sends(self, frame: bytes, host: Endpoint, point: str) -> None:
        """The node's own packet is judged."""
        about = self._reporter.about
        is_ingress = about.is_ingress
        parsed = self._parsed_or_not(frame)
        self._judged_by_node(host, parsed, sends=True, other=about.destination_identity, point=point)
        about.is_ingress = is_ingress

    def _receives_as_node(self, host: Endpoint, header: Header, parsed: Packet | Drop) -> None:
        """A packet for the node from the network is judged."""
        self._reporter.about.destination_identity = HOST
        sender = self._came_by_device(header.source)
        self._judged_by_node(host, parsed, sends=False, other=sender)

    def _for_node(self, given: Input, header: Header) -> Decision | None:
        """To one of the node's addresses; None: it passes as it came."""
        node, host, frame = self.world.node, self.world.host, given.frame
        if node.vxlan and _is_whole_overlays(frame, header, node.vxlan_port):
            return None
        if (not node.masquerade and host is None) or self._is_discovery(frame):
            return None
        parsed = self._parsed_or_not(frame)
        if isinstance(parsed, Packet):
            if node.vxlan and _is_overlays(parsed, node.vxlan_port):
                return None
            flow = self.masquerade.back(parsed) if node.masquerade else None
            if flow is not None:
                return self._answer(frame, parsed, flow.source, flow.sport)
        if host is not None:
            self._receives_as_node(host, header, parsed)
        return None

    def _answer(self, frame: bytes, parsed: Packet, pod: bytes, port: int) -> Decision:
        """An answer to a masqueraded flow, to its pod."""
        about = self._reporter.about
        frame, checksums = readdressed(frame, parsed, is_source=False, address=pod, port=port)
        parsed = parsed.to(pod, port)
        about.frame, about.packet, about.addresses = frame, parsed, (parsed.source, pod)
        return self._for_endpoint(frame, parsed, checksums)

    def _for_endpoint(self, frame: bytes, parsed: Packet, checksums: tuple[int, ...] = ()) -> Decision:
        sender = self._came_by_device(parsed.source)
        local = self.world.by_address.get(parsed.destination)
        if local is None:
            raise Drop(Reason.NO_LOCAL_CONTAINER)
        self._receives(parsed, local, sender)
        return self._deliver(frame, parsed, local, sender, checksums)

    def _masqueraded(self, given: Input, header: Header, *, is_paced: bool) -> Decision | None:
        """A pod's packet with the node's address; None: it keeps its own."""
        if not self.masquerade.is_wanted(header.family, header.destination):
            return None
        parsed = self._parsed(given.frame)
        found = self.conntrack.entry(parsed.flow)
        if found is not None and found[1] == RESPONDER:
            return None
        place = parsed.start + (_ICMP_ID if parsed.flow.is_echo else 0)
        seen = None if parsed.is_later_fragment else place
        port = self.masquerade.leave(parsed, lambda: self.chosen(parsed.flow, seen))
        own = self.world.node.own[parsed.family]
        frame, checksums = readdressed(given.frame, parsed, is_source=True, address=own, port=port)
        return Decision(Action.PASS, frame=frame, mark=given.mark, checksums=checksums, is_paced=is_paced)


def _is_whole_overlays(frame: bytes, header: Header, port: int) -> bool:
    """Whether it is UDP for the overlay's port: IPv4 without options, and no fragment."""
    if header.family != 4 or header.protocol != UDP or len(frame) < ETHERNET + 28 or frame[14] & 15 != 5:
        return False
    is_fragment = int.from_bytes(frame[20:22], "big") & 0x3FFF
    return not is_fragment and int.from_bytes(frame[36:38], "big") == port


def _is_overlays(parsed: Packet, port: int) -> bool:
    """The same of a packet with options, or of a fragment."""
    flow = parsed.flow
    return parsed.family == 4 and not parsed.is_error and (flow.protocol, flow.dport) == (UDP, port)
