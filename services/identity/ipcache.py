"""The ipcache: what each IP or prefix means, and who may say so.

An entry belongs to the node that published it last. The rules, in the order in which commits happen:

- *Publish* makes the publishing node the entry's owner, also when another node held it. Addresses come
  from ipam, which gives none of them to two owners, so the node that publishes an address now is the one that
  the address was handed to last; the earlier holder is dead or late, and traffic has to follow the address.
- *Withdraw* by a node that is not the owner (any more) changes nothing. So the late clean-up of a node that
  lost an address, or a replayed withdrawal, never takes away the entry of the address's new holder.
- *Replace* (a node's full state) publishes what is named and withdraws what the same node owned besides.
- Publishing what is already there changes nothing: no event, no revision.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from services.chassis.errors import InvalidArgument
from services.identity.problems import invalid


@dataclass(frozen=True, slots=True)
class Entry:
    """One prefix, the identity behind it and how to reach it.

    `prefix` is normalised (`normalise_prefix`). `tunnel` is the underlay address of the node to
    encapsulate to, "" for none, and `owner` tells people what is there. `identity_revision` is the
    revision at which the identity came into being: a node must have policy of at least that revision before
    it may act on the entry. `revision` is that of the ipcache feed at the entry's last change.
    """

    prefix: str
    identity: int
    node: str
    tunnel: str = ""
    owner: str = ""
    identity_revision: int = 0
    revision: int = 0

    def same_as(self, other: Entry) -> bool:
        """Whether both say the same, whenever they were written."""
        return replace(self, revision=0) == replace(other, revision=0)


# IPv4 addresses in IPv6 clothes (RFC 4291 2.5.5.2): no packet carries one, and two spellings exist.
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def normalise_prefix(text: str, field: str) -> str:
    """`text` in the one form that the ipcache stores: "10.0.0.7" and "10.0.0.7/32" are "10.0.0.7/32".

    Either family; IPv6 is compressed and lower case (RFC 5952). Raises InvalidArgument (PREFIX_INVALID)
    naming `field` for what is not an address or network, has host bits set, or is written otherwise; its
    metadata "expected" is the right text where there is one.
    """
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        interface = None
    if interface is None or "%" in text:
        description = (
            f"{text!r} is not an IP or prefix; expected one like 10.244.1.7/32 or fd00:10:244::7/128"
        )
        raise invalid(field, description, reason="PREFIX_INVALID", value=text)
    network = interface.network
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        expected = f"{mapped}/{network.prefixlen - 96}"
        raise _refuse(field, text, "is an IPv4-mapped IPv6 prefix", expected)
    if interface.ip != network.network_address:
        raise _refuse(field, text, "has bits beyond its prefix length", str(network))
    if text not in (str(network), str(interface.ip)):
        raise _refuse(field, text, "is not in canonical form", str(network))
    return str(network)


def _refuse(field: str, text: str, what: str, expected: str) -> InvalidArgument:
    description = f"{text!r} {what}; expected {expected}"
    return invalid(field, description, reason="PREFIX_INVALID", value=text, expected=expected)


@dataclass(frozen=True, slots=True)
class Changes:
    """What has to be written: entries to put, entries to remove, and whose entries were taken over."""

    puts: tuple[Entry, ...] = ()
    removals: tuple[Entry, ...] = ()
    taken_over: tuple[Entry, ...] = ()


def plan_publish(
    entries: Sequence[Entry], current: Mapping[str, Entry], *, replaced: Iterable[Entry] = ()
) -> Changes:
    """What publishing `entries` changes.

    `current` holds the present entry, by prefix, for every prefix of `entries` that has one. `replaced` are
    all entries that the publishing node owns now, if it asked for them to be replaced. When `entries`
    names a prefix twice the last one counts.
    """
    wanted = {entry.prefix: entry for entry in entries}
    puts = []
    taken_over = []
    for prefix, entry in wanted.items():
        present = current.get(prefix)
        if present is not None and present.same_as(entry):
            continue
        puts.append(entry)
        if present is not None and present.node != entry.node:
            taken_over.append(present)
    removals = tuple(entry for entry in replaced if entry.prefix not in wanted)
    return Changes(tuple(puts), removals, tuple(taken_over))


def plan_withdraw(node: str, current: Iterable[Entry]) -> Changes:
    """What a withdrawal by `node` of the `current` entries changes: only those that it still owns go."""
    return Changes(removals=tuple(entry for entry in current if entry.node == node))
