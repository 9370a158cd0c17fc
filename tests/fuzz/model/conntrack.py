"""Flows, and the six steps of "The verdict"."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.fuzz.model import policy
from tests.fuzz.model.parsing import ACK, FIN, ICMP, ICMPV6, RST, SYN, TCP, Packet, Tuple5
from tests.fuzz.model.reasons import Drop, Reason
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

    def find(self, packet: Packet, judged: list[Judged]) -> tuple[Flow, int] | None:
        """The flow that a packet continues and the packet's direction in it, or None for one that starts."""
        flow, direction = self.flows.get(packet.flow), INITIATOR
        if flow is None and not packet.flow.is_of_one_asker:
            flow, direction = self.flows.get(packet.flow.turned()), RESPONDER
        if flow is None or flow.expired or any(self._has_moved(flow, direction, one) for one in judged):
            return None
        is_syn = packet.flow.protocol == TCP and packet.flags & (SYN | ACK) == SYN
        if is_syn and not packet.is_error and (direction == RESPONDER or flow.closed):
            return None
        return flow, direction

    def _has_moved(self, flow: Flow, direction: int, one: Judged) -> bool:
        """Whether an end that is judged here was another endpoint's."""
        side = flow.sides[direction if one.is_sender else 1 - direction]
        return side is not None and side.owner != one.endpoint.endpoint_id

    def judge(self, packet: Packet, judged: list[Judged], length: int) -> None:
        """Raises Drop, or notes the packet of ``length`` bytes."""
        found = self.find(packet, judged)
        if found is None and not packet.may_start:
            raise Drop(Reason.UNKNOWN_CT)
        flow, direction = found if found is not None else (Flow(packet.flow), INITIATOR)
        for one in judged:
            # The initiator's end is judged as egress whichever way the packet goes.
            side = direction if one.is_sender else 1 - direction
            after = self._side(flow, packet, direction, side, one)
            if not packet.is_error:
                # So it stays, even if the other end denies the packet.
                flow.sides[side] = after
        if packet.is_error:
            return
        if found is None:
            if not packet.flow.is_of_one_asker:
                self.flows.pop(packet.flow.turned(), None)
            self.flows[packet.flow] = flow
        flow.flags[direction] |= packet.flags & (FIN | RST) if packet.flow.protocol == TCP else 0
        flow.packets[direction] += 1
        flow.octets[direction] += length

    def _side(self, flow: Flow, packet: Packet, direction: int, side: int, one: Judged) -> Side | None:
        before = flow.sides[side]
        identity = one.other
        if before is not None and (direction == RESPONDER or packet.is_error):
            identity = before.identity
        protocol = flow.tuple.protocol
        port = {ICMP: 8, ICMPV6: 128}.get(protocol, flow.tuple.dport)
        row = self._world.policies.get(one.endpoint.subject)
        reason = policy.verdict(
            row, ingress=side == RESPONDER, identity=identity, protocol=protocol, port=port
        )
        if reason is not None:
            raise Drop(reason)
        if side == RESPONDER and identity == HOST:
            # By no policy of anybody's.
            return Side(one.endpoint.endpoint_id, 0, 0, identity)
        if row is None:
            # Passed, but not by any policy: there is nothing to remember.
            return before
        return Side(one.endpoint.endpoint_id, one.endpoint.subject, row.epoch, identity)
