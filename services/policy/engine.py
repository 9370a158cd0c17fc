# SPDX-License-Identifier: Apache-2.0
"""The resolution engine: policy, identity and subject events in, deltas per subject out.

Pure and synchronous. After any sequence of events a subject's state equals what `resolve.resolve` computes
from nothing; the deltas say exactly what differs from the state before the batch, whatever happened in
between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from services.policy.entries import (
    ANY_IDENTITY,
    DEFAULT_ALLOW,
    Enforcers,
    EntryKey,
    EntryValue,
    PortKey,
    SubjectPolicy,
    declared_ports,
    literal_ports,
    wildcard,
)
from services.policy.resolve import BoundPolicy
from services.policy.rules import Direction, NamedPort, PolicyRef, PortName, Rule, RuleSpec
from services.policy.selector import RESERVED, Labels
from services.policy.selector_cache import Matched, SelectorCache

HOST = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """What a policy state belongs to: pods that agree in identity and ports have the same one. `ports` is
    sorted.

    The identity HOST is a node itself, and `labels` are that node's, sorted; no other subject has any.
    """

    identity: int
    ports: tuple[NamedPort, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def is_node(self) -> bool:
        return self.identity == HOST


@dataclass(frozen=True, slots=True)
class PolicyPut:
    bound: BoundPolicy


@dataclass(frozen=True, slots=True)
class PolicyDelete:
    ref: PolicyRef


@dataclass(frozen=True, slots=True)
class IdentityPut:
    number: int
    labels: Labels


@dataclass(frozen=True, slots=True)
class IdentityDelete:
    number: int


@dataclass(frozen=True, slots=True)
class PortsPut:
    """All the ports that pods with this identity declare, wherever they are; none: no longer any."""

    number: int
    ports: frozenset[NamedPort]


@dataclass(frozen=True, slots=True)
class SubjectAdd:
    subject: Subject


@dataclass(frozen=True, slots=True)
class SubjectRemove:
    subject: Subject


Event = PolicyPut | PolicyDelete | IdentityPut | IdentityDelete | PortsPut | SubjectAdd | SubjectRemove


@dataclass(frozen=True, slots=True)
class SubjectChange:
    """What a batch of events changed of one subject.

    `reset`: the subject's identity has become known, so that its whole state is new and is to be read with
    `Engine.state`. A subject whose identity goes away changes nothing: what was last said stays in force.
    """

    subject: Subject
    enforced: tuple[bool, bool]
    enforced_by: Enforcers
    upserts: tuple[tuple[EntryKey, EntryValue], ...] = ()
    deletes: tuple[EntryKey, ...] = ()
    reset: bool = False


# A claim is one rule's word on a key, as a number that orders them: denying before allowing, then by cookie.
_ALLOW = 1 << 32
_COOKIE = _ALLOW - 1


# The claim of DEFAULT_ALLOW gives way to those of all rules.
_BY_DEFAULT = _ALLOW | _COOKIE


def _value(claim: int) -> EntryValue:
    return DEFAULT_ALLOW if claim == _BY_DEFAULT else EntryValue(claim < _ALLOW, claim & _COOKIE)


class _SubjectState:
    """One subject: the specs that select it, and for each key the claims of their rules, the deciding one
    first.
    """

    __slots__ = (
        "claims",
        "enforced",
        "enforced_by",
        "journal",
        "known",
        "node",
        "open",
        "respecified",
        "specs",
        "subject",
        "was_known",
    )

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        # What is known of a pod is known by its identity; a node brings its labels along.
        self.node = Labels((*subject.labels, f"{RESERVED}:host")) if subject.is_node else None
        self.known = self.node is not None
        self.was_known = False
        self.specs: dict[_Spec, None] = {}
        self.claims: dict[EntryKey, tuple[int, ...]] = {}
        self.enforced = (False, False)
        self.enforced_by: Enforcers = ((), ())
        # Directions in which DEFAULT_ALLOW is claimed.
        self.open = [False, False]
        # The claim that decided a key before the batch; None where there was none.
        self.journal: dict[EntryKey, int | None] = {}
        self.respecified = False

    def claim(self, key: EntryKey, claim: int) -> None:
        held = self.claims.get(key)
        self.journal.setdefault(key, held[0] if held else None)
        self.claims[key] = (claim,) if held is None else tuple(sorted((*held, claim)))

    def unclaim(self, key: EntryKey, claim: int) -> None:
        held = self.claims[key]
        self.journal.setdefault(key, held[0])
        left = tuple(other for other in held if other != claim)
        if left:
            self.claims[key] = left
        else:
            del self.claims[key]

    def respecify(self) -> None:
        """Take over what the present specs make the default."""
        by: list[tuple[PolicyRef, ...]] = []
        for direction in Direction:
            refs = {spec.ref for spec in self.specs if spec.spec.default_deny[direction]}
            by.append(tuple(sorted(refs)))
            opened = not refs and any(spec.denies[direction] for spec in self.specs)
            if opened != self.open[direction]:
                self.open[direction] = opened
                (self.claim if opened else self.unclaim)(wildcard(direction), _BY_DEFAULT)
        self.enforced_by = (by[0], by[1])
        self.enforced = (bool(by[0]) or self.open[0], bool(by[1]) or self.open[1])
        self.respecified = False


class _Spec:
    """A spec in force, and the subjects that it selects now. `selected` are the identities of pods; one for
    nodes has none.
    """

    __slots__ = ("denies", "ref", "rules", "selected", "spec", "subjects")

    def __init__(self, ref: PolicyRef, spec: RuleSpec) -> None:
        self.ref = ref
        self.spec = spec
        self.denies = [any(r.deny and r.direction is d for r in spec.rules) for d in Direction]
        self.rules: list[_Rule] = []
        self.subjects: dict[_SubjectState, None] = {}
        self.selected: Matched[_User] | None = None


class _Rule:
    """A rule in force. `everybody`: its peers are ANY; otherwise the identities that one of `peers`
    matches.
    """

    __slots__ = ("claim", "everybody", "literal", "names", "peers", "rule", "spec")

    def __init__(self, spec: _Spec, rule: Rule, cookie: int) -> None:
        self.spec = spec
        self.rule = rule
        self.claim = cookie if rule.deny else cookie | _ALLOW
        self.everybody = any(peer.matches_everything for peer in rule.peers)
        self.literal = literal_ports(rule.ports)
        self.names = tuple(match for match in rule.ports if isinstance(match, PortName))
        self.peers: tuple[Matched[_User], ...] = ()

    def covers(self, number: int) -> bool:
        return any(number in peer.identities for peer in self.peers)

    def identities(self) -> Iterable[int]:
        if self.everybody:
            return (ANY_IDENTITY,)
        if len(self.peers) == 1:
            return self.peers[0].identities
        return set().union(*(peer.identities for peer in self.peers))


_User = _Spec | _Rule


class Engine:
    """All policies, identities and watched subjects, and what follows from them."""

    def __init__(self) -> None:
        self._cache: SelectorCache[_User] = SelectorCache()
        self._numbers: dict[Labels, int] = {}
        self._policies: dict[PolicyRef, list[_Spec]] = {}
        self._subjects: dict[Subject, _SubjectState] = {}
        self._of_identity: dict[int, dict[_SubjectState, None]] = {}
        self._nodes: dict[_SubjectState, None] = {}
        self._ports: dict[int, frozenset[NamedPort]] = {}
        self._by_port_name: dict[_Rule, None] = {}
        self._touched: dict[_SubjectState, None] = {}

    def apply(self, events: Iterable[Event]) -> list[SubjectChange]:
        """Take a batch over. The changes are those of subjects that were there before it and still are."""
        for event in events:
            match event:
                case PolicyPut(bound):
                    self._delete_policy(bound.ref)
                    self._add_policy(bound)
                case PolicyDelete(ref):
                    self._delete_policy(ref)
                case IdentityPut(number, labels):
                    self._set_labels(number, labels)
                case IdentityDelete(number):
                    self._set_labels(number, None)
                case PortsPut(number, ports):
                    self._set_ports(number, ports)
                case SubjectAdd(subject):
                    self._add_subject(subject)
                case SubjectRemove(subject):
                    self._remove_subject(subject)
        return self._changes()

    def state(self, subject: Subject) -> SubjectPolicy | None:
        """A watched subject's whole state; None while its identity is unknown. KeyError: not watched."""
        state = self._subjects[subject]
        if not state.known:
            return None
        entries = {key: _value(claims[0]) for key, claims in state.claims.items()}
        return SubjectPolicy(state.enforced, state.enforced_by, entries)

    def labels(self, number: int) -> Labels | None:
        return self._cache.identities.get(number)

    def number_of(self, labels: Labels) -> int | None:
        """The identity with exactly these labels, if there is one."""
        return self._numbers.get(labels)

    def ports_of(self, number: int) -> frozenset[NamedPort]:
        """The ports that pods with this identity declare."""
        return self._ports.get(number, frozenset())

    def identities(self) -> Iterable[int]:
        return self._cache.identities.keys()

    # -- policies

    def _add_policy(self, bound: BoundPolicy) -> None:
        specs = []
        for declared in bound.policy.specs:
            spec = _Spec(bound.ref, declared)
            if not declared.nodes:
                spec.selected = self._cache.use(declared.subject, spec)
            for stated in declared.rules:
                rule = _Rule(spec, stated, bound.cookies[stated.path])
                if not rule.everybody:
                    rule.peers = tuple(self._cache.use(peer, rule) for peer in stated.peers)
                if rule.names and stated.direction is Direction.EGRESS:
                    self._by_port_name[rule] = None
                spec.rules.append(rule)
            for state in self._selected(spec):
                self._select(state, spec)
            specs.append(spec)
        self._policies[bound.ref] = specs

    def _selected(self, spec: _Spec) -> list[_SubjectState]:
        if spec.selected is None:
            return [state for state in self._nodes if self._selects(spec, state)]
        numbers = spec.selected.identities & self._of_identity.keys()
        return [state for number in numbers for state in self._of_identity[number]]

    def _delete_policy(self, ref: PolicyRef) -> None:
        for spec in self._policies.pop(ref, ()):
            for state in list(spec.subjects):
                self._unselect(state, spec)
            if spec.selected is not None:
                self._cache.release(spec.selected, spec)
            for rule in spec.rules:
                self._by_port_name.pop(rule, None)
                for peer in rule.peers:
                    self._cache.release(peer, rule)

    # -- identities

    def _set_labels(self, number: int, labels: Labels | None) -> None:
        before = self._cache.identities.get(number)
        if before == labels:
            return
        if before is not None and self._numbers.get(before) == number:
            del self._numbers[before]
        if labels is not None:
            self._numbers[labels] = number
        changes = self._cache.changes(number, labels)
        rules = {
            rule: rule.covers(number)
            for matched, _ in changes
            for rule in matched.users
            if isinstance(rule, _Rule)
        }
        self._cache.put(number, labels, changes)
        for rule, covered in rules.items():
            if rule.covers(number) != covered:
                self._cover(rule, number, not covered)
        states = self._of_identity.get(number, {})
        for matched, matches in changes:
            for spec in matched.users:
                if isinstance(spec, _Spec):
                    for state in states:
                        if matches:
                            self._select(state, spec)
                        else:
                            self._unselect(state, spec)
        for state in states:
            state.known = labels is not None
            self._touched[state] = None

    def _cover(self, rule: _Rule, number: int, covered: bool) -> None:
        for state in rule.spec.subjects:
            for key in self._keys(rule, state, (number,)):
                if covered:
                    state.claim(key, rule.claim)
                else:
                    state.unclaim(key, rule.claim)
            self._touched[state] = None

    # -- subjects and ports

    def _add_subject(self, subject: Subject) -> None:
        if subject in self._subjects:
            return
        state = self._subjects[subject] = _SubjectState(subject)
        if subject.is_node:
            self._nodes[state] = None
        else:
            self._of_identity.setdefault(subject.identity, {})[state] = None
            state.known = subject.identity in self._cache.identities
        for specs in self._policies.values():
            for spec in specs:
                if self._selects(spec, state):
                    self._select(state, spec)
        self._settle(state)

    def _selects(self, spec: _Spec, state: _SubjectState) -> bool:
        if state.node is not None:
            return spec.spec.selects(state.node)
        return spec.selected is not None and state.subject.identity in spec.selected.identities

    def _remove_subject(self, subject: Subject) -> None:
        state = self._subjects.pop(subject, None)
        if state is None:
            return
        for spec in state.specs:
            spec.subjects.pop(state, None)
        self._touched.pop(state, None)
        if subject.is_node:
            del self._nodes[state]
            return
        states = self._of_identity[subject.identity]
        del states[state]
        if not states:
            del self._of_identity[subject.identity]

    def _set_ports(self, number: int, after: frozenset[NamedPort]) -> None:
        """Follow up in the egress rules that name a port."""
        before = self.ports_of(number)
        if before == after:
            return
        self._ports[number] = after
        if not after:
            del self._ports[number]
        for rule in self._by_port_name:
            if not (rule.everybody or rule.covers(number)):
                continue
            # A port that the rule also gives by number is claimed already, unless that claim is on ANY.
            held = frozenset() if rule.everybody else rule.literal
            old = declared_ports(rule.names, before) - held
            new = declared_ports(rule.names, after) - held
            for state in rule.spec.subjects:
                for port_key in old - new:
                    state.unclaim(EntryKey(Direction.EGRESS, number, *port_key), rule.claim)
                for port_key in new - old:
                    state.claim(EntryKey(Direction.EGRESS, number, *port_key), rule.claim)
                self._touched[state] = None

    def _select(self, state: _SubjectState, spec: _Spec) -> None:
        state.specs[spec] = None
        spec.subjects[state] = None
        for rule in spec.rules:
            for key in self._all_keys(rule, state):
                state.claim(key, rule.claim)
        state.respecified = True
        self._touched[state] = None

    def _unselect(self, state: _SubjectState, spec: _Spec) -> None:
        del state.specs[spec]
        del spec.subjects[state]
        for rule in spec.rules:
            for key in self._all_keys(rule, state):
                state.unclaim(key, rule.claim)
        state.respecified = True
        self._touched[state] = None

    # -- keys

    def _all_keys(self, rule: _Rule, state: _SubjectState) -> Iterator[EntryKey]:
        yield from self._keys(rule, state, rule.identities())
        if rule.everybody and rule.names and rule.rule.direction is Direction.EGRESS:
            for number in self._ports:
                for port in declared_ports(rule.names, self.ports_of(number)):
                    yield EntryKey(Direction.EGRESS, number, *port)

    def _keys(self, rule: _Rule, state: _SubjectState, numbers: Iterable[int]) -> Iterator[EntryKey]:
        direction = rule.rule.direction
        ports: Iterable[PortKey] = rule.literal
        if rule.names and direction is Direction.INGRESS:
            ports = rule.literal | declared_ports(rule.names, state.subject.ports)
        for number in numbers:
            if rule.names and direction is Direction.EGRESS:
                ports = rule.literal | declared_ports(rule.names, self.ports_of(number))
            for port in ports:
                yield EntryKey(direction, number, *port)

    # -- output

    def _changes(self) -> list[SubjectChange]:
        found = []
        for state in list(self._touched):
            change = self._change(state)
            if change is not None:
                found.append(change)
            self._settle(state)
        return found

    def _change(self, state: _SubjectState) -> SubjectChange | None:
        before = state.enforced, state.enforced_by
        if state.respecified:
            state.respecify()
        after = state.enforced, state.enforced_by
        if not state.known:
            return None
        if not state.was_known:
            return SubjectChange(state.subject, *after, reset=True)
        upserts, deletes = [], []
        for key, claim in state.journal.items():
            held = state.claims.get(key)
            if held is None:
                if claim is not None:
                    deletes.append(key)
            elif held[0] != claim:
                upserts.append((key, _value(held[0])))
        if not upserts and not deletes and before == after:
            return None
        return SubjectChange(state.subject, *after, tuple(upserts), tuple(deletes))

    def _settle(self, state: _SubjectState) -> None:
        """What is there now is what the next batch is compared with."""
        if state.respecified:
            state.respecify()
        state.was_known = state.known
        state.journal.clear()
        self._touched.pop(state, None)
