"""The host firewall: the node's own packets under the policy that selects it."""

from __future__ import annotations

from tests.fuzz.model import policy
from tests.fuzz.model.conntrack import INITIATOR, RESPONDER, Conntrack, Flow, Judged, Side, responders_port
from tests.fuzz.model.parsing import ACK, ICMP, ICMPV6, SYN, TCP, Header, Packet
from tests.fuzz.model.reasons import Drop, Reason
from tests.fuzz.model.reports import Reporter
from tests.fuzz.model.world import HOST_ENDPOINT, Endpoint, Failsafe, World

ECHO_REPLY6 = 129
# What does not parse for one of these is still something that a policy can speak of.
_KNOWABLE = (Reason.UNKNOWN_L4, Reason.UNKNOWN_ICMP4, Reason.UNKNOWN_ICMP6)


class Firewall:
    """Judges what is between the node and somebody else."""

    def __init__(self, world: World, conntrack: Conntrack) -> None:
        self._world = world
        self._conntrack = conntrack

    def unparsed(self, drop: Drop, *, sends: bool, other: int, host: Endpoint, reporter: Reporter) -> None:
        """What could not be parsed, which was ``drop``. Raises Drop."""
        self._begin(host, reporter, is_ingress=not sends)
        # Neighbour discovery, and messages about who listens to which group, no node can do without.
        if drop.reason is not Reason.ND_IGNORED:
            self._alone(drop, drop.header, sends=sends, other=other, reporter=reporter)

    def parsed(
        self, packet: Packet, *, sends: bool, other: int, host: Endpoint, reporter: Reporter, point: str
    ) -> None:
        """A packet that the node sends, or receives, ``other`` being at its other end. Raises Drop, or notes
        the packet.
        """
        self._begin(host, reporter, is_ingress=not sends)
        if sends and self._is_routers(packet):
            return
        found = self._conntrack.find(packet, [Judged(host, sends, other)])
        if found is not None:
            flow, direction = found
        else:
            begun_by_sender = self._begun_by_sender(packet, sends=sends)
            if begun_by_sender is None and not packet.may_start:
                self._alone(None, packet, sends=sends, other=other, reporter=reporter)
                return
            flow, direction = Flow(packet.flow), INITIATOR
            if begun_by_sender is False:
                flow, direction = Flow(packet.flow.turned()), RESPONDER
            if packet.is_error and not sends:
                # It may come from a router: what counts is who is at the other end.
                other = self._world.peer_at(packet.flow.source).identity
        side = direction if sends else 1 - direction
        before = flow.sides[side]
        if found is not None and before is not None and (direction == RESPONDER or packet.is_error):
            other = before.identity
        about = reporter.about
        about.is_ingress = side == RESPONDER
        is_new = found is None and not packet.is_error
        after = self._side(flow, side, other, host, reporter, is_error=packet.is_error)
        if not packet.is_error:
            flow.sides[side] = after
        about.is_ingress = not sends
        reporter.admitted(packet, point, is_new=is_new)
        self._conntrack.note(packet, flow, direction, len(about.frame))

    def _begin(self, host: Endpoint, reporter: Reporter, *, is_ingress: bool) -> None:
        reporter.about.endpoint_id, reporter.about.is_ingress = host.endpoint_id, is_ingress

    def _is_routers(self, packet: Packet) -> bool:
        """As a router the node tells of flows of others, if there are such."""
        is_live = self._conntrack.is_live(packet.flow)
        return packet.is_error and is_live and packet.flow.source not in self._world.node.addresses

    def _begun_by_sender(self, packet: Packet, *, sends: bool) -> bool | None:
        """Whether the sender began the node's TCP connection that the packet is of; None if it is of none."""
        flow = packet.flow
        if flow.protocol != TCP or packet.flags & (SYN | ACK) == SYN:
            return None
        local, peer = (flow.sport, (flow.destination, flow.dport)), (flow.dport, (flow.source, flow.sport))
        port, other = local if sends else peer
        address = flow.source if sends else flow.destination
        sockets = [
            one for one in self._world.node.sockets if one.hears(TCP, port, other) and one.address == address
        ]
        if not any(one.peer is not None for one in sockets):
            return None
        # Where the node listens the peer has connected to it.
        by_peer = any(one.peer is None for one in sockets)
        return by_peer != sends

    def _side(
        self, flow: Flow, side: int, other: int, host: Endpoint, reporter: Reporter, *, is_error: bool
    ) -> Side | None:
        row, before = self._world.policies.get(host.subject), flow.sides[side]
        reason: Reason | None = Reason.POLICY_NOT_READY
        epoch, protocol, port = 0, flow.tuple.protocol, responders_port(flow.tuple)
        after = Side(HOST_ENDPOINT, host.subject, epoch, other)
        if row is not None:
            epoch, after = row.epoch, Side(HOST_ENDPOINT, host.subject, row.epoch, other)
            if after == before:
                return before
            rules = row.ingress if side == RESPONDER else row.egress
            address = flow.tuple.source if side == RESPONDER else flow.tuple.destination
            verdict = policy.look_up(rules, self._world.other(other, address), protocol, port)
            reporter.judged(verdict, row.epoch, is_first=before is None and not is_error)
            reason = verdict.reason
        if reason is None:
            return after
        if Failsafe(side == RESPONDER, protocol, port) not in self._world.failsafe:
            raise Drop(reason)
        if before is None and not is_error:
            reporter.failsafe(epoch)
        # It was no policy's verdict.
        return Side(HOST_ENDPOINT, 0, epoch, other)

    def _alone(
        self,
        drop: Drop | None,
        place: Header | Packet | None,
        *,
        sends: bool,
        other: int,
        reporter: Reporter,
    ) -> None:
        """What neither continues nor starts a flow is judged by itself: by what is said of its protocol."""
        about = reporter.about
        about.packet = None
        row = self._world.policies.get(self._world.host_subject)
        if row is None:
            raise Drop(Reason.POLICY_NOT_READY)
        rules = row.egress if sends else row.ingress
        if not rules.is_in_force and not rules.is_tried:
            # As long as no policy says otherwise it is the stack's to refuse.
            return
        if drop is not None and drop.reason not in _KNOWABLE:
            if not rules.is_in_force:
                return
            raise drop
        assert place is not None
        protocol = place.protocol if isinstance(place, Header) else _icmp(place)
        kind = 0
        if isinstance(place, Packet) and place.is_later_fragment:
            # Of all that is of no flow only echo replies come in pieces.
            kind = 0 if place.family == 4 else ECHO_REPLY6
        elif protocol in (ICMP, ICMPV6):
            if place.start >= len(about.frame):
                if not rules.is_in_force:
                    return
                raise Drop(Reason.CT_HEADER)
            kind = about.frame[place.start]
        address = place.destination if sends else place.source
        verdict = policy.look_up(rules, self._world.other(other, address), protocol, kind)
        reporter.judged(verdict, row.epoch, is_first=False)
        if verdict.reason is not None:
            raise Drop(verdict.reason)


def _icmp(packet: Packet) -> int:
    return ICMP if packet.family == 4 else ICMPV6
