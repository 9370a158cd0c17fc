# SPDX-License-Identifier: Apache-2.0
"""Policy-map entries: what a subject's policy looks like in the kernel, and how a packet is judged by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
)

ANY_IDENTITY = 0
PORT_BITS = 16


class PortKey(NamedTuple):
    """The layer 4 part of a key: `prefix` leading bits of `port` count; all zero means everything."""

    protocol: int
    port: int
    prefix: int


class EntryKey(NamedTuple):
    """Key of an entry without the instance: identity 0 is any, protocol 0 is any (then port and prefix are
    0).
    """

    direction: int
    identity: int
    protocol: int
    port: int
    prefix: int


class EntryValue(NamedTuple):
    """What an entry says; `cookie` names the rule, the lowest one of those that say the same."""

    deny: bool
    cookie: int


EVERY_PORT = PortKey(0, 0, 0)
# What passes where policies deny something and none is default deny; no rule says it, so its cookie is 0.
DEFAULT_ALLOW = EntryValue(False, 0)

Enforcers = tuple[tuple[PolicyRef, ...], tuple[PolicyRef, ...]]


def wildcard(direction: Direction) -> EntryKey:
    """The key that covers everything in a direction."""
    return EntryKey(direction, ANY_IDENTITY, *EVERY_PORT)


@dataclass(frozen=True, slots=True)
class SubjectPolicy:
    """A subject's whole state.

    Where `enforced` holds for (ingress, egress), what no entry allows is denied; elsewhere everything passes.
    `enforced_by` names the policies that make the subject refuse what nothing allows, in order. Policies that
    deny something but are not default deny give an enforced direction that nothing is named for, with an
    entry that allows everything (DEFAULT_ALLOW).
    """

    enforced: tuple[bool, bool] = (False, False)
    enforced_by: Enforcers = ((), ())
    entries: Mapping[EntryKey, EntryValue] = field(default_factory=dict)


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
    """The verdict on a new connection, and the entry that decided it: None when none covers it."""

    allowed: bool
    key: EntryKey | None = None
    value: EntryValue | None = None


def judge(policy: SubjectPolicy, direction: Direction, identity: int, protocol: int, port: int) -> Judgement:
    """Judge as the datapath does: the first denying entry that covers the packet, else the first allowing
    one.

    The order is id/proto/port, ANY/proto/port (longer port prefixes first), id/proto/ANY, ANY/proto/ANY,
    id/ANY/ANY, ANY/ANY/ANY.
    """
    allow: Judgement | None = None
    for key in covering_keys(direction, identity, protocol, port):
        value = policy.entries.get(key)
        if value is None:
            continue
        if value.deny:
            return Judgement(False, key, value)
        allow = allow or Judgement(True, key, value)
    return allow or Judgement(not policy.enforced[direction])


def covering_keys(direction: Direction, identity: int, protocol: int, port: int) -> Iterator[EntryKey]:
    """Every key that covers the packet, in the datapath's order of precedence."""
    owners = (identity, ANY_IDENTITY)
    for owner in owners:
        for prefix in range(PORT_BITS, 0, -1):
            masked = port & (MAX_PORT << (PORT_BITS - prefix)) & MAX_PORT
            yield EntryKey(direction, owner, protocol, masked, prefix)
    for owner in owners:
        yield EntryKey(direction, owner, protocol, 0, 0)
    for owner in owners:
        yield EntryKey(direction, owner, Protocol.ANY, 0, 0)
