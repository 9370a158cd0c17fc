# SPDX-License-Identifier: Apache-2.0
"""Prefixes in policies: their canonical text, how they contain each other, and the longest that holds an
address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

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
