# SPDX-License-Identifier: Apache-2.0
"""Why a connection is allowed or denied: the verdict at either end, with every rule that covers it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from services.policy.diff_peers import is_outside
from services.policy.entries import Judgement, judge
from services.policy.prefixes import PrefixUse, longest_prefix, prefix_labels, within
from services.policy.resolve import BoundPolicy, resolve
from services.policy.rules import (
    MAX_PORT,
    CidrPeer,
    Direction,
    NamedPort,
    PolicyRef,
    PortRange,
    Protocol,
    Rule,
    Tier,
)
from services.policy.selector import K8S, NAMESPACE_LABELS_PREFIX, RESERVED, Labels, Selector

WORLD = 2
# Reserved identities that policies select as subjects: their endpoints have a policy of their own.
_ENDPOINTS = ("init", "health")
# What no policy closes is a setting of each node's loader, and not known here.
_FAILSAFE = "; the node's failsafe ports pass all the same"
# The only requests that the datapath takes from pods and to them.
_ECHO = {Protocol.ICMP: 8, Protocol.ICMPV6: 128}
_NOT_CARRIED = "; the datapath drops it all the same: of pods' ICMP it carries echo requests only"
# Labels that say more about where a pod is than about what it is.
_BESIDES = (f"{K8S}:{NAMESPACE_LABELS_PREFIX}", f"{K8S}:io.cilium.k8s.policy.")
SIDES = {Direction.EGRESS: "sender", Direction.INGRESS: "receiver"}
_TIERS = (Tier.ADMIN, Tier.NORMAL, Tier.BASELINE)
NODE_TO_POD = "allowed: a node always reaches its own pods"


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection. Two ends with different labels have different numbers.

    `address` is needed by rules that select by address; None: it is not known. `given` is false for an end
    of which only the address is known: somebody outside the cluster.
    """

    identity: int
    labels: Labels
    ports: frozenset[NamedPort] = frozenset()
    address: str | None = None
    given: bool = True

    @property
    def is_endpoint(self) -> bool:
        """Whether it is a pod, and not a node, the world and the like."""
        return not is_outside(self.identity) and not any(
            label.startswith(f"{RESERVED}:") and label.split(":", 1)[1].rstrip("=") not in _ENDPOINTS
            for label in self.labels.strings
        )

    def __str__(self) -> str:
        """For people: without the labels of the namespace and the cluster."""
        if not self.given:
            return f"{self.address} outside the cluster"
        return ",".join(
            label.removeprefix(f"{K8S}:")
            for label in sorted(self.labels.strings)
            if not label.startswith(_BESIDES)
        )


def end_outside(prefixes: Mapping[int, PrefixUse], address: str) -> End:
    """Whoever has an address outside the cluster: the longest prefix in use by identity says who that is."""
    number = longest_prefix(prefixes, address, by_address=False)
    if number is None:
        return End(WORLD, Labels([f"{RESERVED}:world"]), address=address, given=False)
    return End(number, prefix_labels(prefixes[number].cidr), address=address, given=False)


