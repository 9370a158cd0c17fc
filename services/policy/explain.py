# SPDX-License-Identifier: Apache-2.0
"""Why a connection is allowed or denied: the verdict at either end, with the rule that decides it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.policy.entries import judge
from services.policy.resolve import BoundPolicy, resolve
from services.policy.rules import Direction, NamedPort, PolicyRef, Rule
from services.policy.selector import RESERVED, Labels

# Reserved identities that policies select as subjects: their endpoints have a policy of their own.
_ENDPOINTS = ("init", "health")
# What no policy closes is a setting of each node's loader, and not known here.
_FAILSAFE = "; the node's failsafe ports pass all the same"
_SIDES = {Direction.EGRESS: "sender", Direction.INGRESS: "receiver"}


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection. Two ends with different labels have different numbers."""

    identity: int
    labels: Labels
    ports: frozenset[NamedPort] = frozenset()

    @property
    def is_endpoint(self) -> bool:
        """Whether it is a pod, and not a node, the world and the like."""
        return not any(
            label.startswith(f"{RESERVED}:") and label.split(":", 1)[1].rstrip("=") not in _ENDPOINTS
            for label in self.labels.strings
        )


@dataclass(frozen=True, slots=True)
class DecidingRule:
    """The rule behind a verdict."""

    ref: PolicyRef
    rule: Rule
    cookie: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policies of one end say. `enforced`: what no rule allows is denied there in this direction."""

    allowed: bool
    enforced: bool
    rule: DecidingRule | None
    enforced_by: tuple[PolicyRef, ...]
    reason: str


def explain(
    policies: Iterable[BoundPolicy], sender: End, receiver: End, protocol: int, port: int
) -> tuple[Verdict, Verdict]:
    """(egress verdict of the sender, ingress verdict of the receiver) on a new connection."""
    known = tuple(policies)
    peers = {sender.identity: sender.labels, receiver.identity: receiver.labels}
    ports = {receiver.identity: receiver.ports}
    egress = _verdict(known, Direction.EGRESS, sender, receiver, peers, ports, protocol, port)
    if sender.labels.is_node and receiver.is_endpoint:
        return egress, Verdict(True, False, None, (), "allowed: a node always reaches its own pods")
    return egress, _verdict(known, Direction.INGRESS, receiver, sender, peers, ports, protocol, port)


def _verdict(
    policies: tuple[BoundPolicy, ...],
    direction: Direction,
    subject: End,
    peer: End,
    peers: Mapping[int, Labels],
    ports: Mapping[int, frozenset[NamedPort]],
    protocol: int,
    port: int,
) -> Verdict:
    side = _SIDES[direction]
    if not (subject.is_endpoint or subject.labels.is_node):
        who = ", ".join(sorted(subject.labels.strings))
        return Verdict(True, False, None, (), f"allowed: no policy is enforced at {who}")
    policy = resolve(policies, peers, subject.labels, subject.ports, ports)
    enforced, by = policy.enforced[direction], policy.enforced_by[direction]
    judgement = judge(policy, direction, peer.identity, protocol, port)
    listed = ", ".join(str(ref) for ref in by)
    but = _FAILSAFE if subject.labels.is_node and not judgement.allowed else ""
    if judgement.value is not None and judgement.value.cookie:
        rule = _find(policies, judgement.value.cookie)
        word = "allowed" if judgement.allowed else "denied"
        return Verdict(judgement.allowed, enforced, rule, by, f"{word} by {rule.ref} {rule.rule.path}{but}")
    if not judgement.allowed:
        reason = f"default deny: no rule allows it, and the {side} is selected by {listed}{but}"
        return Verdict(False, enforced, None, by, reason)
    if enforced:
        return Verdict(
            True, enforced, None, by, f"allowed: policies select the {side}, and none of them is default deny"
        )
    way = direction.name.lower()
    return Verdict(True, enforced, None, by, f"allowed: no policy restricts the {side}'s {way}")


def _find(policies: Iterable[BoundPolicy], cookie: int) -> DecidingRule:
    return next(
        DecidingRule(bound.ref, rule, cookie)
        for bound in policies
        for rule in bound.policy.rules()
        if bound.cookies[rule.path] == cookie
    )
