# SPDX-License-Identifier: Apache-2.0
"""A subject's policy computed from nothing: the definition that the engine keeps up to date in steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.policy.entries import (
    ANY_IDENTITY,
    DEFAULT_ALLOW,
    EntryKey,
    EntryValue,
    SubjectPolicy,
    declared_ports,
    literal_ports,
    wildcard,
)
from services.policy.rules import Direction, NamedPort, Policy, PolicyRef, PortName, Rule
from services.policy.selector import Labels


@dataclass(frozen=True, slots=True)
class BoundPolicy:
    """A policy whose rules have their numbers: `cookies` maps a rule's path to its cookie."""

    policy: Policy
    cookies: Mapping[str, int]

    @property
    def ref(self) -> PolicyRef:
        return self.policy.ref


def resolve(
    policies: Iterable[BoundPolicy],
    identities: Mapping[int, Labels],
    subject: Labels,
    ports: Iterable[NamedPort] = (),
    ports_of: Mapping[int, frozenset[NamedPort]] | None = None,
) -> SubjectPolicy:
    """The policy of a subject with these labels (a node's have `reserved:host`) and declared ports.

    `identities` are the peers there are; `ports_of` the named ports of each, for egress rules with port
    names.
    """
    enforced: tuple[set[PolicyRef], set[PolicyRef]] = (set(), set())
    denying = [False, False]
    entries: dict[EntryKey, EntryValue] = {}
    owned = tuple(ports)
    known = ports_of or {}
    for bound in policies:
        for spec in bound.policy.specs:
            if not spec.selects(subject):
                continue
            for direction in Direction:
                if spec.default_deny[direction]:
                    enforced[direction].add(bound.ref)
            for rule in spec.rules:
                value = EntryValue(rule.deny, bound.cookies[rule.path])
                denying[rule.direction] |= rule.deny
                for key in _keys(rule, identities, owned, known):
                    other = entries.get(key)
                    if other is None or (not value.deny, value.cookie) < (not other.deny, other.cookie):
                        entries[key] = value
    for direction in Direction:
        if denying[direction] and not enforced[direction]:
            entries.setdefault(wildcard(direction), DEFAULT_ALLOW)
    return SubjectPolicy(
        (bool(enforced[0]) or denying[0], bool(enforced[1]) or denying[1]),
        (tuple(sorted(enforced[0])), tuple(sorted(enforced[1]))),
        entries,
    )


def _keys(
    rule: Rule,
    identities: Mapping[int, Labels],
    owned: tuple[NamedPort, ...],
    ports_of: Mapping[int, frozenset[NamedPort]],
) -> Iterable[EntryKey]:
    literal = literal_ports(rule.ports)
    names = tuple(match for match in rule.ports if isinstance(match, PortName))
    everybody = any(peer.matches_everything for peer in rule.peers)
    matched = {
        number for number, labels in identities.items() if any(peer.matches(labels) for peer in rule.peers)
    }
    for number in (ANY_IDENTITY,) if everybody else matched:
        for port in literal:
            yield EntryKey(rule.direction, number, *port)
        if rule.direction is Direction.INGRESS:
            for port in declared_ports(names, owned):
                yield EntryKey(rule.direction, number, *port)
    if rule.direction is Direction.EGRESS and names:
        for number, declared in ports_of.items():
            if everybody or number in matched:
                for port in declared_ports(names, declared):
                    yield EntryKey(rule.direction, number, *port)