@dataclass(frozen=True, slots=True)
class DecidingRule:
    """A rule with its policy. `line` is that of the policy's text, 0 when it is not known."""

    ref: PolicyRef
    rule: Rule
    cookie: int
    tier: Tier = Tier.NORMAL
    audit: bool = False
    line: int = 0

    @property
    def rank(self) -> tuple[int, int, int]:
        """The first of its tier decides."""
        return self.rule.order, 0 if self.rule.deny else 1 if self.rule.passes else 2, self.cookie

    def __str__(self) -> str:
        return f"{self.ref} {self.rule.path}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policies of one end say. `enforced`: what no rule allows is denied there in this direction.

    `covering` are the rules that are about the connection, the deciding ones first, those of policies in
    audit mode last. `audited`: the verdict that those would have turned this one into.
    """

    allowed: bool
    enforced: bool
    rule: DecidingRule | None
    enforced_by: tuple[PolicyRef, ...]
    reason: str
    judgement: Judgement | None = None
    covering: tuple[DecidingRule, ...] = ()
    audit_rule: DecidingRule | None = None
    audited_by: tuple[PolicyRef, ...] = ()
    # No policy is asked here: what passes cannot be made to fail, nor the other way round.
    settled: bool = False
    # Policies in force select this end, and say something about the direction.
    restricted: bool = False

    @property
    def audited(self) -> bool:
        return self.judgement is not None and self.judgement.audited is not None


class Explainer:
    """Answers for one set of policies. `prefixes` are those in use, by number."""

    def __init__(self, policies: Iterable[BoundPolicy], prefixes: Mapping[int, PrefixUse]) -> None:
        self._policies = tuple(policies)
        self._prefixes = prefixes
        self._by_address: dict[str, int | None] = {}
        self._selecting: dict[Labels, tuple[BoundPolicy, ...]] = {}

    def explain(self, sender: End, receiver: End, protocol: int, port: int) -> tuple[Verdict, Verdict]:
        """(egress verdict of the sender, ingress verdict of the receiver) on a new connection."""
        egress = self._verdict(Direction.EGRESS, sender, receiver, protocol, port)
        if sender.labels.is_node and receiver.is_endpoint:
            return egress, Verdict(True, False, None, (), NODE_TO_POD, settled=True)
        return egress, self._verdict(Direction.INGRESS, receiver, sender, protocol, port)

    def _verdict(self, direction: Direction, subject: End, peer: End, protocol: int, port: int) -> Verdict:
        if not (subject.is_endpoint or subject.labels.is_node):
            reason = f"allowed: no policy is enforced at {_outsider(subject)}"
            return Verdict(True, False, None, (), reason, settled=True)
        selecting = self._selected(subject.labels)
        held = self._held(peer)
        prefixes = {
            number: self._prefixes[number]
            for number in (peer.identity, held)
            if number is not None and number in self._prefixes
        }
        peers = {peer.identity: peer.labels}
        if peer.identity in prefixes:
            # The identity of a prefix is made from the prefix.
            peers = {}
        policy = resolve(
            selecting, peers, subject.labels, subject.ports, {peer.identity: peer.ports}, prefixes
        )
        judgement = judge(
            policy, direction, peer.identity, protocol, port, (held,) if held is not None else ()
        )
        connection = _Connection(self._prefixes, direction, subject, peer, held, protocol, port)
        covering = tuple(sorted(connection.covering(selecting), key=_asked))
        by_cookie = {found.cookie: found for found in covering}
        rule = _named(judgement, by_cookie)
        would = judgement.audited
        verdict = Verdict(
            judgement.allowed,
            policy.enforced[direction],
            rule,
            policy.enforced_by[direction],
            "",
            judgement,
            _first(rule, covering),
            _named(would, by_cookie) if would is not None else None,
            policy.audit_enforced_by[direction] if would is not None and would.value is None else (),
            restricted=any(
                spec.selects(subject.labels) and spec.applies(direction)
                for bound in selecting
                if not bound.policy.audit
                for spec in bound.policy.specs
            ),
        )
        reason = _reason(verdict, direction, subject)
        about_pods = subject.is_endpoint or peer.is_endpoint
        if verdict.allowed and about_pods and port != _ECHO.get(Protocol(protocol), port):
            reason += _NOT_CARRIED
        if missing := connection.undecided(selecting):
            other = SIDES[Direction(1 - direction)]
            reason += (
                f"; {', '.join(map(str, missing))} selects by address, and the {other}'s was not given: "
                "left out"
            )
        return replace(verdict, reason=reason)

    def _selected(self, labels: Labels) -> tuple[BoundPolicy, ...]:
        found = self._selecting.get(labels)
        if found is None:
            found = self._selecting[labels] = tuple(
                bound for bound in self._policies if any(spec.selects(labels) for spec in bound.policy.specs)
            )
        return found

    def _held(self, end: End) -> int | None:
        """The number of the longest prefix in use by address that holds an end's address."""
        if end.address is None:
            return None
        if end.address not in self._by_address:
            self._by_address[end.address] = longest_prefix(self._prefixes, end.address, by_address=True)
        return self._by_address[end.address]


def explain(
    policies: Iterable[BoundPolicy],
    sender: End,
    receiver: End,
    protocol: int,
    port: int,
    prefixes: Mapping[int, PrefixUse] | None = None,
) -> tuple[Verdict, Verdict]:
    """(egress verdict of the sender, ingress verdict of the receiver) on a new connection."""
    return Explainer(policies, prefixes or {}).explain(sender, receiver, protocol, port)


