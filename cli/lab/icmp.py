"""Questions of ICMP and ICMPv6 over raw sockets: a message of a type, and the answer to it (RFC 792, 4443).

The kernel at the other end answers echo requests, and over IPv4 timestamp requests. Messages of other types
have no answer: there it is seen whether they come in.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

PROTOCOL = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
# What a kernel answers by itself: type of the question -> type of the answer.
ANSWERS: dict[socket.AddressFamily, dict[int, int]] = {
    socket.AF_INET: {8: 0, 13: 14},
    socket.AF_INET6: {128: 129},
}
# Type, code, checksum, and what echo and timestamp messages have behind them: identifier, sequence number.
_HEADER = struct.Struct("!BBHHH")
# Three timestamps; an echo carries them as any other data.
_BODY = bytes(12)
# A bit for each type that is not passed on: linux/icmp.h, linux/icmpv6.h.
_ICMP_FILTER = 1
_ICMP6_FILTER = 1
_SOL_RAW = 255


def message(family: socket.AddressFamily, type: int, identifier: int) -> bytes:
    """A message without its IP header. The checksum of ICMPv6 is the kernel's affair (RFC 3542, 3.1)."""
    unsigned = _HEADER.pack(type, 0, 0, identifier, 1) + _BODY
    checksum = _checksum(unsigned) if family == socket.AF_INET else 0
    return _HEADER.pack(type, 0, checksum, identifier, 1) + _BODY


def parse(data: bytes) -> tuple[int, int] | None:
    """(type, identifier) of the message in `data`, without its IP header; None if it is cut short."""
    if len(data) < _HEADER.size:
        return None
    type, _, _, identifier, _ = _HEADER.unpack_from(data)
    return type, identifier


def only(receiver: socket.socket, types: Iterable[int]) -> None:
    """Have a raw socket receive messages of these types: what neighbours talk of stays away."""
    blocked = (1 << 256) - 1 & ~sum(1 << type for type in set(types))
    words = [blocked >> shift & 0xFFFFFFFF for shift in range(0, 256, 32)]
    if receiver.family == socket.AF_INET6:
        receiver.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *words))
    else:
        # Knows the first 32 types; those after them are received in any case.
        receiver.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", words[0]))


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF & ~(total + (total >> 16))
