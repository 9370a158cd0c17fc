"""CIDR arithmetic of pools: what a pool may look like, and which part of it the next node gets.

Everything here is a pure function of its arguments. Networks are `ipaddress` objects of either family.
"""

from __future__ import annotations

import ipaddress
import socket
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from services.ipam.family import Address, Family, Network, family_of
from services.ipam.problems import invalid

# What a node's CIDR loses: network, router and broadcast address of IPv4, network (the subnet-router anycast
# address, RFC 4291 2.6.1) and router of IPv6. These are the smallest ones that can still hold a pod. See
# addresses.AddressRange.
LONGEST_NODE_MASK: Final[dict[Family, int]] = {4: 30, 6: 126}
# How much longer than its pool's CIDR a node's may be, which IPv4 cannot reach: a pool of more than 2^64 node
# CIDRs is a mistyped one.
MOST_BITS_APART: Final = 64


def parse_cidr(text: str, field: str) -> Network:
    """The network written as `text`, e.g. "10.244.0.0/16" or "fd00:10:244::/48".

    Raises InvalidArgument naming `field` when it is not a network or has host bits set.
    """
    try:
        network = ipaddress.ip_network(_without_zone(text), strict=False)
        address = ipaddress.ip_interface(text).ip
    except ValueError:
        raise invalid(
            field,
            f"{text!r} is not a CIDR; expected one like 10.244.0.0/16 or fd00:10:244::/48",
            reason="CIDR_INVALID",
            value=text,
        ) from None
    if "/" not in text or address != network.network_address:
        raise invalid(
            field,
            f"{text!r} is an address within a network; expected the network itself, {network}",
            reason="CIDR_INVALID",
            value=text,
        )
    return network


def parse_ipv4(text: str, field: str) -> ipaddress.IPv4Address:
    """The IPv4 address written as `text`; raises InvalidArgument naming `field` otherwise."""
    address = parse_address(text, field)
    if not isinstance(address, ipaddress.IPv4Address):
        raise invalid(
            field, f"{text!r} is IPv6; expected an IPv4 address", reason="FAMILY_UNSUPPORTED", value=text
        )
    return address


def parse_ipv6(text: str, field: str) -> ipaddress.IPv6Address:
    """The IPv6 address written as `text`; raises InvalidArgument naming `field` otherwise."""
    address = parse_address(text, field)
    if not isinstance(address, ipaddress.IPv6Address):
        raise invalid(
            field, f"{text!r} is IPv4; expected an IPv6 address", reason="FAMILY_UNSUPPORTED", value=text
        )
    return address


def parse_address(text: str, field: str) -> Address:
    """The address of either family written as `text`, without a zone; raises InvalidArgument otherwise."""
    try:
        return ipaddress.ip_address(_without_zone(text))
    except ValueError:
        raise invalid(
            field,
            f"{text!r} is not an IP address; expected one like 10.244.1.7 or fd00:10:244::7",
            reason="ADDRESS_INVALID",
            value=text,
        ) from None


def _without_zone(text: str) -> str:
    """`text`; raises ValueError when it names a zone ("fe80::1%eth0"), which one host only understands."""
    if "%" in text:
        raise ValueError(text)
    return text


def check_node_mask(cidr: Network, mask_size: int, field: str) -> None:
    """Raises InvalidArgument unless node CIDRs of `mask_size` bits can be carved out of `cidr`."""
    longest = min(LONGEST_NODE_MASK[family_of(cidr)], cidr.prefixlen + MOST_BITS_APART)
    if not cidr.prefixlen <= mask_size <= longest:
        raise invalid(
            field,
            f"{mask_size} does not fit pool CIDR {cidr}; expected {cidr.prefixlen} to {longest}",
            reason="MASK_SIZE_INVALID",
            value=str(mask_size),
            cidr=str(cidr),
        )


def first_overlap(wanted: Sequence[Network], held: Iterable[Network]) -> tuple[Network, Network] | None:
    """The first pair (wanted, held) that shares an address, or None.

    The members of `wanted` are compared with each other as well; such a pair is (later, earlier).
    """
    for index, cidr in enumerate(wanted):
        for other in wanted[:index]:
            if cidr.overlaps(other):
                return cidr, other
    for other in held:
        for cidr in wanted:
            if cidr.overlaps(other):
                return cidr, other
    return None


def carve(cidrs: Sequence[Network], mask_size: int, taken: Iterable[Network]) -> Network | None:
    """The lowest network of `mask_size` bits in `cidrs`, tried in their order, that meets none of `taken`.

    `cidrs` and `taken` are all of one family. None when all are used up. `taken` may hold networks of other
    sizes.
    """
    spans = ((int(one.network_address), int(one.broadcast_address)) for one in taken)
    return next(carve_beside(cidrs, mask_size, spans), None)


def carve_beside(
    cidrs: Sequence[Network], mask_size: int, taken: Iterable[tuple[int, int]]
) -> Iterator[Network]:
    """All such networks, lowest first in each of `cidrs`, beside `taken`: inclusive spans of numbers.

    The spans may be in any order and overlap. Costs a sort of them and a step for each network, not a walk
    over the pool.
    """
    spans = merged(taken)
    starts = [start for start, _ in spans]
    for cidr in cidrs:
        step = 1 << (cidr.max_prefixlen - mask_size)
        candidate, end = int(cidr.network_address), int(cidr.broadcast_address)
        # The span just before the candidate may reach into it.
        index = max(bisect_left(starts, candidate) - 1, 0)
        while candidate + step - 1 <= end:
            while index < len(spans) and spans[index][1] < candidate:
                index += 1
            if index == len(spans) or spans[index][0] > candidate + step - 1:
                yield type(cidr)((candidate, mask_size))
                candidate += step
            else:
                candidate += step * ((spans[index][1] - candidate) // step + 1)


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers as disjoint spans (first, last) in ascending order; adjacent ones become one."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if result and first <= result[-1][1] + 1:
            if last > result[-1][1]:
                result[-1] = (result[-1][0], last)
        else:
            result.append((first, last))
    return result


def span_of(text: str) -> tuple[int, int]:
    """First and last address, as numbers, of a CIDR that the store has; much cheaper than `ip_network`."""
    address, _, length = text.partition("/")
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    first = int.from_bytes(packed, "big")
    return first, first + (1 << (len(packed) * 8 - int(length))) - 1


def capacity_of(cidrs: Iterable[Network], mask_size: int) -> int:
    """How many node CIDRs of `mask_size` bits `cidrs`, all of one family, hold in all."""
    return sum(1 << (mask_size - cidr.prefixlen) for cidr in cidrs)
