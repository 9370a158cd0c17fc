"""Frames as they leave: one hop further, for a pod's device, or made as an answer."""

from __future__ import annotations

import struct

from tests.fuzz.model.parsing import ETH_ARP, ETH_IPV6, Header
from tests.fuzz.model.world import Endpoint

NEIGHBOUR_ADVERTISEMENT = 136
# Router, solicited, override (RFC 4861, 4.4).
ADVERTISEMENT_FLAGS = 0xE0000000


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def hop(frame: bytes, family: int) -> bytes:
    """The frame with one hop less left."""
    if family == 6:
        return frame[:21] + bytes((frame[21] - 1,)) + frame[22:]
    # RFC 1624: what is wrong with the checksum stays wrong with it.
    old = ~int.from_bytes(frame[24:26], "big") & 0xFFFF
    total = old + (~(frame[22] << 8) & 0xFFFF) + ((frame[22] - 1) << 8)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return frame[:22] + bytes((frame[22] - 1, frame[23])) + (~total & 0xFFFF).to_bytes(2, "big") + frame[26:]


def addressed(frame: bytes, destination: bytes, source: bytes) -> bytes:
    """The frame with these MACs."""
    return destination + source + frame[12:]


def arp_reply(request: bytes, mac: bytes) -> bytes:
    """The answer to an ARP request: what it asks for is at ``mac``."""
    sender_mac, sender, target = request[22:28], request[28:32], request[38:42]
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + mac + target + sender_mac + sender
    return request[6:12] + mac + ETH_ARP.to_bytes(2, "big") + body + request[42:]


def advertisement(solicitation: bytes, header: Header, endpoint: Endpoint) -> bytes:
    """The answer to the endpoint's neighbour solicitation: what it asks for is at its device."""
    target = solicitation[62:78]
    body = struct.pack("!BBHI", NEIGHBOUR_ADVERTISEMENT, 0, 0, ADVERTISEMENT_FLAGS) + target
    body += b"\2\1" + endpoint.host_mac
    pseudo = target + header.source + struct.pack("!IHBB", len(body), 0, 0, 58)
    body = body[:2] + checksum(pseudo + body).to_bytes(2, "big") + body[4:]
    ip = solicitation[14:18] + struct.pack("!HBB", len(body), 58, 255) + target + header.source
    return endpoint.pod_mac + endpoint.host_mac + ETH_IPV6.to_bytes(2, "big") + ip + body
