# SPDX-License-Identifier: Apache-2.0
"""What would be decided otherwise if the policies were others: pure, and in proportion to what differs.

Only subjects that a changed policy selects are looked at; those that the same rules concern, once. Their
peers are looked at in groups which the same rules concern, and of those only the ones that a changed rule is
about, unless the default of the direction changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from services.policy.diff_peers import HOST, ROOTS, Regions, Universe, prefix_uses
from services.policy.diff_ports import Clause, Default, Profile, Stretch, changes, profile
from services.policy.diff_rows import Column, Grid, Named, named_groups
from services.policy.engine import Subject
from services.policy.resolve import BoundPolicy
from services.policy.rules import (
    CidrGroupPeer,
    CidrPeer,
    Direction,
    NamedPort,
    PolicyRef,
    PortName,
    PortRange,
    Rule,
    RuleSpec,
    Tier,
)
from services.policy.selector import RESERVED, Labels, Selector

# Of reserved identities these are endpoints with a policy of their own.
_ENDPOINTS = ("init", "health")
OTHERS = 0
"""The peer that stands for whoever no rule names."""


@dataclass(frozen=True, slots=True)
class World:
    """The policies there are, without peers that are groups."""

    policies: Mapping[PolicyRef, BoundPolicy]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What policies are about. `subjects` are those that nodes watch; `numbers` are those of prefixes."""

    universe: Universe
    ports_of: Mapping[int, frozenset[NamedPort]] = field(default_factory=dict)
    subjects: Collection[Subject] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """What changes, or (before and after alike) does not where that has to be said: about some ports, for
    these peers, or also for all that no other change of the subject in this direction names.
    """

    subject: Subject
    direction: Direction
    peers: tuple[Named, ...]
    every_other_peer: bool
    stretch: Stretch

    @property
    def changed(self) -> bool:
        return self.stretch.changed

    @property
    def audit_only(self) -> bool:
        return self.changed and self.stretch.before.allowed == self.stretch.after.allowed


def is_endpoint(labels: Labels) -> bool:
    """Whether they are the labels of a pod, and not of a node, the world and the like."""
    return not any(
        label.startswith(f"{RESERVED}:") and label.split(":", 1)[1].rstrip("=") not in _ENDPOINTS
        for label in labels.strings
    )


def node_labels(subject: Subject) -> Labels:
    return Labels((*subject.labels, f"{RESERVED}:host"))


class _RuleKey(NamedTuple):
    """All of a rule that verdicts depend on."""

    tier: Tier
    audit: bool
    deny: bool
    passes: bool
    order: int
    peers: tuple[Selector | CidrPeer | CidrGroupPeer, ...]
    ports: tuple[PortRange | PortName, ...]


class _Spec(NamedTuple):
    """A spec of a policy under one of the two sets of policies."""

    which: int
    changed: bool
    tier: Tier
    audit: bool
    spec: RuleSpec


class _Reach(NamedTuple):
    """Whom a rule is about: everybody, or these identities (parts of the address space are negative), or
    whoever has an address in one of these parts.
    """

    everybody: bool
    peers: frozenset[int]
    addresses: frozenset[int]


def diff(before: World, after: World, cluster: Cluster) -> Iterator[Change]:
    """The changes by subject; the same subject's are together, ingress first."""
    differs = _Diff(before, after, cluster)
    for subjects, specs, ports in differs.classes():
        for direction in Direction:
            rows = differs.rows(subjects[0], specs, ports, direction)
            for subject in subjects if rows else ():
                for peers, others, stretch in rows:
                    yield Change(subject, direction, peers, others, stretch)


_Row = tuple[tuple[Named, ...], bool, Stretch]


