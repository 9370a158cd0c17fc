# SPDX-License-Identifier: Apache-2.0
"""Domain types to messages of fimbria.policy.v1, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.types.v1 import types_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.errors import FieldViolation, FimbriaError, InvalidArgument
from services.chassis.labels import LabelSet
from services.chassis.telemetry import TraceContext
from services.policy import problems
from services.policy.describe import describe_rule, describe_subject
from services.policy.distribution import (
    Message,
    PrefixUpdate,
    Progress,
    Revision,
    RuleName,
    Shared,
    SharedPrefixes,
)
from services.policy.enforcement import NodeState
from services.policy.engine import HOST, SubjectChange
from services.policy.entries import (
    AUDIT,
    BY_ADDRESS,
    TIER_MASK,
    EntryKey,
    EntryValue,
    SubjectPolicy,
    Transition,
)
from services.policy.manifest import KINDS, Scope
from services.policy.names import namespace_problem, object_name_problem
from services.policy.rules import Direction, NamedPort, PolicyRef, Protocol, Rule, Tier
from services.policy.stored import AppliedPolicy, Outcome, StoredPolicy

_DIRECTIONS = {Direction.INGRESS: pb.DIRECTION_INGRESS, Direction.EGRESS: pb.DIRECTION_EGRESS}
_PROTOCOLS: dict[types_pb2.Protocol.ValueType, Protocol] = {
    types_pb2.PROTOCOL_TCP: Protocol.TCP,
    types_pb2.PROTOCOL_UDP: Protocol.UDP,
    types_pb2.PROTOCOL_SCTP: Protocol.SCTP,
    types_pb2.PROTOCOL_ICMP: Protocol.ICMP,
    types_pb2.PROTOCOL_ICMPV6: Protocol.ICMPV6,
}
_TIERS = {
    Tier.NORMAL: pb.TIER_NORMAL,
    Tier.ADMIN: pb.TIER_ADMIN,
    Tier.BASELINE: pb.TIER_BASELINE,
}
_TRANSITIONS = {
    Transition.NEUTRAL: pb.TRANSITION_NEUTRAL,
    Transition.WIDENS: pb.TRANSITION_WIDENS,
    Transition.NARROWS: pb.TRANSITION_NARROWS,
    Transition.SWAP: pb.TRANSITION_SWAP,
}
_OUTCOMES = {
    Outcome.CREATED: pb.AppliedPolicy.OUTCOME_CREATED,
    Outcome.CHANGED: pb.AppliedPolicy.OUTCOME_CHANGED,
    Outcome.UNCHANGED: pb.AppliedPolicy.OUTCOME_UNCHANGED,
}


def key_message(ref: PolicyRef) -> pb.PolicyKey:
    return pb.PolicyKey(kind=ref.kind, namespace=ref.namespace, name=ref.name)


def read_key(key: pb.PolicyKey, field: str) -> PolicyRef:
    """Raises InvalidArgument. No namespace means what it means in manifests of the kind."""
    if problem := object_name_problem(key.name):
        raise problems.field_invalid(f"{field}.name", key.name, problem)
    kind = KINDS.get(key.kind)
    if kind is None:
        raise problems.field_invalid(f"{field}.kind", key.kind, f"one of {', '.join(KINDS)}")
    if key.namespace and kind.scope is Scope.CLUSTER:
        raise problems.field_invalid(f"{field}.namespace", key.namespace, f"none for a {key.kind}")
    if key.namespace and (problem := namespace_problem(key.namespace)):
        raise problems.field_invalid(f"{field}.namespace", key.namespace, problem)
    return PolicyRef(key.kind, key.namespace or kind.default_namespace(), key.name)


def timestamp(nanoseconds: int) -> Timestamp | None:
    if not nanoseconds:
        return None
    return Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def policy_message(stored: StoredPolicy) -> pb.Policy:
    policy = stored.bound.policy
    return pb.Policy(
        key=key_message(stored.ref),
        revision=stored.revision,
        manifest=stored.manifest,
        rules=[
            pb.Rule(
                cookie=stored.bound.cookies[rule.path],
                direction=_DIRECTIONS[rule.direction],
                path=rule.path,
                deny=rule.deny,
                description=describe_rule(rule),
                action=_action(rule),
                line=policy.lines.get(rule.path, 0),
            )
            for rule in policy.rules()
        ],
        update_time=timestamp(stored.updated_ns),
        subject=describe_subject(policy),
        tier=tier_message(policy.tier) if stored.group is None else pb.TIER_UNSPECIFIED,
        priority=policy.priority,
        audit=policy.audit,
        source=stored.source,
        effective_revision=stored.effective_revision,
    )


def applied_message(applied: AppliedPolicy) -> pb.AppliedPolicy:
    return pb.AppliedPolicy(
        policy=policy_message(applied.stored),
        outcome=_OUTCOMES[applied.outcome],
        warnings=applied.warnings,
    )


def read_definitions(definitions: Iterable[pb.PolicyDefinition]) -> list[dict[str, Any]]:
    """Each as the JSON that `parse_definitions` reads."""
    return [MessageToDict(definition) for definition in definitions]


def direction_message(direction: Direction) -> pb.Direction.ValueType:
    return _DIRECTIONS[direction]


def tier_message(tier: Tier) -> pb.Tier.ValueType:
    return _TIERS[tier]


def _action(rule: Rule | RuleName) -> pb.Action.ValueType:
    return pb.ACTION_DENY if rule.deny else pb.ACTION_PASS if rule.passes else pb.ACTION_ALLOW


def revision_message(revision: Revision) -> pb.Revision:
    return pb.Revision(policy=revision.policy, identity=revision.identity)


def trace_message(trace: TraceContext) -> types_pb2.TraceContext | None:
    if not trace:
        return None
    return types_pb2.TraceContext(traceparent=trace.traceparent, tracestate=trace.tracestate)


def read_protocol(protocol: types_pb2.Protocol.ValueType) -> Protocol:
    return _PROTOCOLS[protocol]


def read_ports(ports: Iterable[types_pb2.NamedPort]) -> tuple[NamedPort, ...]:
    """Sorted and without repeats, so that equal declarations are equal subjects."""
    return tuple(sorted({NamedPort(port.name, _PROTOCOLS[port.protocol], port.port) for port in ports}))


def read_labels(labels: Iterable[str], field: str) -> LabelSet:
    """Raises InvalidArgument that names the field."""
    try:
        return LabelSet(labels)
    except FimbriaError as error:
        raise InvalidArgument(
            f"{field}: {error}",
            reason=error.reason,
            metadata=error.metadata,
            violations=[FieldViolation(f"{field}.{v.field}", v.description) for v in error.violations],
        ) from None


def read_node_labels(identity: int, labels: Iterable[str], field: str) -> LabelSet:
    """The labels of a watched subject, which only a node has. Raises InvalidArgument."""
    found = read_labels(labels, field)
    if found and identity != HOST:
        raise problems.field_invalid(field, list(found), f"none with another identity than {HOST}, the host")
    return found


def node_message(node: NodeState) -> pb.NodeEnforcement:
    told = node.acknowledged
    return pb.NodeEnforcement(
        node=node.name,
        acknowledged=pb.Revision(policy=told.policy, identity=told.identity),
        subscribed=node.subscribed,
        error=told.error,
        update_time=timestamp(told.updated_ns),
        subjects=node.subjects,
    )


def subscribe_message(message: Message) -> pb.SubscribeResponse:
    """What a stream sends. A change that goes to several streams is rendered once."""
    response = pb.SubscribeResponse(
        revision=revision_message(message.revision), trace=trace_message(message.trace)
    )
    if isinstance(message, Progress):
        response.progress.SetInParent()
        return response
    if isinstance(message, PrefixUpdate):
        prefixes = message.shared
        if not isinstance(prefixes.rendered, pb.PrefixUpdate):
            prefixes.rendered = _render_prefixes(prefixes)
        response.prefixes.CopyFrom(prefixes.rendered)
        return response
    shared = message.shared
    if shared.rendered is None:
        shared.rendered = _render(shared)
    if isinstance(shared.rendered, pb.SubjectSnapshot):
        response.snapshot.CopyFrom(shared.rendered)
        response.snapshot.subject = message.number
    elif isinstance(shared.rendered, pb.SubjectDelta):
        response.delta.CopyFrom(shared.rendered)
        response.delta.subject = message.number
    return response


def _render(shared: Shared) -> pb.SubjectSnapshot | pb.SubjectDelta:
    content = shared.content
    rules = [rule_message(cookie, rule) for cookie, rule in shared.rules.items()]
    ingress, egress = (_direction(content, direction) for direction in Direction)
    if isinstance(content, SubjectPolicy):
        return pb.SubjectSnapshot(
            identity=shared.subject.identity,
            ingress=ingress,
            egress=egress,
            entries=[entry_message(key, value) for key, value in content.entries.items()],
            rules=rules,
        )
    return pb.SubjectDelta(
        ingress=ingress,
        egress=egress,
        upserts=[entry_message(key, value) for key, value in content.upserts],
        deletes=[entry_message(key) for key in content.deletes],
        rules=rules,
        transition=_TRANSITIONS[content.transition],
    )


def _render_prefixes(shared: SharedPrefixes) -> pb.PrefixUpdate:
    used = [(number, use) for number, use in shared.prefixes if use.by_identity or use.by_address]
    return pb.PrefixUpdate(
        whole=shared.whole,
        upserts=[
            pb.Prefix(cidr=use.cidr, identity=number, by_identity=use.by_identity, by_address=use.by_address)
            for number, use in used
        ],
        deletes=[use.cidr for _, use in shared.prefixes if not (use.by_identity or use.by_address)],
    )


def _direction(content: SubjectPolicy | SubjectChange, direction: Direction) -> pb.DirectionPolicy:
    return pb.DirectionPolicy(
        enforced=content.enforced[direction],
        enforced_by=[key_message(ref) for ref in content.enforced_by[direction]],
        audit_enforced=content.audit_enforced[direction],
        audit_enforced_by=[key_message(ref) for ref in content.audit_enforced_by[direction]],
    )


def entry_message(key: EntryKey, value: EntryValue | None = None) -> pb.PolicyEntry:
    return pb.PolicyEntry(
        direction=_DIRECTIONS[Direction(key.direction)],
        identity=key.identity,
        protocol=key.protocol,
        port=key.port,
        port_prefix_length=key.prefix,
        deny=value.deny if value is not None else False,
        rule_cookie=value.cookie if value is not None else 0,
        tier=_TIERS[Tier(key.space & TIER_MASK)],
        by_address=bool(key.space & BY_ADDRESS),
        audit=bool(key.space & AUDIT),
        passes=value.passes if value is not None else False,
        order=value.order if value is not None else 0,
    )


def rule_message(cookie: int, rule: RuleName) -> pb.RuleRef:
    return pb.RuleRef(
        cookie=cookie,
        policy=key_message(rule.ref),
        path=rule.path,
        deny=rule.deny,
        action=_action(rule),
        source=rule.source,
        line=rule.line,
    )
