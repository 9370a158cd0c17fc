"""TCP frames of either family, for programs that look at headers only."""

from __future__ import annotations

import socket
import struct

SYN, RST, ACK = 0x02, 0x04, 0x10
ETHERNET_BYTES = 14
# Where the last four bytes of an address stand in a frame, and the two ports: by family.
SOURCE_OFFSET = {4: 26, 6: 34}
DESTINATION_OFFSET = {4: 30, 6: 50}
PORTS_OFFSET = {4: 34, 6: 54}
_PAYLOAD = bytes(64)
_HOP_LIMIT = 64
_TCP = 6


def family(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


def packed(address: str) -> bytes:
    """An address of either family as bytes."""
    return socket.inet_pton(socket.AF_INET6 if family(address) == 6 else socket.AF_INET, address)


def tcp_frame(
    source: str,
    destination: str,
    source_port: int,
    destination_port: int,
    flags: int = ACK,
    payload: bytes = _PAYLOAD,
) -> bytes:
    """An Ethernet frame with a TCP segment between two addresses of one family, checksums right."""
    ends = packed(source) + packed(destination)
    segment = struct.pack("!HHIIBBHHH", source_port, destination_port, 1, 1, 5 << 4, flags, 65535, 0, 0)
    segment += payload
    check = _checksum(ends + struct.pack("!II", len(segment), _TCP) + segment)
    segment = segment[:16] + struct.pack("!H", check) + segment[18:]
    if family(source) == 6:
        kind, header = 0x86DD, struct.pack("!IHBB", 6 << 28, len(segment), _TCP, _HOP_LIMIT) + ends
    else:
        kind = 0x0800
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, _HOP_LIMIT, _TCP, 0) + ends
        header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    macs = bytes.fromhex("02000000000b02000000000a")
    return macs + struct.pack("!H", kind) + header + segment


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