class _Diff:
    def __init__(self, before: World, after: World, cluster: Cluster) -> None:
        self._cluster = cluster
        self._universe = cluster.universe
        worlds = before.policies, after.policies
        self._changed = {
            ref
            for ref in (*worlds[0], *worlds[1])
            if _policy(worlds[0].get(ref)) != _policy(worlds[1].get(ref))
        }
        if not self._changed:
            self._regions = Regions(({}, {}))
            self._specs: list[_Spec] = []
            return
        uses = prefix_uses(worlds[0].values()), prefix_uses(worlds[1].values())
        self._regions = Regions(uses)
        self._reaches: dict[tuple[tuple[object, ...], int], _Reach] = {}
        self._specs = []
        for which, policies in enumerate(worlds):
            for ref, bound in policies.items():
                changed = ref in self._changed or self._moves(bound)
                for spec in bound.policy.specs:
                    self._specs.append(_Spec(which, changed, bound.policy.tier, bound.policy.audit, spec))

    def _moves(self, bound: BoundPolicy) -> bool:
        """Whether a policy's selectors match other people outside because their identities are others."""
        return bool(self._regions.moved) and any(
            isinstance(peer, Selector) and self._regions.sensitive(peer)
            for rule in bound.policy.rules()
            for peer in rule.peers
        )

    # -- subjects

    def classes(self) -> Iterator[tuple[list[Subject], list[_Spec], tuple[NamedPort, ...]]]:
        """Subjects that a change may concern, by the specs that select them and the ports they declare."""
        touched: set[int] = set()
        for spec in self._specs:
            if spec.changed and not spec.spec.nodes:
                touched |= self._universe.matching(spec.spec.subject)
        touched = {number for number in touched if is_endpoint(self._universe.identities[number])}
        selecting: dict[int, list[int]] = {number: [] for number in touched}
        for index, spec in enumerate(self._specs):
            if touched and not spec.spec.nodes:
                for number in self._universe.matching(spec.spec.subject) & touched:
                    selecting[number].append(index)
        watched: dict[int, list[Subject]] = {}
        nodes = []
        for subject in self._cluster.subjects:
            if subject.is_node:
                nodes.append(subject)
            elif subject.identity in touched:
                watched.setdefault(subject.identity, []).append(subject)
        found: dict[tuple[tuple[int, ...], tuple[NamedPort, ...], bool], list[Subject]] = {}
        for number in sorted(touched):
            declared = tuple(sorted(self._cluster.ports_of.get(number, ())))
            for subject in watched.get(number) or [Subject(number, declared)]:
                found.setdefault((tuple(selecting[number]), subject.ports, False), []).append(subject)
        for subject in sorted(nodes, key=lambda node: node.labels):
            labels = node_labels(subject)
            selected = tuple(i for i, spec in enumerate(self._specs) if spec.spec.selects(labels))
            if any(self._specs[index].changed for index in selected):
                found.setdefault((selected, (), True), []).append(subject)
        for (indexes, ports, _), subjects in found.items():
            yield subjects, [self._specs[index] for index in indexes], ports

    # -- one class of subjects, in one direction

    def rows(
        self, subject: Subject, specs: list[_Spec], ports: tuple[NamedPort, ...], direction: Direction
    ) -> list[_Row]:
        rules = self._rules(specs, direction, 0), self._rules(specs, direction, 1)
        defaults = self._default(specs, direction, 0), self._default(specs, direction, 1)
        changed = rules[0].keys() ^ rules[1].keys()
        changed |= {key for key, reach in rules[0].items() if rules[1].get(key, reach) != reach}
        if not changed and defaults[0] == defaults[1]:
            return []
        rules = self._trimmed(rules, changed, defaults)
        reaches = [reach for held in rules for reach in held.values()]
        wide = defaults[0] != defaults[1] or any(
            reach.everybody or reach.addresses
            for held in rules
            for key, reach in held.items()
            if key in changed
        )
        if wide:
            peers = {OTHERS, *range(-len(self._regions), 0)}.union(*(reach.peers for reach in reaches))
            peers |= self._declaring(rules, direction)
        else:
            peers = set().union(
                *(reach.peers for held in rules for key, reach in held.items() if key in changed)
            )
        # A node always reaches its own pods, before any policy.
        if direction is Direction.INGRESS and not subject.is_node:
            peers.discard(HOST)
        peers -= {-1 - index for index in self._regions.empty}
        grid = _Sides(rules, ports, direction, self._cluster.ports_of, defaults).grid(
            peers, self._regions if any(reach.addresses for reach in reaches) else None
        )
        groups = named_groups(grid, self._universe.name, self._regions, self._number)
        return _told(groups)

    def _declaring(self, rules: tuple[dict[_RuleKey, _Reach], ...], direction: Direction) -> set[int]:
        """Whoever is like everybody else but for the ports that it declares, where rules name ports."""
        if direction is Direction.INGRESS or not any(
            reach.everybody and any(isinstance(port, PortName) for port in key.ports)
            for side in rules
            for key, reach in side.items()
        ):
            return set()
        return {number for number in self._cluster.ports_of if number in self._universe.identities}

    def _trimmed(
        self,
        rules: tuple[dict[_RuleKey, _Reach], dict[_RuleKey, _Reach]],
        changed: set[_RuleKey],
        defaults: tuple[Default, Default],
    ) -> tuple[dict[_RuleKey, _Reach], dict[_RuleKey, _Reach]]:
        """Without rules that, where nothing of the default changes, share no peer with a changed one."""
        held = [reach for side in rules for key, reach in side.items() if key in changed]
        if defaults[0] != defaults[1] or any(reach.everybody or reach.addresses for reach in held):
            return rules
        concerned = frozenset().union(*(reach.peers for reach in held))
        kept = [
            {
                key: reach
                for key, reach in side.items()
                if reach.everybody or reach.addresses or not concerned.isdisjoint(reach.peers)
            }
            for side in rules
        ]
        return kept[0], kept[1]

    def _rules(self, specs: list[_Spec], direction: Direction, which: int) -> dict[_RuleKey, _Reach]:
        found = {}
        for spec in specs:
            if spec.which != which:
                continue
            for rule in spec.spec.rules:
                if rule.direction is direction:
                    key = _RuleKey(
                        spec.tier, spec.audit, rule.deny, rule.passes, rule.order, rule.peers, rule.ports
                    )
                    found[key] = self._reach(rule, which)
        return found

    def _default(self, specs: list[_Spec], direction: Direction, which: int) -> Default:
        held = {
            spec.audit
            for spec in specs
            if spec.which == which and spec.tier is Tier.NORMAL and spec.spec.default_deny[direction]
        }
        return Default(False in held, True in held)

    def _reach(self, rule: Rule, which: int) -> _Reach:
        found = self._reaches.get((rule.peers, which))
        if found is None:
            found = self._reaches[rule.peers, which] = self._reached(rule, which)
        return found

    def _reached(self, rule: Rule, which: int) -> _Reach:
        peers: set[int] = set()
        addresses: set[int] = set()
        for peer in rule.peers:
            if isinstance(peer, Selector):
                if peer.matches_everything:
                    return _Reach(True, frozenset(), frozenset())
                peers |= self._universe.matching(peer)
                peers.update(-1 - index for index in self._regions.matching(peer, which))
            elif isinstance(peer, CidrPeer):
                parts = self._regions.within(peer)
                if peer.by_address:
                    addresses |= parts
                else:
                    peers.update(-1 - index for index in parts)
        return _Reach(False, frozenset(peers), frozenset(addresses))

    def _number(self, index: int) -> int:
        """The number of a prefix; 0 while it has none."""
        name = self._regions.names[index]
        return self._cluster.numbers.get(name) or ROOTS.get(name, 0)


