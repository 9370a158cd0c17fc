# SPDX-License-Identifier: Apache-2.0
"""A subject's policy computed from nothing: the definition that the engine keeps up to date in steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from services.policy.entries import (
    ANY_IDENTITY,
    AUDIT,
    BY_ADDRESS,
    EntryKey,
    EntryValue,
    SubjectPolicy,
    declared_ports,
    literal_ports,
)
from services.policy.prefixes import PrefixUse, prefix_labels, within
from services.policy.rules import (
    CidrPeer,
    Direction,
    NamedPort,
    Peer,
    Policy,
    PolicyRef,
    PortName,
    Rule,
    Tier,
)
from services.policy.selector import Labels, Selector


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
    prefixes: Mapping[int, PrefixUse] | None = None,
) -> SubjectPolicy:
    """The policy of a subject with these labels (a node's have `reserved:host`) and declared ports.

    `identities` are the peers there are; `ports_of` the named ports of each, for egress rules with port
    names. `prefixes` are those that have numbers; the ones in use by identity are peers as well.
    """
    numbered = prefixes or {}
    found = _Resolution(
        {
            **identities,
            **{number: prefix_labels(use.cidr) for number, use in numbered.items() if use.by_identity},
        },
        numbered,
        tuple(ports),
        ports_of or {},
    )
    # By [audit][direction].
    enforced: list[list[set[PolicyRef]]] = [[set(), set()], [set(), set()]]
    entries: dict[EntryKey, EntryValue] = {}
    for bound in policies:
        policy = bound.policy
        for spec in policy.specs:
            if not spec.selects(subject):
                continue
            for direction in Direction:
                if enforces(policy, spec.default_deny, direction):
                    enforced[policy.audit][direction].add(bound.ref)
            for rule in spec.rules:
                value = EntryValue(rule.deny, bound.cookies[rule.path], rule.passes, rule.order)
                for key in found.keys(rule, base_space(policy)):
                    other = entries.get(key)
                    if other is None or rank(value) < rank(other):
                        entries[key] = value
    return SubjectPolicy(
        (bool(enforced[False][0]), bool(enforced[False][1])),
        (tuple(sorted(enforced[False][0])), tuple(sorted(enforced[False][1]))),
        entries,
        (bool(enforced[True][0]), bool(enforced[True][1])),
        (tuple(sorted(enforced[True][0])), tuple(sorted(enforced[True][1]))),
    )


def base_space(policy: Policy) -> int:
    """The space of a policy's entries about identities."""
    return policy.tier | (AUDIT if policy.audit else 0)


def enforces(policy: Policy, default_deny: tuple[bool, bool], direction: Direction) -> bool:
    """Whether a spec with this default makes its subjects refuse what nothing allows, audit mode aside: the
    tiers of administrators have no default.
    """
    return policy.tier is Tier.NORMAL and default_deny[direction]


def rank(value: EntryValue) -> tuple[int, int, int]:
    """The lowest decides between values of one key."""
    return value.order, 0 if value.deny else 1 if value.passes else 2, value.cookie


@dataclass(frozen=True)
class _Resolution:
    """What there is to be matched."""

    identities: Mapping[int, Labels]
    prefixes: Mapping[int, PrefixUse]
    owned: tuple[NamedPort, ...]
    ports_of: Mapping[int, frozenset[NamedPort]]

    def keys(self, rule: Rule, space: int) -> Iterator[EntryKey]:
        """The keys that a rule of a policy in this space speaks for."""
        literal = literal_ports(rule.ports)
        names = tuple(match for match in rule.ports if isinstance(match, PortName))
        everybody = any(isinstance(peer, Selector) and peer.matches_everything for peer in rule.peers)
        matched = {
            number
            for peer in rule.peers
            if not (isinstance(peer, CidrPeer) and peer.by_address)
            for number in self.matches(peer)
        }
        addressed = {
            number
            for peer in rule.peers
            if isinstance(peer, CidrPeer) and peer.by_address
            for number in self.matches(peer)
        }
        whom = [(ANY_IDENTITY, space)] if everybody else [(number, space) for number in matched]
        if not everybody:
            whom += [(number, space | BY_ADDRESS) for number in addressed]
        ports = literal
        if rule.direction is Direction.INGRESS:
            ports |= declared_ports(names, self.owned)
        for number, where in whom:
            for port in ports:
                yield EntryKey(rule.direction, number, *port, where)
        if rule.direction is Direction.EGRESS and names:
            for number, declared in self.ports_of.items():
                if everybody or number in matched:
                    for port in declared_ports(names, declared):
                        yield EntryKey(rule.direction, number, *port, space)

    def matches(self, peer: Peer) -> Iterator[int]:
        """The numbers that a peer means; a group that is not bound means nobody."""
        if isinstance(peer, Selector):
            yield from (number for number, labels in self.identities.items() if peer.matches(labels))
        elif isinstance(peer, CidrPeer):
            for number, use in self.prefixes.items():
                used = use.by_address if peer.by_address else use.by_identity
                if used and within(use.cidr, peer.cidr, peer.excepts):
                    yield number
