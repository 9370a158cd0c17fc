"""The programs on pods' devices and on the overlay's, step by step as the page has them."""

from __future__ import annotations

from tests.fuzz.model import frames, neighbours
from tests.fuzz.model.conntrack import Judged
from tests.fuzz.model.masquerade import is_multicast
from tests.fuzz.model.parsing import ETH_ARP, ETH_IPV6, Packet, ether_type
from tests.fuzz.model.reasons import Drop, Reason
from tests.fuzz.model.steps import (
    MARK_OVERLAY,
    Action,
    Decision,
    Forward,
    Input,
    Steps,
    Way,
    mark_of,
    point_of,
)
from tests.fuzz.model.world import HOST, REMOTE_NODE, Endpoint, Peer, is_outside


class PodPrograms(Steps):
    """from_container, to_container, from_overlay and to_overlay."""

    def from_container(self, given: Input) -> Decision:
        """What a pod sends."""
        about = self._begin(given, is_ingress=False)
        endpoint = self.world.devices.get(given.ifindex)
        if endpoint is None:
            raise Drop(Reason.NO_ENDPOINT_ROW)
        about.endpoint_id, about.source_identity = endpoint.endpoint_id, endpoint.identity
        if given.vlan:
            raise Drop(Reason.UNSUPPORTED_L2)
        kind = ether_type(given.frame)
        if kind == ETH_ARP:
            about.addresses = neighbours.arp_addresses(given.frame)
            return self._answered(neighbours.arp(given.frame, endpoint), endpoint)
        if not self._is_ip(given.frame):
            raise Drop(Reason.UNSUPPORTED_L3)
        header = self._fixed(given.frame)
        if kind == ETH_IPV6 and neighbours.is_solicitation(given.frame):
            return self._answered(neighbours.solicitation(given.frame, header, endpoint), endpoint)
        if header.source != (endpoint.ipv4 if header.family == 4 else endpoint.ipv6):
            chatters = header.family == 6 and neighbours.is_chatter(header)
            raise Drop(Reason.ND_IGNORED if chatters else Reason.INVALID_SOURCE)
        parsed = self._parsed(given.frame, header)
        if parsed.is_error and parsed.flow.source != parsed.source:
            raise Drop(Reason.INVALID_SOURCE)
        local = self.world.by_address.get(parsed.destination)
        peer = Peer(local.identity) if local else self.world.peer_at(parsed.destination)
        about.destination_identity = peer.identity
        judged = [Judged(endpoint, True, peer.identity)]
        if local is not None and not self.world.node.endpoint_routes:
            judged.append(Judged(local, False, endpoint.identity))
        self._judge(parsed, judged, point_of(local, peer))
        if local is not None:
            return self._deliver(given.frame, parsed, local, endpoint.identity)
        if peer.identity == HOST:
            return self._to_host(given.frame, endpoint.identity)
        if peer.tunnel is not None:
            return self._to_tunnel(given, peer.tunnel, endpoint)
        return self._elsewhere(given, parsed, endpoint)

    def to_container(self, given: Input) -> Decision:
        """What the node hands over for a pod."""
        about = self._begin(given, is_ingress=True)
        kind = ether_type(given.frame)
        is_nodes_discovery = kind == ETH_IPV6 and given.ingress == 0 and neighbours.is_discovery(given.frame)
        if kind == ETH_ARP or is_nodes_discovery:
            return Decision(Action.PASS, frame=given.frame)
        endpoint = self.world.devices.get(given.ifindex)
        if endpoint is None:
            raise Drop(Reason.NO_ENDPOINT_ROW)
        about.endpoint_id, about.destination_identity = endpoint.endpoint_id, endpoint.identity
        if not self._is_ip(given.frame):
            raise Drop(Reason.UNSUPPORTED_L3)
        parsed = self._parsed(given.frame)
        if parsed.destination != (endpoint.ipv4 if parsed.family == 4 else endpoint.ipv6):
            raise Drop(Reason.NO_LOCAL_CONTAINER)
        sender = self._sender(given, parsed.source)
        if self.world.node.endpoint_routes and given.ingress == 0 and self.world.host is not None:
            # There the node sends to the device directly, past from_host.
            self._sends(given.frame, self.world.host, "to-endpoint")
            about.endpoint_id = endpoint.endpoint_id
        self._receives(parsed, endpoint, sender)
        return Decision(Action.PASS, frame=given.frame)

    def from_overlay(self, given: Input) -> Decision:
        """What other nodes send."""
        about = self._begin(given, is_ingress=True)
        if given.vlan:
            raise Drop(Reason.UNSUPPORTED_L2)
        if not self._is_ip(given.frame):
            raise Drop(Reason.UNSUPPORTED_L3)
        if given.vni is None:
            raise Drop(Reason.NO_TUNNEL_KEY)
        if given.vni == 0:
            raise Drop(Reason.INVALID_IDENTITY)
        sender = REMOTE_NODE if given.vni == HOST else given.vni
        about.source_identity = sender
        parsed = self._parsed(given.frame)
        here = self.world.peer_at(parsed.source).identity
        if is_outside(sender) and is_outside(here):
            about.source_identity = sender = here
        local = self.world.by_address.get(parsed.destination)
        if local is not None:
            self._receives(parsed, local, sender)
            return self._deliver(given.frame, parsed, local, sender)
        if parsed.destination not in self.world.node.addresses:
            raise Drop(Reason.NO_LOCAL_CONTAINER)
        return self._to_host(given.frame, sender)

    def to_overlay(self, given: Input) -> Decision:
        """What leaves through the tunnel."""
        self._begin(given, is_ingress=False)
        if given.vni is None:
            raise Drop(Reason.NO_TUNNEL_ENDPOINT)
        is_paced = self._paced(given)
        return Decision(Action.PASS, frame=given.frame, mark=MARK_OVERLAY, is_paced=is_paced)

    def _answered(self, answer: bytes, endpoint: Endpoint) -> Decision:
        """A pod's question for a neighbour."""
        forward = Forward(Way.PEER, endpoint.ifindex)
        return Decision(Action.REDIRECT, forward=forward, frame=answer, mark=0, queue=0)

    def _to_tunnel(self, given: Input, tunnel: bytes, endpoint: Endpoint) -> Decision:
        node = self.world.node
        size = given.gso or len(given.frame) - 14
        if node.vxlan and size > node.mtu - 50:
            return self._to_stack(given.frame, endpoint.identity)
        queue = endpoint.ifindex if endpoint.rate else 0
        return self._encapsulate(given.frame, tunnel, endpoint.identity, queue)

    def _elsewhere(self, given: Input, parsed: Packet, endpoint: Endpoint) -> Decision:
        node = self.world.node
        is_forwarded = node.host_routing and parsed.hop_limit > 1 and not is_multicast(parsed.destination)
        device = self.route(parsed.destination) if is_forwarded else 0
        queue, mark = endpoint.ifindex if endpoint.rate else 0, mark_of(endpoint.identity)
        if not device or (not given.gso and parsed.length > node.mtu):
            return Decision(Action.PASS, frame=given.frame, mark=mark, queue=queue)
        frame = frames.hop(given.frame, parsed.family)
        # The device's to_netdev is told who sends.
        forward = Forward(Way.NEIGHBOUR, device)
        return Decision(Action.REDIRECT, forward=forward, frame=frame, mark=mark, queue=queue)
