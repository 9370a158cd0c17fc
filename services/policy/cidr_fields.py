# SPDX-License-Identifier: Apache-2.0
"""Prefixes in manifests: canonical text, and exceptions that lie within."""

from __future__ import annotations

from ipaddress import IPv6Network, ip_address, ip_network

from services.policy.fields import Node
from services.policy.prefixes import contains, prefix_problem
from services.policy.rules import CidrPeer

_EXAMPLE = "a CIDR, for example 10.0.0.0/8 or 2001:db8::/32"


def read_prefix(node: Node, *, bare_address: bool = False) -> str | None:
    """A prefix in canonical text; `bare_address` also takes an address, which is the prefix of it alone.

    Kubernetes and Cilium take `10.1.2.3/8` for 10.0.0.0/8. Whoever writes that may have meant 10.1.2.3/32,
    so it is refused here with what it would mean.
    """
    text = node.text(_EXAMPLE)
    if text is None:
        return None
    if bare_address and "/" not in text:
        text = _whole(text)
    if problem := prefix_problem(text):
        node.wrong(problem)
        return None
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        node.wrong("an IPv4 CIDR in IPv4's own notation: no packet has an IPv4-mapped IPv6 address")
        return None
    return text


def _whole(text: str) -> str:
    """An address as a prefix; the text as it is when it is no address, or not in canonical form."""
    try:
        address = ip_address(text)
    except ValueError:
        return text
    return f"{text}/{address.max_prefixlen}"


def read_excepts(parent: Node, cidr: str | None, *, strict: bool = True) -> tuple[str, ...] | None:
    """The field `except`, each within `cidr` (and not all of it, if `strict`) where that is known; None
    after violations.
    """
    node = parent.child("except")
    if node is None:
        return ()
    found: list[str] = []
    legal = isinstance(node.value, list)
    for item in node.items():
        prefix = read_prefix(item)
        if prefix is not None and cidr is not None:
            if not contains(cidr, prefix):
                item.wrong(f"a CIDR within {cidr}")
                prefix = None
            elif strict and prefix == cidr:
                item.wrong(f"a CIDR within {cidr} that is not all of it")
                prefix = None
        if prefix is None:
            legal = False
        else:
            found.append(prefix)
    return tuple(dict.fromkeys(found)) if legal else None


def read_cidr_peer(node: Node, *, by_address: bool, strict: bool = True) -> CidrPeer | None:
    """`cidr` and `except` of an object."""
    cidr_node = node.required("cidr", _EXAMPLE)
    cidr = read_prefix(cidr_node) if cidr_node is not None else None
    excepts = read_excepts(node, cidr, strict=strict)
    if cidr is None or excepts is None:
        return None
    return CidrPeer(cidr, excepts, by_address)
