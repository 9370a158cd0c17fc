# SPDX-License-Identifier: Apache-2.0
"""Policies in force: specs with the subjects that they select, and rules as parts that speak for keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from services.policy.engine_words import claim_of, column_of
from services.policy.entries import BY_ADDRESS, declared_ports, literal_ports
from services.policy.resolve import base_space, enforces
from services.policy.rules import (
    CidrPeer,
    Direction,
    NamedPort,
    Peer,
    Policy,
    PortName,
    Protocol,
    Rule,
    RuleSpec,
)
from services.policy.selector import Selector
from services.policy.selector_cache import Matched, SelectorCache

if TYPE_CHECKING:
    from services.policy.engine_state import SubjectState


class Spec:
    """A spec in force, and the subjects that it selects now. `selected` are the identities of pods; one for
    nodes has none.
    """

    __slots__ = ("audit", "enforces", "ref", "rules", "selected", "space", "spec", "subjects")

    def __init__(self, policy: Policy, spec: RuleSpec) -> None:
        self.ref = policy.ref
        self.audit = policy.audit
        self.space = base_space(policy)
        self.enforces = tuple(d for d in Direction if enforces(policy, spec.default_deny, d))
        self.spec = spec
        self.rules: list[RuleInForce] = []
        self.subjects: dict[SubjectState, None] = {}
        self.selected: Matched[User] | None = None

    def heads_as(self, other: Spec) -> bool:
        """Whether both apply to the same subjects in the same way, whatever their rules say."""
        return (self.space, self.enforces, self.spec.nodes, self.spec.subject) == (
            other.space,
            other.enforces,
            other.spec.nodes,
            other.spec.subject,
        )


class Part:
    """What one rule says about one of its peers: for all of `columns` and whoever `matched` has, `claim`.

    `names` are ports that its subject declares, or does not: then there are columns of each subject's own.
    """

    __slots__ = ("claim", "columns", "matched", "names", "rule", "space")

    def __init__(self, rule: RuleInForce, space: int) -> None:
        self.rule = rule
        self.claim = rule.claim
        self.space = space
        self.columns: tuple[int, ...] = ()
        self.names: tuple[PortName, ...] = ()
        self.matched: Matched[User]

    def columns_of(self, state: SubjectState) -> Iterable[int]:
        """The columns that it is in at a subject."""
        if not self.names:
            return self.columns
        named = declared_ports(self.names, state.subject.ports)
        return {*self.columns, *(column_of(Direction.INGRESS, self.space, port) for port in named)}


class RuleInForce:
    """A rule in force, as parts: one for each peer, and one for each peer and port that an egress rule gives
    by a name that somebody declares.
    """

    __slots__ = ("claim", "egress_names", "parts", "rule", "spec")

    def __init__(self, spec: Spec, rule: Rule, cookie: int, cache: SelectorCache[User]) -> None:
        self.spec = spec
        self.rule = rule
        self.claim = claim_of(rule, cookie)
        names = tuple(match for match in rule.ports if isinstance(match, PortName))
        ingress = rule.direction is Direction.INGRESS
        self.egress_names = () if ingress else names
        ports = sorted(literal_ports(rule.ports))
        self.parts: list[Part] = []
        for peer in _peers(rule.peers):
            space = spec.space
            if isinstance(peer, CidrPeer) and peer.by_address:
                space |= BY_ADDRESS
            part = Part(self, space)
            part.columns = tuple(column_of(rule.direction, space, port) for port in ports)
            part.names = names if ingress else ()
            part.matched = cache.everybody if peer is None else cache.use(peer, part)
            self.parts.append(part)
        for port in cache.declared() if self.egress_names else ():
            self.add_port(port, cache)

    def add_port(self, port: NamedPort, cache: SelectorCache[User]) -> list[Part]:
        """The parts that are new because somebody declares this port."""
        if not any(name.name == port.name and name.protocol in (Protocol.ANY, port.protocol)
                   for name in self.egress_names):  # fmt: skip
            return []
        found = []
        (key,) = declared_ports(self.egress_names, (port,))
        for base in self.parts:
            # A prefix declares nothing, and who has an address is not known by that.
            if isinstance(base.matched.what, Selector) or base.matched is cache.everybody:
                part = Part(self, base.space)
                part.columns = (column_of(Direction.EGRESS, base.space, key),)
                part.matched = cache.use_port(base.matched, port, part)
                found.append(part)
        self.parts += found
        return found

    def remove_port(self, port: NamedPort, cache: SelectorCache[User]) -> list[Part]:
        """The parts that are gone because nobody declares this port any longer."""
        gone = [part for part in self.parts if part.matched.what == port]
        self.parts = [part for part in self.parts if part not in gone]
        for part in gone:
            cache.release(part.matched, part)
        return gone

    def release(self, cache: SelectorCache[User]) -> None:
        # Those with ports are after those that they are of.
        for part in reversed(self.parts):
            if part.matched is not cache.everybody:
                cache.release(part.matched, part)


def by_column(parts: Iterable[Part], state: SubjectState) -> Iterable[tuple[int, list[Part]]]:
    """The columns at a subject with those of the parts that are in them."""
    found: dict[int, list[Part]] = {}
    for part in parts:
        for column in part.columns_of(state):
            found.setdefault(column, []).append(part)
    return found.items()


User = Spec | Part


def _peers(peers: Iterable[Peer]) -> list[Selector | CidrPeer | None]:
    """The peers that are matched, without repeats; None alone if one of them is everybody. A group that is
    not bound is nobody.
    """
    if any(isinstance(peer, Selector) and peer.matches_everything for peer in peers):
        return [None]
    return list(dict.fromkeys(peer for peer in peers if isinstance(peer, Selector | CidrPeer)))
