"""Frames built by hand, byte by byte, so that wrong ones can be built too."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, replace

from services.loader.bpf.layout import ipv4_bytes, mac_bytes

ETH_IPV4, ETH_ARP, ETH_IPV6 = 0x0800, 0x0806, 0x86DD
ICMP, TCP, UDP, SCTP = 1, 6, 17, 132
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
POD_MAC, HOST_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
MORE_FRAGMENTS = 0x2000


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(
    payload: bytes, kind: int = ETH_IPV4, *, source: str = POD_MAC, destination: str = HOST_MAC
) -> bytes:
    return mac_bytes(destination) + mac_bytes(source) + struct.pack("!H", kind) + payload


@dataclass(frozen=True)
class Ip:
    """An IPv4 header; None is "what is right"."""

    source: str
    destination: str
    protocol: int
    ttl: int = 64
    ident: int = 1
    fragment: int = 0
    options: bytes = b""
    version: int = 4
    ihl: int | None = None
    total: int | None = None

    def pack(self, payload: bytes) -> bytes:
        ihl = 5 + len(self.options) // 4 if self.ihl is None else self.ihl
        total = 20 + len(self.options) + len(payload) if self.total is None else self.total
        head = struct.pack(
            "!BBHHHBBH4s4s",
            self.version << 4 | ihl, 0, total, self.ident, self.fragment, self.ttl, self.protocol, 0,
            ipv4_bytes(self.source), ipv4_bytes(self.destination),
        )  # fmt: skip
        head += self.options
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def with_l4_checksum(ip: Ip, segment: bytes, offset: int) -> bytes:
    pseudo = (
        ipv4_bytes(ip.source) + ipv4_bytes(ip.destination) + struct.pack("!BBH", 0, ip.protocol, len(segment))
    )
    value = checksum(pseudo + segment)
    return segment[:offset] + struct.pack("!H", value) + segment[offset + 2 :]


def tcp_segment(sport: int, dport: int, flags: int, payload: bytes = b"", *, words: int = 5) -> bytes:
    return struct.pack("!HHIIBBHHH", sport, dport, 1, 1, words << 4, flags, 65535, 0, 0) + payload


def tcp(
    source: str,
    destination: str,
    sport: int,
    dport: int,
    flags: int = SYN,
    payload: bytes = b"",
    **ip: object,
) -> bytes:
    head = replace(Ip(source, destination, TCP), **ip)  # type: ignore[arg-type]
    return ethernet(head.pack(with_l4_checksum(head, tcp_segment(sport, dport, flags, payload), 16)))


def udp_datagram(sport: int, dport: int, payload: bytes = b"x") -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def udp(source: str, destination: str, sport: int, dport: int, payload: bytes = b"x", **ip: object) -> bytes:
    head = replace(Ip(source, destination, UDP), **ip)  # type: ignore[arg-type]
    return ethernet(head.pack(with_l4_checksum(head, udp_datagram(sport, dport, payload), 6)))


def sctp(source: str, destination: str, sport: int, dport: int) -> bytes:
    return ethernet(
        Ip(source, destination, SCTP).pack(struct.pack("!HHII", sport, dport, 0, 0) + b"\x01\0\0\x04")
    )


def icmp_message(kind: int, code: int = 0, rest: bytes = b"\0\0\0\0", payload: bytes = b"") -> bytes:
    message = struct.pack("!BBH", kind, code, 0) + rest + payload
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def echo(
    source: str, destination: str, ident: int, *, reply: bool = False, payload: bytes = b"ping", **ip: object
) -> bytes:
    head = replace(Ip(source, destination, ICMP), **ip)  # type: ignore[arg-type]
    message = icmp_message(0 if reply else 8, rest=struct.pack("!HH", ident, 1), payload=payload)
    return ethernet(head.pack(message))


def icmp_error(
    source: str, quoted: bytes, *, kind: int = 3, code: int = 3, destination: str | None = None
) -> bytes:
    """An error from ``source`` about the frame ``quoted``, to whom that was from."""
    inner = quoted[14:]
    to = destination or socket.inet_ntoa(inner[12:16])
    header = (inner[0] & 0xF) * 4
    return ethernet(Ip(source, to, ICMP).pack(icmp_message(kind, code, payload=inner[: header + 8])))


def arp(
    operation: int,
    sender: str,
    target: str,
    *,
    sender_mac: str = POD_MAC,
    target_mac: str = "00:00:00:00:00:00",
) -> bytes:
    body = struct.pack("!HHBBH", 1, ETH_IPV4, 6, 4, operation)
    body += mac_bytes(sender_mac) + ipv4_bytes(sender) + mac_bytes(target_mac) + ipv4_bytes(target)
    return ethernet(body, ETH_ARP, source=sender_mac, destination="ff:ff:ff:ff:ff:ff")


def ip_header_is_sound(frame: bytes) -> bool:
    """Whether the frame's IPv4 header checksum is right."""
    return checksum(frame[14 : 14 + (frame[14] & 0xF) * 4]) == 0


def ttl(frame: bytes) -> int:
    return frame[14 + 8]
