"""Frames of either family, made and taken apart here: nothing is shared with what rewrites them."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, replace

ETHERNET = bytes.fromhex("020000000001020000000002")
TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
SYN, ACK = 0x02, 0x10
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def crc32c(data: bytes) -> int:
    """SCTP's checksum (RFC 9260, appendix A)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Family:
    """One family with the addresses of the tests in it. ``pods`` are what nat_test.c takes for local pods."""

    v6: bool
    node: str
    pod: str
    other_pod: str
    peer: str
    other_peer: str
    router: str
    excluded: str

    @property
    def echo(self) -> int:
        return ICMP6 if self.v6 else ICMP

    @property
    def request(self) -> int:
        return 128 if self.v6 else 8

    @property
    def answer(self) -> int:
        return 129 if self.v6 else 0

    @property
    def unreachable(self) -> tuple[int, int]:
        """Type and code of "port unreachable"."""
        return (1, 4) if self.v6 else (3, 3)

    @property
    def errors(self) -> tuple[int, ...]:
        """The types of errors: unreachable, (too big,) time exceeded, parameter problem."""
        return (1, 2, 3, 4) if self.v6 else (3, 11, 12)

    def pack(self, address: str) -> bytes:
        return socket.inet_pton(socket.AF_INET6 if self.v6 else socket.AF_INET, address)

    def text(self, data: bytes) -> str:
        return socket.inet_ntop(socket.AF_INET6 if self.v6 else socket.AF_INET, data)


V4 = Family(
    False, "192.0.2.1", "10.66.0.10", "10.66.3.200", "198.51.100.7", "198.51.100.8", "203.0.113.1", "10.1.2.3"
)
V6 = Family(
    True, "2001:db8:1::1", "fd66::a", "fd66::3:c8", "2001:db8:2::7", "2001:db8:2::8", "2001:db8:3::1",
    "fd01::3",
)  # fmt: skip


