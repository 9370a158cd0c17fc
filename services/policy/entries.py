# SPDX-License-Identifier: Apache-2.0
"""Policy-map entries: what a subject's policy looks like in the kernel, and how a packet is judged by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

from services.policy.rules import (
    MAX_PORT,
    Direction,
    NamedPort,
    PolicyRef,
    PortMatch,
    PortName,
    PortRange,
    Protocol,
    Tier,
)

ANY_IDENTITY = 0
PORT_BITS = 16


class PortKey(NamedTuple):
    """The layer 4 part of a key: `prefix` leading bits of `port` count; all zero means everything."""

    protocol: int
    port: int
    prefix: int


# A space of entries is a tier (see `Tier`) with these bits: each space is searched by itself.
TIER_MASK = 3
# The identity is the number of a prefix that holds the peer's address, whoever has that address.
BY_ADDRESS = 4
# Of policies in audit mode.
AUDIT = 8
SPACES = tuple(tier | flags for flags in (0, BY_ADDRESS, AUDIT, BY_ADDRESS | AUDIT) for tier in (0, 1, 2))


class EntryKey(NamedTuple):
    """Key of an entry without the instance: identity 0 is any, protocol 0 is any (then port and prefix are
    0). `space` keeps entries of different tiers apart.
    """

    direction: int
    identity: int
    protocol: int
    port: int
    prefix: int
    space: int = 0


class EntryValue(NamedTuple):
    """What an entry says; `cookie` names the rule, the lowest one of those that say the same.

    It allows, unless it has `deny`, or `passes`: then its tier leaves the packet to the next. `order` is that
    of the rule, the lowest of those with this key.
    """

    deny: bool
    cookie: int
    passes: bool = False
    order: int = 0


EVERY_PORT = PortKey(0, 0, 0)


class Transition(IntEnum):
    """How the verdicts of a subject move with a change; the numbers are those of the API.

    NEUTRAL: none does. WIDENS: some that denied allow now, and none the other way. NARROWS: the reverse.
    With these each entry may be written by itself, before the defaults: every packet meets the verdict of
    before or that of after. SWAP: both ways, or not known: only the whole change at once does that.
    """

    NEUTRAL = 1
    WIDENS = 2
    NARROWS = 3
    SWAP = 4


Enforcers = tuple[tuple[PolicyRef, ...], tuple[PolicyRef, ...]]


@dataclass(frozen=True, slots=True)
class SubjectPolicy:
    """A subject's whole state.

    Where `enforced` holds for (ingress, egress), what no entry allows is denied; elsewhere everything passes.
    `enforced_by` names the policies that make it so, in order. Only those of the tier NORMAL do.

    `audit_enforced` and `audit_enforced_by` are the same for policies in audit mode.
    """

    enforced: tuple[bool, bool] = (False, False)
    enforced_by: Enforcers = ((), ())
    entries: Mapping[EntryKey, EntryValue] = field(default_factory=dict)
    audit_enforced: tuple[bool, bool] = (False, False)
    audit_enforced_by: Enforcers = ((), ())


def port_prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest (port, prefix length) that cover first..last exactly, in ascending order."""
    while first <= last:
        # The largest block that starts here, is aligned, and does not reach beyond the end.
        size = first & -first or MAX_PORT + 1
        while size > last - first + 1:
            size >>= 1
        yield first, PORT_BITS + 1 - size.bit_length()
        first += size


def literal_ports(ports: Iterable[PortMatch]) -> frozenset[PortKey]:
    """The keys of the ports that are given by number; those of no ports at all are every port."""
    listed = tuple(ports)
    if not listed:
        return frozenset((EVERY_PORT,))
    return frozenset(
        PortKey(match.protocol, port, prefix)
        for match in listed
        if isinstance(match, PortRange)
        for port, prefix in port_prefixes(match.first, match.last)
    )


def declared_ports(names: Iterable[PortName], declared: Iterable[NamedPort]) -> frozenset[PortKey]:
    """The keys of ports given by name, by what their owner declares."""
    owned = tuple(declared)
    return frozenset(
        PortKey(port.protocol, port.port, PORT_BITS)
        for match in names
        for port in owned
        if port.name == match.name and match.protocol in (Protocol.ANY, port.protocol)
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a new connection, and the entry that decided it: None when none covers it.

    `audited`: the verdict that policies in audit mode would have turned this one into, a denial; None when
    they would not.
    """

    allowed: bool
    key: EntryKey | None = None
    value: EntryValue | None = None
    audited: Judgement | None = None


def judge(
    policy: SubjectPolicy,
    direction: Direction,
    identity: int,
    protocol: int,
    port: int,
    prefixes: Iterable[int] = (),
) -> Judgement:
    """Judge as the datapath does. `prefixes` has the number of the longest prefix in use by address that
    holds the peer's address; nothing when there is none.

    The admin tier is asked first: of all its entries that cover the packet the one with the lowest order
    decides, unless it passes. Then the normal tier: a denying entry, else an allowing one, else the default
    of the direction if it is enforced. Then the baseline, as the admin tier. What nothing decides is allowed.
    """
    owners = tuple(prefixes)
    real = _decide(policy, direction, identity, protocol, port, owners, audit=False)
    if not real.allowed:
        return real
    would = _decide(policy, direction, identity, protocol, port, owners, audit=True)
    return real if would.allowed else replace(real, audited=would)


def _decide(
    policy: SubjectPolicy,
    direction: Direction,
    identity: int,
    protocol: int,
    port: int,
    prefixes: tuple[int, ...],
    *,
    audit: bool,
) -> Judgement:
    found: dict[int, tuple[tuple[int, int], EntryKey, EntryValue]] = {}
    for space in SPACES:
        if space & AUDIT and not audit:
            continue
        owners = prefixes if space & BY_ADDRESS else (identity, ANY_IDENTITY)
        for key in covering_keys(direction, owners, protocol, port, space):
            value = policy.entries.get(key)
            if value is None:
                continue
            tier = space & TIER_MASK
            rank = value.order, 0 if value.deny else 1 if value.passes else 2
            # The first of equals stays.
            if tier not in found or rank < found[tier][0]:
                found[tier] = rank, key, value
    for tier in (Tier.ADMIN, Tier.NORMAL, Tier.BASELINE):
        if tier in found and not found[tier][2].passes:
            _, key, value = found[tier]
            return Judgement(not value.deny, key, value)
        if tier is Tier.NORMAL and (
            policy.enforced[direction] or (audit and policy.audit_enforced[direction])
        ):
            return Judgement(False)
    return Judgement(True)


def covering_keys(
    direction: Direction, owners: Iterable[int], protocol: int, port: int, space: int = 0
) -> Iterator[EntryKey]:
    """Every key of a space that covers the packet: for each level (proto/port with the longer port prefixes
    first, proto/ANY, ANY/ANY) those of each owner.
    """
    whose = tuple(owners)
    for owner in whose:
        for prefix in range(PORT_BITS, 0, -1):
            masked = port & (MAX_PORT << (PORT_BITS - prefix)) & MAX_PORT
            yield EntryKey(direction, owner, protocol, masked, prefix, space)
    for owner in whose:
        yield EntryKey(direction, owner, protocol, 0, 0, space)
    for owner in whose:
        yield EntryKey(direction, owner, Protocol.ANY, 0, 0, space)
