"""The policy service's messages as domain types, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.types.v1 import types_pb2

from services.chassis.telemetry import TraceContext
from services.loader.endpoints.endpoint import NamedPort
from services.loader.policy.entries import EGRESS, INGRESS, EntryKey, EntryValue
from services.loader.policy.plan import DirectionDefault, SubjectState
from services.loader.policy.subjects import Subject

PROTOCOL_NUMBERS: Final = {
    types_pb2.PROTOCOL_TCP: 6,
    types_pb2.PROTOCOL_UDP: 17,
    types_pb2.PROTOCOL_SCTP: 132,
    types_pb2.PROTOCOL_ICMP: 1,
}
PROTOCOLS: Final = {number: protocol for protocol, number in PROTOCOL_NUMBERS.items()}
_DIRECTIONS: Final = {pb.DIRECTION_INGRESS: INGRESS, pb.DIRECTION_EGRESS: EGRESS}


def policy_name(key: pb.PolicyKey) -> str:
    """``CiliumNetworkPolicy shop/web``."""
    return f"{key.kind} {key.namespace}/{key.name}" if key.namespace else f"{key.kind} {key.name}"


def rule_name(rule: pb.RuleRef) -> str:
    """``CiliumNetworkPolicy shop/web spec.ingress[0]``."""
    return f"{policy_name(rule.policy)} {rule.path}"


def default_of(message: pb.DirectionPolicy) -> DirectionDefault:
    """What holds in a direction where no entry decides."""
    return DirectionDefault(message.enforced, tuple(policy_name(key) for key in message.enforced_by))


def entry_key(entry: pb.PolicyEntry) -> EntryKey:
    """The key of an entry. Raises ValueError for one that has no direction."""
    direction = _DIRECTIONS.get(entry.direction)
    if direction is None:
        raise ValueError(f"a policy entry has the direction {entry.direction}")
    return EntryKey(direction, entry.identity, entry.protocol, entry.port, entry.port_prefix_length)


def entries_of(messages: Iterable[pb.PolicyEntry]) -> dict[EntryKey, EntryValue]:
    """Entries by key."""
    return {entry_key(entry): EntryValue(entry.deny, entry.rule_cookie) for entry in messages}


def state_of(snapshot: pb.SubjectSnapshot, revision: int) -> SubjectState:
    """A subject's whole state."""
    return SubjectState(
        ingress=default_of(snapshot.ingress),
        egress=default_of(snapshot.egress),
        entries=entries_of(snapshot.entries),
        revision=revision,
    )


def ports_message(ports: Iterable[NamedPort]) -> list[types_pb2.NamedPort]:
    """Named ports as the services take them."""
    return [
        types_pb2.NamedPort(name=port.name, port=port.port, protocol=PROTOCOLS[port.protocol])
        for port in ports
    ]


def trace_message(trace: TraceContext) -> types_pb2.TraceContext:
    """A trace context as messages carry it."""
    return types_pb2.TraceContext(traceparent=trace.traceparent, tracestate=trace.tracestate)


def watch_message(subject: Subject, trace: TraceContext) -> pb.SubscribeRequest:
    """Asks for a subject's state."""
    return pb.SubscribeRequest(
        watch=pb.WatchSubject(
            subject=subject.number,
            identity=subject.key.identity,
            identity_revision=subject.identity_revision,
            named_ports=ports_message(subject.key.named_ports),
            trace=trace_message(trace),
            labels=subject.key.labels,
        )
    )


def ack_message(revision: pb.Revision, error: str = "") -> pb.SubscribeRequest:
    """Tells how far the node has come."""
    return pb.SubscribeRequest(ack=pb.Ack(revision=revision, error=error[:4096]))
