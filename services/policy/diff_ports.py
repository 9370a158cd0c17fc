# SPDX-License-Identifier: Apache-2.0
"""What two lists of rules say about every protocol and port, and where they differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.policy.rules import MAX_PORT, PortRange, Protocol, Tier

MAX_ICMP_TYPE = 255


class Clause(NamedTuple):
    """A rule without its peers. No `ports` is every protocol and port; (-1,) for those of no port at all."""

    tier: Tier
    audit: bool
    deny: bool
    passes: bool
    order: int
    ports: tuple[PortRange, ...] | None

    @property
    def rank(self) -> tuple[int, int]:
        """The first decides in its tier."""
        return self.order, 0 if self.deny else 1 if self.passes else 2


class Default(NamedTuple):
    """What no rule allows is denied: in force, and with the policies in audit mode."""

    enforced: bool
    audit_enforced: bool


class Told(NamedTuple):
    """A verdict, and whether policies in audit mode would have denied what passes."""

    allowed: bool
    audited: bool


class Stretch(NamedTuple):
    """Ports of one protocol for which both sets of rules say one thing each. Protocol 0: every other one."""

    protocol: int
    first: int
    last: int
    before: Told
    after: Told

    @property
    def changed(self) -> bool:
        return self.before != self.after


# By protocol and port, without overlaps; the last is that of every other protocol.
Profile = tuple[Stretch, ...]


def profile(before: Sequence[Clause], after: Sequence[Clause], defaults: tuple[Default, Default]) -> Profile:
    """What the rules that concern a peer say about all of its ports, in the fewest stretches."""
    starts: dict[int, set[int]] = {}
    for clause in (*before, *after):
        for ports in clause.ports or ():
            if ports.protocol is not Protocol.ANY:
                starts.setdefault(ports.protocol, {0}).update((ports.first, ports.last + 1))
    whole = _told(before, defaults[0], 0, 0), _told(after, defaults[1], 0, 0)
    found: list[Stretch] = []
    for protocol in sorted(starts):
        merged: list[Stretch] = []
        cuts = sorted(start for start in starts[protocol] if start <= _top(protocol))
        for first, following in zip(cuts, [*cuts[1:], _top(protocol) + 1], strict=True):
            told = _told(before, defaults[0], protocol, first), _told(after, defaults[1], protocol, first)
            if merged and (merged[-1].before, merged[-1].after) == told:
                merged[-1] = merged[-1]._replace(last=following - 1)
            else:
                merged.append(Stretch(protocol, first, following - 1, *told))
        if len(merged) == 1:
            merged = [merged[0]._replace(last=MAX_PORT)]
            if (merged[0].before, merged[0].after) == whole:
                continue
        found += merged
    found.append(Stretch(0, 0, MAX_PORT, *whole))
    return tuple(found)


def changes(found: Profile) -> list[Stretch]:
    """The stretches to tell of a peer of which something changes: those that do, and those that do not of
    protocols which one that is told would otherwise be taken to mean.
    """
    told = [stretch for stretch in found if stretch.changed]
    if told and found[-1].changed:
        named = {stretch.protocol for stretch in told}
        told += [stretch for stretch in found if stretch.protocol not in named]
    return told


def _top(protocol: int) -> int:
    return MAX_ICMP_TYPE if protocol in (Protocol.ICMP, Protocol.ICMPV6) else MAX_PORT


def _told(clauses: Iterable[Clause], default: Default, protocol: int, port: int) -> Told:
    covering = [clause for clause in clauses if _covers(clause, protocol, port)]
    if not decide([c for c in covering if not c.audit], default.enforced):
        return Told(False, False)
    if not default.audit_enforced and not any(clause.audit for clause in covering):
        return Told(True, False)
    return Told(True, not decide(covering, default.enforced or default.audit_enforced))


def _covers(clause: Clause, protocol: int, port: int) -> bool:
    if clause.ports is None:
        return True
    return any(
        ports.first <= port <= ports.last
        and (ports.protocol == protocol != 0 or (ports.protocol is Protocol.ANY and ports == _EVERYTHING))
        for ports in clause.ports
    )


_EVERYTHING = PortRange(Protocol.ANY)


def decide(covering: Sequence[Clause], enforced: bool) -> bool:
    """Whether rules that all cover a packet let it pass."""
    for tier in (Tier.ADMIN, Tier.NORMAL, Tier.BASELINE):
        deciding = min((clause.rank for clause in covering if clause.tier is tier), default=None)
        if deciding is not None and deciding[1] != 1:
            return deciding[1] == 2
        if tier is Tier.NORMAL and enforced:
            return False
    return True
