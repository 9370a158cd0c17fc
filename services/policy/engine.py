# SPDX-License-Identifier: Apache-2.0
"""The resolution engine: policy, identity, prefix and subject events in, deltas per subject out.

Pure and synchronous. After any sequence of events a subject's state equals what `resolve.resolve` computes
from nothing; the deltas say exactly what differs from the state before the batch, whatever happened in
between. An event costs what it changes, whatever else there is.

Peers are evaluated once (`selector_cache`), rules become parts that speak for keys (`engine_rules`), and a
subject keeps which parts speak for which keys (`engine_state`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from pyroaring import BitMap

from services.policy.engine_events import (
    HOST,
    Event,
    IdentityDelete,
    IdentityPut,
    PolicyDelete,
    PolicyPut,
    PortsPut,
    PrefixDelete,
    PrefixPut,
    Subject,
    SubjectAdd,
    SubjectChange,
    SubjectRemove,
)
from services.policy.engine_rules import Part, RuleInForce, Spec, User, by_column
from services.policy.engine_state import SubjectState
from services.policy.engine_words import claim_of
from services.policy.entries import SubjectPolicy
from services.policy.prefixes import PrefixUse, prefix_labels
from services.policy.resolve import BoundPolicy
from services.policy.rules import NamedPort, PolicyRef, Rule, RuleSpec
from services.policy.selector import Labels
from services.policy.selector_cache import Change, Matched, SelectorCache

__all__ = [
    "HOST",
    "MANY",
    "Engine",
    "Event",
    "IdentityDelete",
    "IdentityPut",
    "PolicyDelete",
    "PolicyPut",
    "PortsPut",
    "PrefixDelete",
    "PrefixPut",
    "Subject",
    "SubjectAdd",
    "SubjectChange",
    "SubjectRemove",
]


# So many identities at once, and more, are matched by evaluating selectors anew, unless there are so many
# times as many selectors; fewer are compared with the selectors that may match them.
MANY = 32


class Engine:
    """All policies, identities, prefixes and watched subjects, and what follows from them."""

    def __init__(self, many: int = MANY) -> None:
        self._many = many
        self._cache: SelectorCache[User] = SelectorCache()
        self._numbers: dict[Labels, int] = {}
        self._prefixes: dict[int, PrefixUse] = {}
        # Labels of identities whose number is a prefix's at present, which is what counts.
        self._hidden: dict[int, Labels] = {}
        self._policies: dict[PolicyRef, list[Spec]] = {}
        self._subjects: dict[Subject, SubjectState] = {}
        self._of_identity: dict[int, dict[SubjectState, None]] = {}
        self._watched = BitMap()
        self._nodes: dict[SubjectState, None] = {}
        self._for_nodes: dict[Spec, None] = {}
        self._by_port_name: dict[RuleInForce, None] = {}
        self._touched: dict[SubjectState, None] = {}
        # Numbers of prefixes with the use, by address or not, that begins or ends with the batch: nobody has
        # them, unless identities have.
        self._inert: set[tuple[int, bool]] = set()
        # Numbers of identities that the batch is about.
        self._named: set[int] = set()

    def apply(self, events: Iterable[Event]) -> list[SubjectChange]:
        """Take a batch over. The changes are those of subjects that were there before it and still are."""
        # Identities one after the other are taken over together: they come by the thousand at a start.
        relabelled: dict[int, Labels | None] = {}
        for event in events:
            if isinstance(event, IdentityPut | IdentityDelete):
                labels = event.labels if isinstance(event, IdentityPut) else None
                self._named.add(event.number)
                if not self._hides(event.number, labels):
                    relabelled[event.number] = labels
                continue
            if relabelled:
                self._relabel(relabelled)
                relabelled = {}
            self._take(event)
        self._relabel(relabelled)
        return self._changes()

    def _take(self, event: Event) -> None:
        match event:
            case PolicyPut(bound):
                self._put_policy(bound)
            case PolicyDelete(ref):
                self._delete_policy(ref)
            case PrefixPut(number, cidr, by_identity, by_address):
                self._put_prefix(number, PrefixUse(cidr, by_identity, by_address))
            case PrefixDelete(number):
                self._delete_prefix(number)
            case PortsPut(number, ports):
                self._set_ports(number, ports)
            case SubjectAdd(subject):
                self._add_subject(subject)
            case SubjectRemove(subject):
                self._remove_subject(subject)

    def state(self, subject: Subject) -> SubjectPolicy | None:
        """A watched subject's whole state; None while its identity is unknown. KeyError: not watched."""
        state = self._subjects[subject]
        return state.policy() if state.known else None

    @property
    def prefixes(self) -> Mapping[int, PrefixUse]:
        """The prefixes that have numbers, and how they are used."""
        return MappingProxyType(self._prefixes)

    def labels(self, number: int) -> Labels | None:
        """Those of an identity, or of a prefix in use by identity."""
        return self._cache.labels.get(number)

    def number_of(self, labels: Labels) -> int | None:
        """The identity with exactly these labels, if there is one."""
        return self._numbers.get(labels)

    def ports_of(self, number: int) -> frozenset[NamedPort]:
        """The ports that pods with this identity declare."""
        return self._cache.ports.get(number, frozenset())

    def identities(self) -> Iterator[int]:
        """The numbers that IdentityPut gave, without those of prefixes."""
        for number in self._cache.labels:
            prefix = self._prefixes.get(number)
            if prefix is None or not prefix.by_identity:
                yield number
        yield from self._hidden

    # -- policies

    def _put_policy(self, bound: BoundPolicy) -> None:
        former = self._policies.pop(bound.ref, [])
        specs = self._policies[bound.ref] = []
        for declared in bound.policy.specs:
            spec = Spec(bound.policy, declared)
            kept = next((other for other in former if other.heads_as(spec)), None)
            if kept is None:
                self._add_spec(spec, bound)
            else:
                former.remove(kept)
                spec = kept
                self._change_rules(spec, declared, bound)
            specs.append(spec)
        # Last, so that what others use as well is not forgotten meanwhile.
        for spec in former:
            self._delete_spec(spec)

    def _add_spec(self, spec: Spec, bound: BoundPolicy) -> None:
        if spec.spec.nodes:
            self._for_nodes[spec] = None
        else:
            spec.selected = self._cache.use(spec.spec.subject, spec)
        for stated in spec.spec.rules:
            spec.rules.append(self._enforce(spec, stated, bound.cookies[stated.path]))
        for state in self._selected(spec):
            self._select(state, spec)

    def _change_rules(self, spec: Spec, declared: RuleSpec, bound: BoundPolicy) -> None:
        """Take over the rules that differ, of a spec that applies to the same subjects."""
        former = {rule.rule.path: rule for rule in spec.rules}
        spec.spec, spec.rules = declared, []
        for stated in declared.rules:
            cookie = bound.cookies[stated.path]
            rule = former.get(stated.path)
            if rule is not None and rule.rule == stated and rule.claim == claim_of(stated, cookie):
                del former[stated.path]
            else:
                rule = self._enforce(spec, stated, cookie)
                self._each(SubjectState.add, rule, rule.parts)
            spec.rules.append(rule)
        for rule in former.values():
            self._each(SubjectState.remove, rule, rule.parts)
            self._retire(rule)

    def _enforce(self, spec: Spec, stated: Rule, cookie: int) -> RuleInForce:
        rule = RuleInForce(spec, stated, cookie, self._cache)
        if rule.egress_names:
            self._by_port_name[rule] = None
        return rule

    def _retire(self, rule: RuleInForce) -> None:
        self._by_port_name.pop(rule, None)
        rule.release(self._cache)

    def _selected(self, spec: Spec) -> list[SubjectState]:
        if spec.selected is None:
            return [state for state in self._nodes if self._selects_node(spec, state)]
        numbers = spec.selected.numbers & self._watched
        return [state for number in numbers for state in self._of_identity[number]]

    @staticmethod
    def _selects_node(spec: Spec, state: SubjectState) -> bool:
        return state.node is not None and spec.spec.selects(state.node)

    def _delete_policy(self, ref: PolicyRef) -> None:
        for spec in self._policies.pop(ref, ()):
            self._delete_spec(spec)

    def _delete_spec(self, spec: Spec) -> None:
        for state in list(spec.subjects):
            self._unselect(state, spec)
        self._for_nodes.pop(spec, None)
        for rule in spec.rules:
            self._retire(rule)
        if spec.selected is not None:
            self._cache.release(spec.selected, spec)

    def _select(self, state: SubjectState, spec: Spec) -> None:
        state.specs[spec] = None
        spec.subjects[state] = None
        for rule in spec.rules:
            for column, parts in by_column(rule.parts, state):
                state.add(column, parts)
        if spec.enforces:
            state.enforcers.add(spec)
            state.respecified = True
        self._touched[state] = None

    def _unselect(self, state: SubjectState, spec: Spec) -> None:
        del state.specs[spec]
        del spec.subjects[state]
        for rule in spec.rules:
            for column, parts in by_column(rule.parts, state):
                state.remove(column, parts)
        if spec.enforces:
            state.enforcers.remove(spec)
            state.respecified = True
        self._touched[state] = None

    # -- identities and prefixes

    def _hides(self, number: int, labels: Labels | None) -> bool:
        """Whether the number is a prefix's at present; then the labels are kept for when it is not."""
        prefix = self._prefixes.get(number)
        if prefix is None or not prefix.by_identity:
            return False
        if labels is None:
            self._hidden.pop(number, None)
        else:
            self._hidden[number] = labels
        return True

    def _relabel(self, identities: dict[int, Labels | None]) -> None:
        known = self._cache.labels
        changed = {number: labels for number, labels in identities.items() if known.get(number) != labels}
        if len(changed) < self._many or len(changed) * MANY < len(self._cache):
            for number, labels in changed.items():
                self._set_labels(number, labels)
            return
        for number, labels in changed.items():
            self._name(number, labels)
        moved = self._cache.relabel(changed)
        columns: dict[tuple[SubjectState, int], BitMap] = {}
        for matched, numbers in moved:
            for column in self._columns(matched):
                columns.setdefault(column, BitMap()).update(matched.numbers ^ numbers)
        before = [
            (state, column, number, state.winner(column, number))
            for (state, column), numbers in columns.items()
            for number in numbers
        ]
        for matched, numbers in moved:
            matched.numbers = numbers
        self._note_moved(before)
        for number in self._watched & BitMap(changed):
            labels = changed[number]
            selecting = dict.fromkeys(self._specs_for(labels)) if labels is not None else {}
            for state in self._of_identity[number]:
                for spec in [spec for spec in state.specs if spec not in selecting]:
                    self._unselect(state, spec)
                for spec in selecting:
                    if spec not in state.specs:
                        self._select(state, spec)
                state.known = labels is not None
                self._touched[state] = None

    def _specs_for(self, labels: Labels) -> Iterator[Spec]:
        """The specs that select pods with these labels."""
        for matched in self._cache.matching(labels):
            for user in matched.users:
                if isinstance(user, Spec):
                    yield user

    def _name(self, number: int, labels: Labels | None) -> None:
        before = self._cache.labels.get(number)
        if before is not None and self._numbers.get(before) == number:
            del self._numbers[before]
        if labels is not None:
            self._numbers[labels] = number

    def _put_prefix(self, number: int, use: PrefixUse) -> None:
        held = self._prefixes.get(number)
        if held is not None and held.cidr != use.cidr:
            self._delete_prefix(number)
            held = None
        self._prefixes[number] = use
        if use.by_identity != (held is not None and held.by_identity):
            self._use_by_identity(number, use.cidr, there=use.by_identity)
        if use.by_address != (held is not None and held.by_address):
            self._use_by_address(number, use.cidr, there=use.by_address)

    def _delete_prefix(self, number: int) -> None:
        held = self._prefixes.pop(number, None)
        if held is None:
            return
        if held.by_identity:
            self._use_by_identity(number, held.cidr, there=False)
        if held.by_address:
            self._use_by_address(number, held.cidr, there=False)

    def _use_by_identity(self, number: int, cidr: str, *, there: bool) -> None:
        changes = self._cache.prefix_changes(number, cidr, by_address=False, there=there)
        self._cache.put_prefix(number, cidr, by_address=False, there=there)
        labels: Labels | None
        if there:
            before = self._cache.labels.get(number)
            if before is not None:
                self._hidden[number] = before
            labels = prefix_labels(cidr)
        else:
            labels = before = self._hidden.pop(number, None)
        if before is None:
            self._inert.add((number, False))
        self._set_labels(number, labels, changes)

    def _use_by_address(self, number: int, cidr: str, *, there: bool) -> None:
        changes = self._cache.prefix_changes(number, cidr, by_address=True, there=there)
        self._cache.put_prefix(number, cidr, by_address=True, there=there)
        self._inert.add((number, True))
        self._move(number, changes)

    def _set_labels(self, number: int, labels: Labels | None, more: Iterable[Change[User]] = ()) -> None:
        before = self._cache.labels.get(number)
        if before == labels and not more:
            return
        self._name(number, labels)
        changes = self._cache.label_changes(number, labels)
        states = self._of_identity.get(number, {})
        self._move(number, [*changes, *more])
        self._cache.put_labels(number, labels)
        for matched, matches in changes if states else ():
            for spec in matched.users:
                if isinstance(spec, Spec):
                    for state in states:
                        (self._select if matches else self._unselect)(state, spec)
        for state in states:
            state.known = labels is not None
            self._touched[state] = None

    def _move(self, number: int, changes: Iterable[Change[User]]) -> None:
        """A number is matched by some peers from now on, and by others no longer."""
        columns = dict.fromkeys(place for matched, _ in changes for place in self._columns(matched))
        before = [(state, column, number, state.winner(column, number)) for state, column in columns]
        self._cache.follow(number, changes)
        self._note_moved(before)

    @staticmethod
    def _columns(matched: Matched[User]) -> Iterator[tuple[SubjectState, int]]:
        """Where it is told who is matched."""
        for part in matched.users:
            if isinstance(part, Part):
                for state in part.rule.spec.subjects:
                    if state.tracked:
                        for column in part.columns_of(state):
                            yield state, column

    def _note_moved(self, before: Iterable[tuple[SubjectState, int, int, int]]) -> None:
        for state, column, number, claim in before:
            after = state.winner(column, number)
            if after != claim:
                state.note(column, number, claim, after)
                self._touched[state] = None

    # -- ports

    def _set_ports(self, number: int, ports: frozenset[NamedPort]) -> None:
        """Follow up in the egress rules that name a port."""
        if self.ports_of(number) == ports:
            return
        self._move(number, self._cache.port_changes(number, ports))
        fresh, gone = self._cache.put_ports(number, ports)
        for rule in self._by_port_name if fresh or gone else ():
            for port in gone:
                # Nobody is left in them.
                self._each(SubjectState.remove, rule, rule.remove_port(port, self._cache))
            for port in fresh:
                self._each(SubjectState.add, rule, rule.add_port(port, self._cache))

    def _each(
        self, change: Callable[[SubjectState, int, list[Part]], None], rule: RuleInForce, parts: list[Part]
    ) -> None:
        for state in rule.spec.subjects if parts else ():
            for column, together in by_column(parts, state):
                change(state, column, together)
            self._touched[state] = None

    # -- subjects

    def _add_subject(self, subject: Subject) -> None:
        if subject in self._subjects:
            return
        state = self._subjects[subject] = SubjectState(subject)
        if subject.is_node:
            self._nodes[state] = None
            for spec in self._for_nodes:
                if self._selects_node(spec, state):
                    self._select(state, spec)
        else:
            number = subject.identity
            self._of_identity.setdefault(number, {})[state] = None
            self._watched.add(number)
            labels = self._cache.labels.get(number)
            state.known = labels is not None
            for spec in self._specs_for(labels) if labels is not None else ():
                self._select(state, spec)
        self._settle(state)

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
            self._watched.discard(subject.identity)

    # -- output

    def _changes(self) -> list[SubjectChange]:
        found = []
        inert = {(number, use) for number, use in self._inert if use or number not in self._named}
        for state in list(self._touched):
            change = state.change(inert)
            if change is not None:
                found.append(change)
            self._settle(state)
        self._inert.clear()
        self._named.clear()
        return found

    def _settle(self, state: SubjectState) -> None:
        state.settle()
        self._touched.pop(state, None)
