# SPDX-License-Identifier: Apache-2.0
"""Whom the rules of two sets of policies are about: identities, and the parts into which prefixes cut the
address space.

Everybody outside the cluster whose address has the same longest prefix is alike for both sets of policies, so
that a part of the address space stands for all of them. It is numbered from 0, and is a peer by the negative
number `-1 - part`, beside the identities, whose numbers are positive.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network

from services.policy.prefixes import Network, PrefixUse, network_of, peer_prefixes, prefix_labels
from services.policy.resolve import BoundPolicy
from services.policy.rules import CidrPeer
from services.policy.selector import ANY_SOURCE, RESERVED, Labels, Operator, Selector

HOST = 1
WORLD, WORLD_IPV4, WORLD_IPV6 = 2, 9, 10
ROOTS = {"0.0.0.0/0": WORLD_IPV4, "::/0": WORLD_IPV6}
FIRST_PREFIX, LAST_PREFIX = 0xFF0000, 0xFFFFFF
WORLD_LABELS = Labels([f"{RESERVED}:world"])
_NOBODY: set[int] = set()
_WORLD_KEYS = frozenset(("world", "world-ipv4", "world-ipv6"))


def is_outside(number: int) -> bool:
    """Whether an identity is somebody's outside the cluster, known by the address."""
    return number in (WORLD, WORLD_IPV4, WORLD_IPV6) or FIRST_PREFIX <= number <= LAST_PREFIX


def prefix_uses(policies: Iterable[BoundPolicy]) -> dict[str, PrefixUse]:
    """The prefixes that policies refer to, by text."""
    found: dict[str, PrefixUse] = {}
    seen: set[CidrPeer] = set()
    for bound in policies:
        for rule in bound.policy.rules():
            for peer in rule.peers:
                if not isinstance(peer, CidrPeer) or peer in seen:
                    continue
                seen.add(peer)
                for cidr in peer_prefixes(peer.cidr, peer.excepts):
                    held = found.get(cidr, PrefixUse(cidr))
                    found[cidr] = PrefixUse(
                        cidr, held.by_identity or not peer.by_address, held.by_address or peer.by_address
                    )
    return found


class Universe:
    """The identities in the cluster, and which of them a selector matches. For one set of identities."""

    def __init__(self, identities: Mapping[int, Labels]) -> None:
        self.identities = {number: labels for number, labels in identities.items() if not is_outside(number)}
        self._matching: dict[Selector, frozenset[int]] = {}
        self._names: dict[int, str] = {}
        # By (source, key, value) and by (source, key), with every label under any source too.
        self._having: dict[tuple[str, ...], set[int]] = {}
        for number, labels in self.identities.items():
            for label in labels.strings:
                head, _, value = label.partition("=")
                source, _, key = head.partition(":")
                for owner in (source, ANY_SOURCE):
                    self._having.setdefault((owner, key, value), set()).add(number)
                    self._having.setdefault((owner, key), set()).add(number)

    def matching(self, selector: Selector) -> frozenset[int]:
        found = self._matching.get(selector)
        if found is None:
            found = self._matching[selector] = self._match(selector)
        return found

    def name(self, number: int) -> str:
        """The labels of an identity, for people."""
        name = self._names.get(number)
        if name is None:
            name = self._names[number] = ",".join(sorted(self.identities[number].strings))
        return name

    def _match(self, selector: Selector) -> frozenset[int]:
        wanted: list[set[int]] = []
        unwanted: list[set[int]] = []
        for each in selector.requirements:
            if each.operator in (Operator.IN, Operator.NOT_IN):
                values = [self._having.get((each.source, each.key, value), _NOBODY) for value in each.values]
                held = values[0] if len(values) == 1 else set().union(*values)
            else:
                held = self._having.get((each.source, each.key), _NOBODY)
            (wanted if each.operator in (Operator.IN, Operator.EXISTS) else unwanted).append(held)
        wanted.sort(key=len)
        found = set(wanted[0]).intersection(*wanted[1:]) if wanted else set(self.identities)
        return frozenset(found.difference(*unwanted))


