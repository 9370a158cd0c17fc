"""IPv6 frames built by hand, byte by byte, so that wrong ones can be built too."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from services.loader.bpf.layout import ipv6_bytes, ipv6_text, mac_bytes
from tests.kernel.bpf.packets import ETH_IPV6, SYN, TCP, UDP, checksum, ethernet, tcp_segment, udp_datagram

HOP_BY_HOP, ROUTING, FRAGMENT, ICMPV6, NOTHING, OPTIONS = 0, 43, 44, 58, 59, 60
ECHO_REQUEST, ECHO_REPLY = 128, 129
SOLICITATION, ADVERTISEMENT = 135, 136


@dataclass(frozen=True)
class Ip6:
    """An IPv6 header; None is "what is right". ``extensions`` are (header number, bytes of it but for the
    first) in the order in which they come.
    """

    source: str
    destination: str
    protocol: int
    hops: int = 64
    extensions: Sequence[tuple[int, bytes]] = ()
    version: int = 6
    length: int | None = None

    def pack(self, payload: bytes) -> bytes:
        numbers = [number for number, _ in self.extensions] + [self.protocol]
        headers = b"".join(
            bytes([following]) + rest
            for following, (_, rest) in zip(numbers[1:], self.extensions, strict=True)
        )
        length = len(headers) + len(payload) if self.length is None else self.length
        head = struct.pack("!IHBB", self.version << 28, length, numbers[0], self.hops)
        return head + ipv6_bytes(self.source) + ipv6_bytes(self.destination) + headers + payload

    def frame(self, payload: bytes) -> bytes:
        return ethernet(self.pack(payload), ETH_IPV6)

    def checksummed(self, segment: bytes, offset: int) -> bytes:
        """The segment with its checksum, which stands at ``offset``."""
        pseudo = ipv6_bytes(self.source) + ipv6_bytes(self.destination)
        pseudo += struct.pack("!II", len(segment), self.protocol)
        value = struct.pack("!H", checksum(pseudo + segment))
        return segment[:offset] + value + segment[offset + 2 :]


PADDING = b"\0\x01\x04\0\0\0\0"
"""Eight bytes of options that say nothing, without the first."""


def fragment_header(offset: int, *, more: bool, ident: int = 1) -> tuple[int, bytes]:
    """``offset`` in units of eight bytes."""
    return FRAGMENT, struct.pack("!BHI", 0, offset << 3 | more, ident)


def tcp6(
    source: str,
    destination: str,
    sport: int,
    dport: int,
    flags: int = SYN,
    payload: bytes = b"",
    *,
    hops: int = 64,
    extensions: Sequence[tuple[int, bytes]] = (),
) -> bytes:
    head = Ip6(source, destination, TCP, hops, extensions)
    return head.frame(head.checksummed(tcp_segment(sport, dport, flags, payload), 16))


def udp6(source: str, destination: str, sport: int, dport: int, payload: bytes = b"x") -> bytes:
    head = Ip6(source, destination, UDP)
    return head.frame(head.checksummed(udp_datagram(sport, dport, payload), 6))


def icmp6(
    source: str, destination: str, kind: int, *, code: int = 0, rest: bytes = bytes(4), hops: int = 64
) -> bytes:
    """``rest`` follows the checksum."""
    head = Ip6(source, destination, ICMPV6, hops)
    return head.frame(head.checksummed(struct.pack("!BBH", kind, code, 0) + rest, 2))


def echo6(source: str, destination: str, ident: int, *, reply: bool = False) -> bytes:
    kind = ECHO_REPLY if reply else ECHO_REQUEST
    return icmp6(source, destination, kind, rest=struct.pack("!HH", ident, 1) + b"ping")


def error6(source: str, quoted: bytes, *, kind: int = 1, code: int = 4) -> bytes:
    """An error from ``source`` about the frame ``quoted``, to whom that was from."""
    inner = quoted[14:]
    head = Ip6(source, ipv6_text(inner[8:24]), ICMPV6)
    message = struct.pack("!BBHI", kind, code, 0, 0) + inner[:48]
    return head.frame(head.checksummed(message, 2))


def solicitation(source: str, target: str, mac: str) -> bytes:
    """Who has ``target``? With ``mac`` as the asker's."""
    group = ipv6_text(ipv6_bytes("ff02::1:ff00:0")[:13] + ipv6_bytes(target)[13:])
    rest = bytes(4) + ipv6_bytes(target) + b"\1\1" + mac_bytes(mac)
    return icmp6(source, group, SOLICITATION, rest=rest, hops=255)


def is_sound(frame: bytes) -> bool:
    """Whether the checksum of a TCP, UDP or ICMPv6 packet without extension headers is right."""
    payload = frame[54:]
    pseudo = frame[22:54] + struct.pack("!II", len(payload), frame[20])
    return checksum(pseudo + payload) == 0


def hops(frame: bytes) -> int:
    return frame[14 + 7]