@dataclass(frozen=True)
class _Connection:
    """A connection as one of its ends sees it."""

    prefixes: Mapping[int, PrefixUse]
    direction: Direction
    subject: End
    peer: End
    held: int | None
    protocol: int
    port: int

    def covering(self, policies: Iterable[BoundPolicy]) -> Iterable[DecidingRule]:
        """Every rule that is about it."""
        for bound, rule in self._rules(policies):
            if any(self._meets(peer, rule) for peer in rule.peers):
                yield _deciding(bound, rule)

    def undecided(self, policies: Iterable[BoundPolicy]) -> list[DecidingRule]:
        """Rules that may be about it, which only the peer's address could tell."""
        if self.peer.address is not None:
            return []
        return [
            _deciding(bound, rule)
            for bound, rule in self._rules(policies)
            if any(isinstance(peer, CidrPeer) and self._unknown(peer) for peer in rule.peers)
            and self._has_port(rule, named=False)
            and not any(self._meets(peer, rule) for peer in rule.peers)
        ]

    def _unknown(self, peer: CidrPeer) -> bool:
        """Whether only an address can tell: by identity that is so for the world alone."""
        return peer.by_address or self.peer.identity == WORLD

    def _rules(self, policies: Iterable[BoundPolicy]) -> Iterable[tuple[BoundPolicy, Rule]]:
        for bound in policies:
            for spec in bound.policy.specs:
                if spec.selects(self.subject.labels):
                    for rule in spec.rules:
                        if rule.direction is self.direction:
                            yield bound, rule

    def _meets(self, peer: object, rule: Rule) -> bool:
        if isinstance(peer, Selector):
            return peer.matches(self.peer.labels) and self._has_port(rule, named=True)
        if not isinstance(peer, CidrPeer):
            return False
        number = self.held if peer.by_address else self.peer.identity
        use = self.prefixes.get(number) if number is not None else None
        if use is None or not (use.by_address if peer.by_address else use.by_identity):
            return False
        return within(use.cidr, peer.cidr, peer.excepts) and self._has_port(rule, named=not peer.by_address)

    def _has_port(self, rule: Rule, *, named: bool) -> bool:
        """`named`: names of egress rules mean what the peer declares, which they only do of identities."""
        if not rule.ports:
            return True
        ingress = self.direction is Direction.INGRESS
        declared = self.subject.ports if ingress else self.peer.ports if named else ()
        for match in rule.ports:
            if isinstance(match, PortRange):
                if match.protocol is Protocol.ANY:
                    if (match.first, match.last) == (0, MAX_PORT):
                        return True
                elif match.protocol == self.protocol and match.first <= self.port <= match.last:
                    return True
            elif any(
                (port.name, port.protocol, port.port) == (match.name, self.protocol, self.port)
                and match.protocol in (Protocol.ANY, port.protocol)
                for port in declared
            ):
                return True
        return False


def _deciding(bound: BoundPolicy, rule: Rule) -> DecidingRule:
    policy = bound.policy
    return DecidingRule(
        bound.ref, rule, bound.cookies[rule.path], policy.tier, policy.audit, policy.lines.get(rule.path, 0)
    )


def _asked(found: DecidingRule) -> tuple[bool, int, tuple[int, int, int], PolicyRef]:
    """The order in which rules are asked."""
    return found.audit, _TIERS.index(found.tier), found.rank, found.ref


def _first(rule: DecidingRule | None, covering: tuple[DecidingRule, ...]) -> tuple[DecidingRule, ...]:
    """With the deciding rule before those that were asked in vain."""
    if rule is None:
        return covering
    return (rule, *(found for found in covering if found != rule))


def _named(judgement: Judgement, by_cookie: Mapping[int, DecidingRule]) -> DecidingRule | None:
    return by_cookie.get(judgement.value.cookie) if judgement.value is not None else None


def _outsider(subject: End) -> str:
    return ", ".join(sorted(subject.labels.strings)) if subject.given else str(subject)


def _reason(verdict: Verdict, direction: Direction, subject: End) -> str:
    """The verdict in words: what decided, what was asked before it, and what audit mode has to say."""
    text = _decided(verdict, direction)
    passed = [found for found in verdict.covering if found.rule.passes and not found.audit]
    if passed and _passed_on(verdict):
        text += f"; {passed[0]} had passed it on to the next tier"
    if subject.labels.is_node and not verdict.allowed:
        text += _FAILSAFE
    if verdict.audited:
        if verdict.audit_rule is not None:
            text += f"; in audit mode, {verdict.audit_rule} would deny it"
        else:
            listed = ", ".join(map(str, verdict.audited_by))
            text += f"; in audit mode, the default deny of {listed} would deny it"
    return text


def _decided(verdict: Verdict, direction: Direction) -> str:
    side, way = SIDES[direction], direction.name.lower()
    word = "allowed" if verdict.allowed else "denied"
    rule = verdict.rule
    if rule is not None:
        if rule.tier is Tier.BASELINE:
            return f"{word} by {rule}: no policy of a tier before the baseline has a say in it"
        return f"{word} by {rule}"
    if not verdict.allowed:
        listed = ", ".join(map(str, verdict.enforced_by))
        return f"default deny: no rule allows it, and the {side} is selected by {listed}"
    if verdict.restricted:
        return f"allowed: policies select the {side}, and none of them is default deny"
    return f"allowed: no policy restricts the {side}'s {way}"


def _passed_on(verdict: Verdict) -> bool:
    """Whether the admin tier was left by a passing rule: it comes first of those of its tier."""
    admin = [found for found in verdict.covering if found.tier is Tier.ADMIN and not found.audit]
    return bool(admin) and min(admin, key=lambda found: found.rank).rule.passes
