"""Which checksums of a frame are right, found by adding everything up and not by what has changed."""

from __future__ import annotations

from tests.fuzz.model.frames import checksum
from tests.fuzz.model.parsing import (
    ETH_IPV4,
    ETH_IPV6,
    ETHERNET,
    ICMP,
    ROUTING,
    SCTP,
    UDP,
    Fragments,
    Packet,
    ether_type,
    fixed_header,
    packet,
)
from tests.fuzz.model.reasons import Drop

_UDP_CHECKSUM = 6


def right(frame: bytes) -> set[str]:
    """Names of those that are there and right; none for what does not parse."""
    if ether_type(frame) not in (ETH_IPV4, ETH_IPV6):
        return set()
    try:
        found = packet(frame, fixed_header(frame), Fragments())
    except Drop:
        return set()
    names = {"IP header"} if found.family == 4 and _is_right(frame[ETHERNET : _header_end(frame)]) else set()
    # The checksum of a fragment is that of the datagram; with a routing header it is for another destination.
    if not found.is_whole or (found.family == 6 and frame[20] == ROUTING):
        return names
    if found.is_error:
        names |= (
            {"quoted IP header"}
            if found.family == 4 and _is_right(frame[found.quote : found.quoted])
            else set()
        )
    if _is_layer4_right(frame, found):
        names.add("layer 4")
    return names


def _header_end(frame: bytes) -> int:
    return ETHERNET + (frame[ETHERNET] & 15) * 4


def _is_right(data: bytes) -> bool:
    return checksum(data) == 0


def _is_layer4_right(frame: bytes, found: Packet) -> bool:
    icmp = ICMP if found.family == 4 else 58
    protocol = icmp if found.is_error else found.flow.protocol
    data = frame[found.start : found.end]
    has_none = protocol == UDP and data[_UDP_CHECKSUM : _UDP_CHECKSUM + 2] == b"\0\0"
    if protocol == SCTP or has_none:
        return False
    pseudo = b""
    if protocol != ICMP:
        pseudo = found.source + found.destination + len(data).to_bytes(4, "big") + protocol.to_bytes(4, "big")
    return _is_right(pseudo + data)