@dataclass(frozen=True)
class Packet:
    """An IP packet. ``payload`` is all behind the IP header and ``extra``.

    ``extra`` are IPv4 options, or IPv6 extension headers of which the first is of type ``extra_next``.
    ``fragment`` is (offset in bytes, more).
    """

    family: Family
    source: str
    destination: str
    protocol: int
    payload: bytes
    ttl: int = 64
    ident: int = 7
    fragment: tuple[int, bool] | None = None
    extra: bytes = b""
    extra_next: int = 0

    def ip(self) -> bytes:
        """The packet's bytes."""
        source, destination = self.family.pack(self.source), self.family.pack(self.destination)
        if self.family.v6:
            first, extra = self.protocol, self.extra
            if self.fragment:
                offset, more = self.fragment
                extra += struct.pack("!BBHI", self.protocol, 0, offset | more, self.ident)
                first = 44
            if self.extra:
                first = self.extra_next
            length = len(extra) + len(self.payload)
            head = struct.pack("!IHBB", 6 << 28, length, first, self.ttl)
            return head + source + destination + extra + self.payload
        offset, more = self.fragment or (0, False)
        total = 20 + len(self.extra) + len(self.payload)
        head = struct.pack(
            "!BBHHHBBH",
            0x45 + len(self.extra) // 4, 0, total, self.ident, offset >> 3 | more << 13,
            self.ttl, self.protocol, 0,
        ) + source + destination + self.extra  # fmt: skip
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + self.payload

    def frame(self) -> bytes:
        """In Ethernet."""
        return ETHERNET + (b"\x86\xdd" if self.family.v6 else b"\x08\x00") + self.ip()

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port; of an echo the identifier, twice."""
        if self.protocol in (ICMP, ICMP6):
            (ident,) = struct.unpack_from("!H", self.payload, 4)
            return ident, ident
        sport, dport = struct.unpack_from("!HH", self.payload)
        return sport, dport

    def transport_sum(self) -> int:
        """0 if the transport checksum is right for the whole payload."""
        if self.protocol == SCTP:
            found = struct.unpack_from("<I", self.payload, 8)[0]
            return int(found != crc32c(self.payload[:8] + bytes(4) + self.payload[12:]))
        return checksum(self._pseudo() + self.payload)

    def _pseudo(self) -> bytes:
        if self.protocol == ICMP:
            return b""
        addresses = self.family.pack(self.source) + self.family.pack(self.destination)
        return addresses + struct.pack("!II", len(self.payload), self.protocol)

    def with_checksum(self) -> Packet:
        """The same with the right transport checksum."""
        payload = bytearray(self.payload)
        if self.protocol == SCTP:
            payload[8:12] = bytes(4)
            payload[8:12] = struct.pack("<I", crc32c(bytes(payload)))
        else:
            at = CHECKSUM_AT[self.protocol]
            payload[at : at + 2] = bytes(2)
            value = checksum(self._pseudo() + bytes(payload))
            if self.protocol == UDP:
                value = value or 0xFFFF
            payload[at : at + 2] = struct.pack("!H", value)
        return replace(self, payload=bytes(payload))

    def without_checksum(self) -> Packet:
        """UDP only: the same with the checksum that says "none"."""
        return replace(self, payload=self.payload[:6] + bytes(2) + self.payload[8:])

    def answered(self, data: bytes = b"answer") -> Packet:
        """What the destination would answer."""
        sport, dport = self.ports
        back = build(self.family, self.destination, self.source, self.protocol, dport, sport, data)
        if self.protocol != self.family.echo:
            return back
        payload = bytes((self.family.answer,)) + back.payload[1:]
        return replace(back, payload=payload).with_checksum()


def build(
    family: Family,
    source: str,
    destination: str,
    protocol: int,
    sport: int,
    dport: int,
    data: bytes = b"data",
) -> Packet:
    """A packet with right checksums; an echo request has ``sport`` as its identifier."""
    if protocol == TCP:
        payload = struct.pack("!HHIIBBHHH", sport, dport, 1, 1, 5 << 4, SYN | ACK, 65535, 0, 0) + data
    elif protocol == UDP:
        payload = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    elif protocol == SCTP:
        data += bytes(-len(data) % 4)
        payload = struct.pack("!HHII", sport, dport, 77, 0) + struct.pack("!BBH", 0, 3, 4 + len(data)) + data
    else:
        payload = struct.pack("!BBHHH", family.request, 0, 0, sport, 1) + data
    return Packet(family, source, destination, protocol, payload).with_checksum()


def error(
    family: Family, source: str, destination: str, quoted: bytes, kind: int, code: int = 0, word: int = 0
) -> Packet:
    """An ICMP error that quotes ``quoted``, an IP packet or its head."""
    payload = struct.pack("!BBHI", kind, code, 0, word) + quoted
    return Packet(family, source, destination, family.echo, payload).with_checksum()


def head(packet: Packet, size: int = 8) -> bytes:
    """The IP header and so many bytes behind it: the least that an error quotes."""
    data = packet.ip()
    return data[: len(data) - len(packet.payload) + size]


def take_apart(frame: bytes) -> Packet:
    """A frame as a packet; asserts that its IP header is sound. A trailer of the frame is left out."""
    kind, data = frame[12:14], frame[14:]
    if kind == b"\x86\xdd":
        return _take_apart6(data)
    assert kind == b"\x08\x00"
    size = (data[0] & 0xF) * 4
    total, ident, fragment, ttl, protocol = struct.unpack_from("!HHHBB", data, 2)
    assert data[0] >> 4 == 4 and size >= 20 and total <= len(data)
    assert checksum(data[:size]) == 0, "IPv4 header checksum"
    pieces = ((fragment & 0x1FFF) * 8, bool(fragment & 0x2000))
    return Packet(
        V4, V4.text(data[12:16]), V4.text(data[16:20]), protocol, data[size:total],
        ttl, ident, pieces if any(pieces) else None, data[20:size],
    )  # fmt: skip


def _take_apart6(data: bytes) -> Packet:
    length, following, ttl = struct.unpack_from("!HBB", data, 4)
    assert data[0] >> 4 == 6 and 40 + length <= len(data)
    packet = Packet(V6, V6.text(data[8:24]), V6.text(data[24:40]), following, data[40 : 40 + length], ttl)
    while packet.protocol in (0, 60, 44):
        rest = packet.payload
        if packet.protocol == 44:
            following, _, offset, ident = struct.unpack_from("!BBHI", rest)
            pieces = (offset & 0xFFF8, bool(offset & 1))
            packet = replace(packet, protocol=following, payload=rest[8:], fragment=pieces, ident=ident)
        else:
            size = (rest[1] + 1) * 8
            first = packet.extra_next if packet.extra else packet.protocol
            packet = replace(
                packet,
                protocol=rest[0], payload=rest[size:], extra=packet.extra + rest[:size], extra_next=first,
            )  # fmt: skip
    return packet
