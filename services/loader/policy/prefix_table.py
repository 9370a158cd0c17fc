"""Which prefixes the policy service has named, and which of them may be in force by now. No I/O.

A prefix has one number and two uses. In use by identity it is in the ipcache: whoever is outside the cluster
and has such an address has that identity. In use by address the entries that ask for the peer's address find
the number, whoever the peer is. Either begins only when the entries about the number are in force for every
subject, which :meth:`PrefixTable.release` says; it ends at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

# Numbers of prefixes, as the identity service gives them out; and those of 0.0.0.0/0 and ::/0.
FIRST_NUMBER: Final = 0xFF0000
WORLD_IPV4: Final = 9
WORLD_IPV6: Final = 10


def is_prefix_number(identity: int) -> bool:
    """Whether an identity is that of a prefix."""
    return identity >= FIRST_NUMBER or identity in (WORLD_IPV4, WORLD_IPV6)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix that policies refer to: ``cidr`` as the kernel's maps are read, ``10.0.0.0/8``."""

    cidr: str
    number: int
    by_identity: bool = False
    by_address: bool = False


@dataclass(frozen=True, slots=True)
class PrefixChanges:
    """What has changed of the prefixes in force: numbers by prefix, None for those that no longer are."""

    by_identity: Mapping[str, int | None] = field(default_factory=dict)
    by_address: Mapping[str, int | None] = field(default_factory=dict)


def in_order(changes: Iterable[str], *, begin: bool) -> list[str]:
    """Prefixes in the order in which they are to begin or to end: one that is left out of another is there
    whenever that is.
    """
    return sorted(changes, key=_length, reverse=begin)


def _length(cidr: str) -> int:
    # Families do not meet.
    return int(cidr.rpartition("/")[2])


class PrefixTable:
    """``identities`` and ``addresses`` are what a former process left in force, by its two uses."""

    def __init__(self, identities: Mapping[str, int], addresses: Mapping[str, int]) -> None:
        self._identities = dict(identities)
        self._addresses = dict(addresses)
        self._wanted: dict[str, Prefix] = {}
        self._numbers: dict[int, str] = {}
        self._waiting: set[str] = set()
        self._in_force = Counter((number, False) for number in identities.values())
        self._in_force.update((number, True) for number in addresses.values())

    def in_force(self, number: int, *, by_address: bool) -> bool:
        """Whether the prefix of a number may have begun to take effect, in that use."""
        return (number, by_address) in self._in_force

    @property
    def waiting(self) -> int:
        """How many prefixes are to begin to take effect."""
        return len(self._waiting)

    def cidr(self, number: int) -> str | None:
        """The prefix of a number, if policies refer to it."""
        return self._numbers.get(number)

    def update(self, upserts: Iterable[Prefix], deletes: Iterable[str], *, whole: bool) -> PrefixChanges:
        """Takes what the service says; ``whole``: there are no others than the ``upserts``. What is returned
        ends at once, what begins waits.
        """
        named = {prefix.cidr: prefix for prefix in upserts}
        gone = set(deletes) - named.keys()
        if whole:
            gone |= (self._wanted.keys() | self._identities.keys() | self._addresses.keys()) - named.keys()
        for cidr in gone:
            self._forget(cidr)
        for cidr, prefix in named.items():
            self._forget(cidr)
            self._wanted[cidr] = prefix
            self._numbers[prefix.number] = cidr
        identities: dict[str, int | None] = {}
        addresses: dict[str, int | None] = {}
        for cidr in gone | named.keys():
            by_identity, by_address = self._numbers_wanted(cidr)
            # Another number replaces the one in force when it may; no number ends it.
            if by_identity is None and self._end(cidr, by_address=False):
                identities[cidr] = None
            if by_address is None and self._end(cidr, by_address=True):
                addresses[cidr] = None
            if (self._identities.get(cidr), self._addresses.get(cidr)) == (by_identity, by_address):
                self._waiting.discard(cidr)
            else:
                self._waiting.add(cidr)
        return PrefixChanges(identities, addresses)

    def release(self) -> PrefixChanges:
        """The entries are in force: what waited begins."""
        identities: dict[str, int | None] = {}
        addresses: dict[str, int | None] = {}
        for cidr in self._waiting:
            by_identity, by_address = self._numbers_wanted(cidr)
            if by_identity is not None and self._begin(cidr, by_identity, by_address=False):
                identities[cidr] = by_identity
            if by_address is not None and self._begin(cidr, by_address, by_address=True):
                addresses[cidr] = by_address
        self._waiting.clear()
        return PrefixChanges(identities, addresses)

    def _begin(self, cidr: str, number: int, *, by_address: bool) -> bool:
        """Returns whether it was not in force by that number."""
        force = self._addresses if by_address else self._identities
        if force.get(cidr) == number:
            return False
        self._end(cidr, by_address=by_address)
        force[cidr] = number
        self._in_force[number, by_address] += 1
        return True

    def _end(self, cidr: str, *, by_address: bool) -> bool:
        """Returns whether it was in force."""
        number = (self._addresses if by_address else self._identities).pop(cidr, None)
        if number is None:
            return False
        self._in_force[number, by_address] -= 1
        if not self._in_force[number, by_address]:
            del self._in_force[number, by_address]
        return True

    def _numbers_wanted(self, cidr: str) -> tuple[int | None, int | None]:
        prefix = self._wanted.get(cidr)
        if prefix is None:
            return None, None
        return (
            prefix.number if prefix.by_identity else None,
            prefix.number if prefix.by_address else None,
        )

    def _forget(self, cidr: str) -> None:
        known = self._wanted.pop(cidr, None)
        if known is not None:
            self._numbers.pop(known.number, None)
