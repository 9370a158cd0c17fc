"""As much SCTP as one question needs: an INIT and its INIT ACK (RFC 9260), over raw sockets.

Many kernels come without SCTP sockets. Policy looks at the ports of the packets, not at who sends them, so a
raw INIT asks the same question, and the answer shows that the way back is open too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PROTOCOL = 132
_INIT = 1
_INIT_ACK = 2
_HEADER = struct.Struct("!HHII")
_CHUNK = struct.Struct("!BBH")
# Initiate tag, receiver window, outbound and inbound streams, initial sequence number.
_INIT_BODY = struct.Struct("!IIHHI")
_STATE_COOKIE = struct.pack("!HHI", 7, 8, 0)


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _table()


def crc32c(data: bytes) -> int:
    """The checksum of SCTP (Castagnoli)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Packet:
    """What is read of a received packet: its ports, its first chunk's type, and that chunk's tag."""

    source: str
    source_port: int
    destination_port: int
    chunk: int
    tag: int

    @property
    def is_init(self) -> bool:
        return self.chunk == _INIT


def init(source_port: int, destination_port: int, tag: int) -> bytes:
    """An INIT without its IP header."""
    return _packet(source_port, destination_port, 0, _INIT, _INIT_BODY.pack(tag, 65536, 1, 1, tag))


def init_ack(request: Packet, tag: int) -> bytes:
    """The answer to an INIT."""
    body = _INIT_BODY.pack(tag, 65536, 1, 1, tag) + _STATE_COOKIE
    return _packet(request.destination_port, request.source_port, request.tag, _INIT_ACK, body)


def _packet(source_port: int, destination_port: int, tag: int, chunk: int, body: bytes) -> bytes:
    tail = _CHUNK.pack(chunk, 0, _CHUNK.size + len(body)) + body
    checksum = crc32c(_HEADER.pack(source_port, destination_port, tag, 0) + tail)
    # The checksum travels with its bytes reversed (RFC 9260, appendix A).
    swapped = int.from_bytes(checksum.to_bytes(4, "little"), "big")
    return _HEADER.pack(source_port, destination_port, tag, swapped) + tail


def parse(data: bytes, source: str) -> Packet | None:
    """The packet in `data`, without its IP header, that came from the address `source`; None if it is not
    whole.
    """
    body = _HEADER.size + _CHUNK.size
    if len(data) < body + 4:
        return None
    source_port, destination_port, _, _ = _HEADER.unpack_from(data)
    (tag,) = struct.unpack_from("!I", data, body)
    return Packet(source, source_port, destination_port, data[_HEADER.size], tag)


def without_ipv4_header(data: bytes) -> bytes:
    """What a raw IPv4 socket receives, without the header; empty when that is not whole."""
    return data[(data[0] & 15) * 4 :] if len(data) >= 20 else b""
