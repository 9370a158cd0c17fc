"""Flows, and the six steps of "The verdict"."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.fuzz.model import policy
from tests.fuzz.model.parsing import ACK, FIN, ICMP, ICMPV6, RST, SYN, TCP, Packet, Tuple5
from tests.fuzz.model.reasons import Drop, Reason
from tests.fuzz.model.reports import Reporter
from tests.fuzz.model.world import HOST, Endpoint, World

INITIATOR, RESPONDER = 0, 1


@dataclass(frozen=True, slots=True)
class Side:
    """What one end of a flow was judged by; ``owner`` is the endpoint's id."""

    owner: int
    subject: int
    epoch: int
    identity: int


@dataclass(slots=True)
class Flow:
    """``tuple`` goes from the initiator. Lists are by direction: the initiator's, the responder's."""

    tuple: Tuple5
    sides: list[Side | None] = field(default_factory=lambda: [None, None])
    flags: list[int] = field(default_factory=lambda: [0, 0])
    packets: list[int] = field(default_factory=lambda: [0, 0])
    octets: list[int] = field(default_factory=lambda: [0, 0])
    expired: bool = False

    @property
    def closed(self) -> bool:
        """After a RST, or a FIN from both ends."""
        first, second = self.flags
        return bool((first | second) & RST or first & second & FIN)


@dataclass(frozen=True, slots=True)
class Judged:
    """One local end of a packet: its endpoint, whether that is the sender, who is at the other end now."""

    endpoint: Endpoint
    is_sender: bool
    other: int


class Conntrack:
    """The flows that the node knows."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.flows: dict[Tuple5, Flow] = {}

    def entry(self, tuple5: Tuple5) -> tuple[Flow, int] | None:
        """What is there of a flow, expired or not, and the direction of the tuple in it."""
        flow = self.flows.get(tuple5)
        if flow is not None:
            return flow, INITIATOR
        turned = None if tuple5.is_of_one_asker else self.flows.get(tuple5.turned())
        return (turned, RESPONDER) if turned is not None else None

    def is_live(self, tuple5: Tuple5) -> bool:
        """Whether there is such a flow, whoever began it."""
        found = self.entry(tuple5)
        return found is not None and not found[0].expired

    def find(self, packet: Packet, judged: list[Judged]) -> tuple[Flow, int] | None:
        """The flow that a packet continues and the packet's direction in it, or None for one that starts."""
        found = self.entry(packet.flow)
        if found is None:
            return None
        flow, direction = found
        if flow.expired or any(self._has_moved(flow, direction, one) for one in judged):
            return None
        is_syn = packet.flow.protocol == TCP and packet.flags & (SYN | ACK) == SYN
        if is_syn and not packet.is_error and (direction == RESPONDER or flow.closed):
            return None
        return flow, direction

    def _has_moved(self, flow: Flow, direction: int, one: Judged) -> bool:
        """Whether an end that is judged here was another endpoint's."""
        side = flow.sides[direction if one.is_sender else 1 - direction]
        return side is not None and side.owner != one.endpoint.endpoint_id

    def judge(self, packet: Packet, judged: list[Judged], reporter: Reporter, point: str) -> None:
        """Raises Drop, or notes the packet. ``point``: where it goes from here."""
        about = reporter.about
        is_ingress = about.is_ingress
        found = self.find(packet, judged)
        if found is None and not packet.may_start:
            raise Drop(Reason.UNKNOWN_CT)
        flow, direction = found if found is not None else (Flow(packet.flow), INITIATOR)
        for one in judged:
            # The initiator's end is judged as egress whichever way the packet goes.
            side = direction if one.is_sender else 1 - direction
            about.endpoint_id, about.is_ingress = one.endpoint.endpoint_id, side == RESPONDER
            after = self._side(flow, packet, direction, side, one, reporter)
            if not packet.is_error:
                # So it stays, even if the other end denies the packet.
                flow.sides[side] = after
        about.is_ingress = is_ingress
        reporter.admitted(packet, point, is_new=found is None)
        self.note(packet, flow, direction, len(about.frame))

    def note(self, packet: Packet, flow: Flow, direction: int, length: int) -> None:
        """A packet of ``length`` bytes that is admitted, of a flow that may be new; an error changes none."""
        if packet.is_error:
            return
        if not flow.tuple.is_of_one_asker:
            self.flows.pop(flow.tuple.turned(), None)
        self.flows[flow.tuple] = flow
        flow.flags[direction] |= packet.flags & (FIN | RST) if packet.flow.protocol == TCP else 0
        flow.packets[direction] += 1
        flow.octets[direction] += length

    def _side(
        self, flow: Flow, packet: Packet, direction: int, side: int, one: Judged, reporter: Reporter
    ) -> Side | None:
        before, endpoint = flow.sides[side], one.endpoint
        identity = one.other
        if before is not None and (direction == RESPONDER or packet.is_error):
            identity = before.identity
        if side == RESPONDER and identity == HOST:
            # By no policy of anybody's.
            return Side(endpoint.endpoint_id, endpoint.subject, 0, identity)
        row = self._world.policies.get(endpoint.subject)
        if row is None:
            if identity != HOST:
                raise Drop(Reason.POLICY_NOT_READY)
            # Passed, but not by any policy: there is nothing to remember.
            return before
        after = Side(endpoint.endpoint_id, endpoint.subject, row.epoch, identity)
        if after == before:
            return before
        rules = row.ingress if side == RESPONDER else row.egress
        # The flow's ends count: an error may come from anywhere.
        address = flow.tuple.source if side == RESPONDER else flow.tuple.destination
        other = self._world.other(identity, address)
        verdict = policy.look_up(rules, other, flow.tuple.protocol, responders_port(flow.tuple))
        reporter.judged(verdict, row.epoch, is_first=before is None and not packet.is_error)
        if verdict.reason is not None:
            raise Drop(verdict.reason)
        return after


def responders_port(tuple5: Tuple5) -> int:
    """The port that policies speak of; of an echo the request's type."""
    return {ICMP: 8, ICMPV6: 128}.get(tuple5.protocol, tuple5.dport)
