"""The policy service's messages as domain types, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.types.v1 import types_pb2

from services.chassis.telemetry import TraceContext
from services.loader.bpf.layout import address_text, split_prefix
from services.loader.endpoints.endpoint import NamedPort
from services.loader.policy.entries import (
    ADMIN,
    AUDIT,
    BASELINE,
    BY_ADDRESS,
    EGRESS,
    INGRESS,
    NORMAL,
    EntryKey,
    EntryValue,
)
from services.loader.policy.plan import DirectionDefault, SubjectState
from services.loader.policy.prefix_table import Prefix
from services.loader.policy.subjects import Subject

PROTOCOL_NUMBERS: Final = {
    types_pb2.PROTOCOL_TCP: 6,
    types_pb2.PROTOCOL_UDP: 17,
    types_pb2.PROTOCOL_SCTP: 132,
    types_pb2.PROTOCOL_ICMP: 1,
    types_pb2.PROTOCOL_ICMPV6: 58,
}
PROTOCOLS: Final = {number: protocol for protocol, number in PROTOCOL_NUMBERS.items()}
_DIRECTIONS: Final = {pb.DIRECTION_INGRESS: INGRESS, pb.DIRECTION_EGRESS: EGRESS}
# As many as an Ack has room for.
_FAILED_MOST: Final = 16384
_TIERS: Final = {
    pb.TIER_UNSPECIFIED: NORMAL,
    pb.TIER_NORMAL: NORMAL,
    pb.TIER_ADMIN: ADMIN,
    pb.TIER_BASELINE: BASELINE,
}
# What may be written entry by entry, if what is written allows it; all else comes as a whole.
_GRADUAL: Final[tuple[int, ...]] = (pb.TRANSITION_NEUTRAL, pb.TRANSITION_WIDENS, pb.TRANSITION_NARROWS)


def policy_name(key: pb.PolicyKey) -> str:
    """``CiliumNetworkPolicy shop/web``."""
    return f"{key.kind} {key.namespace}/{key.name}" if key.namespace else f"{key.kind} {key.name}"


def rule_name(rule: pb.RuleRef) -> str:
    """``CiliumNetworkPolicy shop/web spec.ingress[0]``."""
    return f"{policy_name(rule.policy)} {rule.path}"


def default_of(message: pb.DirectionPolicy) -> DirectionDefault:
    """What holds in a direction where no entry decides."""
    return DirectionDefault(
        message.enforced,
        tuple(policy_name(key) for key in message.enforced_by),
        message.audit_enforced,
        tuple(policy_name(key) for key in message.audit_enforced_by),
    )


def entry_key(entry: pb.PolicyEntry) -> EntryKey:
    """The key of an entry. Raises ValueError for one without a direction, or of a tier that is not known."""
    direction = _DIRECTIONS.get(entry.direction)
    if direction is None:
        raise ValueError(f"a policy entry has the direction {entry.direction}, expected 1 or 2")
    tier = _TIERS.get(entry.tier)
    if tier is None:
        raise ValueError(f"a policy entry has the tier {entry.tier}, expected 0 to 3")
    space = tier | (BY_ADDRESS if entry.by_address else 0) | (AUDIT if entry.audit else 0)
    return EntryKey(direction, entry.identity, entry.protocol, entry.port, entry.port_prefix_length, space)


def entries_of(messages: Iterable[pb.PolicyEntry]) -> dict[EntryKey, EntryValue]:
    """Entries by key."""
    return {
        entry_key(entry): EntryValue(entry.deny, entry.rule_cookie, entry.passes, entry.order)
        for entry in messages
    }


def is_whole(transition: int) -> bool:
    """Whether a delta has to come into force at once, and not entry by entry."""
    return transition not in _GRADUAL


def cidr_of(text: str) -> str:
    """A prefix as the kernel's maps are read. Raises ValueError for what is none."""
    network, length = split_prefix(text)
    return f"{address_text(network)}/{length}"


def prefix_of(message: pb.Prefix) -> Prefix:
    """A prefix that policies refer to. Raises ValueError for what is none, or has no number."""
    if not message.identity:
        raise ValueError(f"the prefix {message.cidr} has no number")
    return Prefix(cidr_of(message.cidr), message.identity, message.by_identity, message.by_address)


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


def ack_message(revision: pb.Revision, error: str = "", failed: Iterable[int] = ()) -> pb.SubscribeRequest:
    """Tells how far the node has come, and which subjects could not be realized."""
    numbers = list(islice(failed, _FAILED_MOST))
    return pb.SubscribeRequest(ack=pb.Ack(revision=revision, error=error[:4096], failed_subjects=numbers))