class _Sides:
    """Which rules concern which peer under either set of policies."""

    def __init__(
        self,
        rules: tuple[dict[_RuleKey, _Reach], dict[_RuleKey, _Reach]],
        ports: tuple[NamedPort, ...],
        direction: Direction,
        ports_of: Mapping[int, frozenset[NamedPort]],
        defaults: tuple[Default, Default],
    ) -> None:
        self._rules = tuple(list(side.items()) for side in rules)
        self._ports = ports
        self._direction = direction
        self._ports_of = ports_of
        self._defaults = defaults
        self._profiles: dict[tuple[tuple[Clause, ...], tuple[Clause, ...]], Profile] = {}

    def grid(self, peers: set[int], regions: Regions | None) -> Grid:
        """The profile of each peer. With `regions`, rules select by address too: then those of each
        identity by the parts of the address space that its address may be in.
        """
        marks = self._marks(peers)
        columns = [Column((), ((), ()))]
        if regions is not None:
            parts: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
            by_part = self._address_marks()
            for index in range(len(regions)):
                if index not in regions.empty:
                    parts.setdefault(by_part.get(index, ((), ())), []).append(index)
            parts.pop(((), ()), None)
            columns += [Column(tuple(indexes), sides) for sides, indexes in parts.items()]
        grid = Grid(columns)
        groups: dict[object, list[int]] = {}
        for peer in peers:
            if peer >= 0:
                groups.setdefault(marks.get(peer, _NOTHING), []).append(peer)
        for mark, members in groups.items():
            cells = []
            for column in columns:
                cells.append(self._profile(self._clauses(members[0], mark, column.sides)))
            grid.add(sorted(members), cells)
        part_of = {index: column for column in columns for index in column.parts}
        for peer in peers:
            if peer < 0:
                index = -1 - peer
                sides = part_of[index].sides if index in part_of else ((), ())
                grid.outside[index] = self._profile(self._clauses(peer, marks.get(peer, _NOTHING), sides))
        return grid

    def _marks(self, peers: set[int]) -> dict[int, tuple[tuple[int, ...], ...]]:
        """For each peer that some rule names: the rules of either side that do."""
        found: dict[int, tuple[list[int], ...]] = {}
        for which, rules in enumerate(self._rules):
            for index, (_, reach) in enumerate(rules):
                for peer in reach.peers & peers:
                    found.setdefault(peer, ([], [], []))[which].append(index)
        if self._direction is Direction.EGRESS and any(
            isinstance(port, PortName) for rules in self._rules for key, _ in rules for port in key.ports
        ):
            # Whoever declares ports is a group of one: what a name means depends on it.
            for peer in peers:
                if peer > 0 and self._ports_of.get(peer):
                    found.setdefault(peer, ([], [], []))[2].append(peer)
        return {peer: tuple(tuple(side) for side in sides) for peer, sides in found.items()}

    def _address_marks(self) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
        found: dict[int, tuple[list[int], list[int]]] = {}
        for which, rules in enumerate(self._rules):
            for index, (_, reach) in enumerate(rules):
                for part in reach.addresses:
                    found.setdefault(part, ([], []))[which].append(index)
        return {part: (tuple(sides[0]), tuple(sides[1])) for part, sides in found.items()}

    def _clauses(
        self, peer: int, mark: object, sides: tuple[tuple[int, ...], tuple[int, ...]]
    ) -> tuple[tuple[Clause, ...], tuple[Clause, ...]]:
        assert isinstance(mark, tuple)
        both = []
        for which, rules in enumerate(self._rules):
            clauses = []
            for index, (key, reach) in enumerate(rules):
                named = reach.everybody or index in mark[which]
                if named or index in sides[which]:
                    clauses.append(self._clause(key, peer if named else -1))
            both.append(tuple(clauses))
        return both[0], both[1]

    def _clause(self, key: _RuleKey, peer: int) -> Clause:
        ports: tuple[PortRange, ...] | None = None
        if key.ports:
            given = [port for port in key.ports if isinstance(port, PortRange)]
            names = [port for port in key.ports if isinstance(port, PortName)]
            ingress = self._direction is Direction.INGRESS
            declared = self._ports if ingress else self._ports_of.get(peer, ()) if peer > 0 else ()
            given += [
                PortRange(port.protocol, port.port, port.port)
                for name in names
                for port in declared
                if port.name == name.name and name.protocol in (0, port.protocol)
            ]
            ports = tuple(given)
        return Clause(key.tier, key.audit, key.deny, key.passes, key.order, ports)

    def _profile(self, clauses: tuple[tuple[Clause, ...], tuple[Clause, ...]]) -> Profile:
        found = self._profiles.get(clauses)
        if found is None:
            found = self._profiles[clauses] = profile(*clauses, self._defaults)
        return found


