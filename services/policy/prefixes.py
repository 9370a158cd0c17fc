# SPDX-License-Identifier: Apache-2.0
"""Prefixes in policies: their canonical text, how they contain each other, and the longest that holds an
address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from services.policy.selector import CIDR, RESERVED, Labels

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class PrefixUse:
    """A prefix that policies refer to, and how: see `rules.CidrPeer.by_address`. Both may hold."""

    cidr: str
    by_identity: bool = False
    by_address: bool = False


def prefix_problem(text: str) -> str | None:
    """None for a prefix in canonical text; otherwise what was expected, to complete "got X, expected …"."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return "a CIDR, for example 10.0.0.0/8 or 2001:db8::/32"
    if isinstance(network, IPv6Network) and network.network_address.scope_id is not None:
        return "a CIDR without a zone"
    if str(network) != text:
        return f"a CIDR in canonical form: {network}"
    return None


@lru_cache(4096)
def network_of(cidr: str) -> Network:
    """A prefix that is known to be legal."""
    return ip_network(cidr)


def contains(outer: str, inner: str) -> bool:
    """Whether every address of `inner` is in `outer`."""
    big, small = network_of(outer), network_of(inner)
    if isinstance(big, IPv4Network):
        return isinstance(small, IPv4Network) and small.subnet_of(big)
    return isinstance(small, IPv6Network) and small.subnet_of(big)


def prefix_labels(cidr: str) -> Labels:
    """The labels of a prefix's identity: its own, and that it is outside the cluster."""
    family = "world-ipv4" if isinstance(network_of(cidr), IPv4Network) else "world-ipv6"
    return Labels([f"{CIDR}:{cidr}", f"{RESERVED}:world", f"{RESERVED}:{family}"])


def longest_prefix(prefixes: Mapping[int, PrefixUse], address: str, *, by_address: bool) -> int | None:
    """The number of the longest of the prefixes, of those used in this way, that holds the address."""
    there: IPv4Address | IPv6Address = ip_address(address)
    found: tuple[int, int] | None = None
    for number, use in prefixes.items():
        if not (use.by_address if by_address else use.by_identity):
            continue
        network = network_of(use.cidr)
        if there in network and (found is None or network.prefixlen > found[0]):
            found = network.prefixlen, number
    return found[1] if found is not None else None


def peer_prefixes(cidr: str, excepts: Iterable[str]) -> tuple[str, ...]:
    """The prefixes that a peer needs to have numbers: its own, and those that it leaves out."""
    return (cidr, *excepts)


def within(prefix: str, cidr: str, excepts: Iterable[str]) -> bool:
    """Whether a prefix is one of those that `cidr` less `excepts` stands for."""
    return contains(cidr, prefix) and not any(contains(each, prefix) for each in excepts)


class Block(NamedTuple):
    """A prefix in numbers: sorted, those within a block follow it directly."""

    version: int
    first: int
    length: int

    @property
    def following(self) -> Block:
        """Sorts before every block that begins after this one's end, and after all within this one."""
        return Block(self.version, self.first + (1 << (self._bits - self.length)), 0)

    def widened(self, length: int) -> Block:
        """The block of this shorter length that this one is within."""
        dropped = self._bits - length
        return Block(self.version, self.first >> dropped << dropped, length)

    @property
    def _bits(self) -> int:
        return 32 if self.version == 4 else 128


def block_of(cidr: str) -> Block:
    network = network_of(cidr)
    return Block(network.version, int(network.network_address), network.prefixlen)