class Regions:
    """The parts of the address space that the prefixes of two sets of policies tell apart, the whole of both
    families included. A part is what no longer prefix holds; one of which nothing is left is `empty`.
    """

    def __init__(self, uses: tuple[Mapping[str, PrefixUse], Mapping[str, PrefixUse]]) -> None:
        self._uses = uses
        texts = {*ROOTS, *uses[0], *uses[1]}
        found = sorted(((_rank(network_of(text)), text) for text in texts), key=lambda item: item[0])
        self._ranks = [rank for rank, _ in found]
        self.names = [text for _, text in found]
        self.parents: list[int] = []
        self._last = [_last(network_of(text)) for text in self.names]
        left = [_size(network_of(text)) for text in self.names]
        open_: list[int] = []
        for index, (family, first, _) in enumerate(self._ranks):
            while open_ and (self._ranks[open_[-1]][0] != family or self._last[open_[-1]] < first):
                open_.pop()
            self.parents.append(open_[-1] if open_ else -1)
            if open_:
                left[open_[-1]] -= _size(network_of(self.names[index]))
            open_.append(index)
        self.empty = frozenset(index for index, size in enumerate(left) if not size)
        self.cidrs = frozenset(self.names)
        # For each set of policies: the part whose prefix gives the identity, -1 for none.
        self._owners = tuple(self._owned(which) for which in (0, 1))
        self._labels = [prefix_labels(text) for text in self.names]
        self._matching: dict[tuple[Selector, int], frozenset[int]] = {}
        self._within: dict[CidrPeer, frozenset[int]] = {}
        # Parts whose people have another identity under the one set of policies than under the other.
        self.moved = frozenset(
            index
            for index in range(len(self.names))
            if index not in self.empty and self._owners[0][index] != self._owners[1][index]
        )

    def __iter__(self) -> Iterable[int]:
        return iter(range(len(self.names)))

    def __len__(self) -> int:
        return len(self.names)

    def within(self, peer: CidrPeer) -> frozenset[int]:
        """The parts that a peer means."""
        found = self._within.get(peer)
        if found is None:
            held = set(self._range(peer.cidr))
            for cidr in peer.excepts:
                held.difference_update(self._range(cidr))
            found = self._within[peer] = frozenset(held - self.empty)
        return found

    def matching(self, selector: Selector, which: int) -> frozenset[int]:
        """The parts whose people a selector matches under the first (0) or second (1) set of policies."""
        found = self._matching.get((selector, which))
        if found is None:
            found = self._matching[selector, which] = frozenset(self._match(selector, which))
        return found

    def sensitive(self, selector: Selector) -> bool:
        """Whether a selector tells the identities apart that parts have under the two sets."""
        return self.matching(selector, 0) != self.matching(selector, 1)

    def labels(self, index: int, which: int) -> Labels:
        """The labels of whoever is outside the cluster and has such an address."""
        owner = self._owners[which][index]
        return self._labels[owner] if owner >= 0 else WORLD_LABELS

    def in_use_by_address(self, index: int) -> bool:
        name = self.names[index]
        return any(name in uses and uses[name].by_address for uses in self._uses)

    def _match(self, selector: Selector, which: int) -> Iterable[int]:
        for requirement in selector.requirements:
            positive = requirement.operator in (Operator.IN, Operator.EXISTS)
            if positive and requirement.key not in _WORLD_KEYS and requirement.key not in self.cidrs:
                return
        verdicts: dict[int, bool] = {}
        for index, owner in enumerate(self._owners[which]):
            if owner not in verdicts:
                verdicts[owner] = selector.matches(self.labels(index, which))
            if verdicts[owner] and index not in self.empty:
                yield index

    def _range(self, cidr: str) -> range:
        network = network_of(cidr)
        family, first, length = _rank(network)
        return range(
            bisect_left(self._ranks, (family, first, length)),
            bisect_left(self._ranks, (family, _last(network) + 1, 0)),
        )

    def _owned(self, which: int) -> list[int]:
        owners: list[int] = []
        for index, name in enumerate(self.names):
            use = self._uses[which].get(name)
            if use is not None and use.by_identity:
                owners.append(index)
            else:
                parent = self.parents[index]
                owners.append(owners[parent] if parent >= 0 else -1)
        return owners


def _rank(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _last(network: Network) -> int:
    return int(network.broadcast_address)


def _size(network: Network) -> int:
    bits = 32 if isinstance(network, IPv4Network) else 128
    return 1 << (bits - network.prefixlen)