_NOTHING: tuple[tuple[int, ...], ...] = ((), (), ())


def _policy(bound: BoundPolicy | None) -> object:
    return bound.policy if bound is not None else None


def _told(groups: Iterable[tuple[tuple[Named, ...], bool, Profile]]) -> list[_Row]:
    """A row for each stretch that changes, and those of whom nothing changes as far as a row that does would
    otherwise be taken to mean them: all of them where everybody else is told about, and else whoever has an
    address by which rules select, which goes before identities.
    """
    held = [(peers, others, found, any(s.changed for s in found)) for peers, others, found in groups]
    everybody = any(
        changes_here and (others or any(peer.identity == OTHERS for peer in peers))
        for peers, others, _, changes_here in held
    )
    anybody = any(changes_here for *_, changes_here in held)
    elsewhere = {p.identity for peers, _, _, here in held if here for p in peers if p.unselected}
    rows: list[_Row] = []
    for peers, others, found, changes_here in held:
        if changes_here:
            rows += [(peers, others, stretch) for stretch in changes(found)]
        elif everybody:
            rows += [(peers, others, stretch) for stretch in found]
        elif anybody:
            taken_out = tuple(
                peer
                for peer in peers
                if (peer.identity is None and not peer.outside) or (peer.where and peer.identity in elsewhere)
            )
            rows += [(taken_out, False, stretch) for stretch in found if taken_out]
    # What would be denied first, and what is told only so that the rest can be told shortly last.
    return sorted(
        rows, key=lambda row: (not row[2].changed, row[2].after.allowed, row[1], row[0], row[2][:3])
    )
