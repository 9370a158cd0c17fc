"""CIDR arithmetic of pools: what a pool may look like, and which part of it the next node gets.

Everything here is a pure function of its arguments. Networks are `ipaddress` objects; IPv4 only for
now, in types that an IPv6 network fits into as well.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from services.ipam.problems import invalid

# A node's CIDR loses three addresses (network, router, broadcast), so /30 is the smallest one that can
# still hold a pod. See addresses.AddressRange.
LONGEST_NODE_MASK = 30


def parse_cidr(text: str, field: str) -> ipaddress.IPv4Network:
    """The network written as `text`, e.g. "10.244.0.0/16".

    Raises InvalidArgument naming `field` when it is not a network, has host bits set, or is IPv6.
    """
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise invalid(
            field,
            f"{text!r} is not a CIDR; expected one like 10.244.0.0/16",
            reason="CIDR_INVALID",
            value=text,
        ) from None
    if not isinstance(network, ipaddress.IPv4Network):
        raise invalid(
            field, f"{text!r} is IPv6; expected an IPv4 CIDR", reason="FAMILY_UNSUPPORTED", value=text
        )
    if "/" not in text or ipaddress.ip_interface(text).ip != network.network_address:
        raise invalid(
            field,
            f"{text!r} is an address within a network; expected the network itself, {network}",
            reason="CIDR_INVALID",
            value=text,
        )
    return network


def parse_address(text: str, field: str) -> ipaddress.IPv4Address:
    """The address written as `text`; raises InvalidArgument naming `field` otherwise."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise invalid(
            field,
            f"{text!r} is not an IP address; expected one like 10.244.1.7",
            reason="ADDRESS_INVALID",
            value=text,
        ) from None
    if not isinstance(address, ipaddress.IPv4Address):
        raise invalid(
            field, f"{text!r} is IPv6; expected an IPv4 address", reason="FAMILY_UNSUPPORTED", value=text
        )
    return address


def check_node_mask(cidr: ipaddress.IPv4Network, mask_size: int, field: str) -> None:
    """Raises InvalidArgument unless node CIDRs of `mask_size` bits can be carved out of `cidr`."""
    if not cidr.prefixlen <= mask_size <= LONGEST_NODE_MASK:
        raise invalid(
            field,
            f"{mask_size} does not fit pool CIDR {cidr}; expected {cidr.prefixlen} to {LONGEST_NODE_MASK}",
            reason="MASK_SIZE_INVALID",
            value=str(mask_size),
            cidr=str(cidr),
        )


def first_overlap(
    wanted: Sequence[ipaddress.IPv4Network], held: Iterable[ipaddress.IPv4Network]
) -> tuple[ipaddress.IPv4Network, ipaddress.IPv4Network] | None:
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


def carve(
    cidrs: Sequence[ipaddress.IPv4Network], mask_size: int, taken: Iterable[ipaddress.IPv4Network]
) -> ipaddress.IPv4Network | None:
    """The lowest network of `mask_size` bits in `cidrs`, tried in their order, that meets none of `taken`.

    None when all are used up. Costs a sort of `taken`, not a walk over the pool. `taken` may hold networks
    of other sizes (from before a pool's mask size was changed).
    """
    spans = sorted((int(t.network_address), int(t.broadcast_address)) for t in taken)
    starts = [start for start, _ in spans]
    step = 1 << (32 - mask_size)
    for cidr in cidrs:
        candidate, end = int(cidr.network_address), int(cidr.broadcast_address)
        # The span just before the candidate may reach into it.
        index = max(bisect_left(starts, candidate) - 1, 0)
        while candidate + step - 1 <= end:
            while index < len(spans) and spans[index][1] < candidate:
                index += 1
            if index == len(spans) or spans[index][0] > candidate + step - 1:
                return ipaddress.IPv4Network((candidate, mask_size))
            candidate += step * ((spans[index][1] - candidate) // step + 1)
    return None


def capacity_of(cidrs: Iterable[ipaddress.IPv4Network], mask_size: int) -> int:
    """How many node CIDRs of `mask_size` bits `cidrs` hold in all."""
    return sum(1 << (mask_size - cidr.prefixlen) for cidr in cidrs)
