# SPDX-License-Identifier: Apache-2.0
"""The numbers that each peer in use matches, kept up to date as identities, prefixes and ports come and go.

A peer is evaluated once, however many rules use it: when it is new, against the indexes of everybody; then by
what changes. A selector is filed under a label that it insists on, and a CIDR under its block, so that
whoever is new is compared only with peers that can match them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from pyroaring import BitMap

from services.policy.bitmaps import LabelIndex, PrefixIndex
from services.policy.entries import ANY_IDENTITY
from services.policy.prefixes import Block, block_of, within
from services.policy.rules import CidrPeer, NamedPort
from services.policy.selector import NAMESPACE_KEY, IndexedLabels, Labels, Operator, Requirement, Selector

User = TypeVar("User")
What = Selector | CidrPeer | NamedPort | None


class Matched(Generic[User]):
    """A peer in use with the numbers that it matches. Compared by identity of the object.

    `what` is None for whoever there is: that is the one number ANY_IDENTITY. It is a port for those of
    `base` who declare it.
    """

    __slots__ = ("base", "declaring", "numbers", "users", "what")

    def __init__(self, what: What, numbers: BitMap, base: Matched[User] | None = None) -> None:
        self.what = what
        self.base = base
        self.numbers = numbers
        # Insertion order, so that equal histories give equal results.
        self.users: dict[User, None] = {}
        self.declaring: dict[NamedPort, Matched[User]] | None = None

    def selects(self, labels: IndexedLabels) -> bool:
        """Whether it is a selector that matches these labels."""
        return isinstance(self.what, Selector) and self.what.matches(labels)


Change = tuple[Matched[User], bool]


class SelectorCache(Generic[User]):
    """Peers by use. A peer is forgotten with its last user."""

    def __init__(self) -> None:
        self.everybody: Matched[User] = Matched(None, BitMap((ANY_IDENTITY,)))
        self.labels: dict[int, Labels] = {}
        self.ports: dict[int, frozenset[NamedPort]] = {}
        self._index = LabelIndex()
        self._peers: dict[Selector | CidrPeer, Matched[User]] = {}
        self._by_pair: dict[tuple[str, str], dict[Matched[User], None]] = {}
        self._by_key: dict[str, dict[Matched[User], None]] = {}
        self._unfiled: dict[Matched[User], None] = {}
        # By whether they are in use by address.
        self._prefixes = {False: PrefixIndex(), True: PrefixIndex()}
        self._blocks: dict[bool, _Blocks[User]] = {False: _Blocks(), True: _Blocks()}
        self._owners: dict[NamedPort, BitMap] = {}
        self._declaring: dict[NamedPort, dict[Matched[User], None]] = {}

    # -- users

    def use(self, peer: Selector | CidrPeer, user: User) -> Matched[User]:
        matched = self._peers.get(peer)
        if matched is None:
            if isinstance(peer, Selector):
                matched = Matched(peer, self._index.matching(peer))
            else:
                matched = Matched(peer, self._prefixes[peer.by_address].within(peer.cidr, peer.excepts))
            self._peers[peer] = matched
            for shelf in self._shelves(peer):
                shelf[matched] = None
        matched.users[user] = None
        return matched

    def use_port(self, base: Matched[User], port: NamedPort, user: User) -> Matched[User]:
        """Those of `base`, which has users of its own, who declare a port that somebody declares."""
        if base.declaring is None:
            base.declaring = {}
        matched = base.declaring.get(port)
        if matched is None:
            owners = self._owners[port]
            numbers = owners.copy() if base is self.everybody else owners & base.numbers
            matched = base.declaring[port] = Matched(port, numbers, base)
            self._declaring.setdefault(port, {})[matched] = None
        matched.users[user] = None
        return matched

    def release(self, matched: Matched[User], user: User) -> None:
        matched.users.pop(user, None)
        what = matched.what
        if matched.users or what is None:
            return
        if not isinstance(what, NamedPort):
            del self._peers[what]
            self._drop_from_shelves(matched, what)
            return
        if matched.base is not None and matched.base.declaring is not None:
            del matched.base.declaring[what]
        sharing = self._declaring[what]
        del sharing[matched]
        if not sharing:
            del self._declaring[what]

    # -- what would change; `follow` takes it over

    def label_changes(self, number: int, labels: Labels | None) -> list[Change[User]]:
        """What would change if the identity had these labels (None: were gone): (peer, matches then)."""
        candidates: dict[Matched[User], None] = {}
        for known in (self.labels.get(number), labels):
            if known is not None:
                candidates.update(dict.fromkeys(self._candidates(known)))
        indexed = labels.indexed() if labels is not None else None
        found = []
        for matched in candidates:
            matches = indexed is not None and matched.selects(indexed)
            if matches != (number in matched.numbers):
                found.append((matched, matches))
        return self._with_ports(number, found)

    def prefix_changes(self, number: int, cidr: str, *, by_address: bool, there: bool) -> list[Change[User]]:
        """What would change if the number were, or were not, that of a prefix in use in this way."""
        return [
            (matched, there)
            for matched in self._blocks[by_address].holding(block_of(cidr))
            if isinstance(matched.what, CidrPeer) and within(cidr, matched.what.cidr, matched.what.excepts)
        ]

    def port_changes(self, number: int, ports: frozenset[NamedPort]) -> list[Change[User]]:
        """What would change if the identity declared these ports."""
        before = self.ports.get(number, frozenset())
        found: list[Change[User]] = []
        for port in sorted(before ^ ports):
            for matched in self._declaring.get(port, ()):
                if self._is_of(matched, number):
                    found.append((matched, port in ports))
        return found

    def _with_ports(self, number: int, changes: list[Change[User]]) -> list[Change[User]]:
        """These, and what follows for those who declare ports."""
        ports = self.ports.get(number)
        if ports:
            for matched, matches in list(changes):
                for port, declaring in (matched.declaring or {}).items():
                    if port in ports:
                        changes.append((declaring, matches))
        return changes

    def _is_of(self, matched: Matched[User], number: int) -> bool:
        base = matched.base
        return base is self.everybody or (base is not None and number in base.numbers)

    @staticmethod
    def follow(number: int, changes: Iterable[Change[User]]) -> None:
        for matched, matches in changes:
            if matches:
                matched.numbers.add(number)
            else:
                matched.numbers.discard(number)

    # -- what is

    def relabel(self, identities: Mapping[int, Labels | None]) -> list[tuple[Matched[User], BitMap]]:
        """Take the labels of many identities over. What peers have to follow: their numbers from now on.

        Every selector is evaluated anew, which is worth it for more than a few identities.
        """
        for number, labels in identities.items():
            self.put_labels(number, labels)
        found = []
        for peer, matched in self._peers.items():
            if not isinstance(peer, Selector):
                continue
            numbers = self._index.matching(peer)
            if numbers != matched.numbers:
                found.append((matched, numbers))
                for port, declaring in (matched.declaring or {}).items():
                    found.append((declaring, self._owners[port] & numbers))
        return found

    def __len__(self) -> int:
        """How many peers are in use."""
        return len(self._peers)

    def put_labels(self, number: int, labels: Labels | None) -> None:
        """Take the labels over; peers have to follow."""
        before = self.labels.pop(number, None)
        if before is not None:
            self._index.remove(number, before)
        if labels is not None:
            self.labels[number] = labels
            self._index.add(number, labels)

    def put_prefix(self, number: int, cidr: str, *, by_address: bool, there: bool) -> None:
        """Take a prefix over, or leave it; peers have to follow."""
        index = self._prefixes[by_address]
        (index.add if there else index.remove)(number, cidr)

    def put_ports(self, number: int, ports: frozenset[NamedPort]) -> tuple[list[NamedPort], list[NamedPort]]:
        """Take the ports over. The ports that nobody declared before, and those that nobody does now."""
        before = self.ports.pop(number, frozenset())
        if ports:
            self.ports[number] = ports
        fresh, gone = [], []
        for port in sorted(ports - before):
            if port not in self._owners:
                self._owners[port] = BitMap()
                fresh.append(port)
            self._owners[port].add(number)
        for port in sorted(before - ports):
            self._owners[port].discard(number)
            if not self._owners[port]:
                del self._owners[port]
                gone.append(port)
        return fresh, gone

    def declared(self) -> Iterable[NamedPort]:
        """Every port that somebody declares."""
        return self._owners

    def matching(self, labels: Labels) -> Iterator[Matched[User]]:
        """The selectors in use that match these labels."""
        indexed = labels.indexed()
        for matched in dict.fromkeys(self._candidates(labels)):
            if matched.selects(indexed):
                yield matched

    # -- shelves

    def _candidates(self, labels: Labels) -> Iterator[Matched[User]]:
        yield from self._unfiled
        for _, key, value in labels.parts():
            yield from self._by_key.get(key, ())
            yield from self._by_pair.get((key, value), ())

    def _shelves(self, peer: Selector | CidrPeer) -> list[dict[Matched[User], None]]:
        if isinstance(peer, CidrPeer):
            return [self._blocks[peer.by_address].shelf(block_of(peer.cidr))]
        pivot = _pivot(peer)
        if pivot is None:
            return [self._unfiled]
        if pivot.operator is Operator.EXISTS:
            return [self._by_key.setdefault(pivot.key, {})]
        return [self._by_pair.setdefault((pivot.key, value), {}) for value in pivot.values]

    def _drop_from_shelves(self, matched: Matched[User], peer: Selector | CidrPeer) -> None:
        for shelf in self._shelves(peer):
            shelf.pop(matched, None)
        if isinstance(peer, CidrPeer):
            self._blocks[peer.by_address].forget(block_of(peer.cidr))
            return
        pivot = _pivot(peer)
        if pivot is not None:
            if not self._by_key.get(pivot.key, True):
                del self._by_key[pivot.key]
            for value in pivot.values:
                if not self._by_pair.get((pivot.key, value), True):
                    del self._by_pair[pivot.key, value]


class _Blocks(Generic[User]):
    """CIDR peers by their block."""

    def __init__(self) -> None:
        self._shelves: dict[Block, dict[Matched[User], None]] = {}
        # How many blocks of a (version, length) there are: only those are looked up.
        self._lengths: Counter[tuple[int, int]] = Counter()

    def shelf(self, block: Block) -> dict[Matched[User], None]:
        found = self._shelves.get(block)
        if found is None:
            found = self._shelves[block] = {}
            self._lengths[block.version, block.length] += 1
        return found

    def forget(self, block: Block) -> None:
        """Drop a shelf that is empty."""
        if self._shelves.get(block, True):
            return
        del self._shelves[block]
        self._lengths[block.version, block.length] -= 1
        if not self._lengths[block.version, block.length]:
            del self._lengths[block.version, block.length]

    def holding(self, block: Block) -> Iterator[Matched[User]]:
        """The peers whose block holds this one."""
        for version, length in list(self._lengths):
            if version == block.version and length <= block.length:
                yield from self._shelves.get(block.widened(length), ())


def _pivot(selector: Selector) -> Requirement | None:
    """The requirement to file a selector under: the one that the fewest identities are likely to meet."""
    positive = [r for r in selector.requirements if r.operator in (Operator.IN, Operator.EXISTS)]
    return min(
        positive,
        key=lambda r: (r.operator is Operator.EXISTS, r.key == NAMESPACE_KEY, len(r.values)),
        default=None,
    )
