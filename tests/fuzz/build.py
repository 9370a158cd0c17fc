"""Frames from parts, fast, right or wrong as asked for. Addresses and MACs are bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tests.fuzz.model.frames import checksum
from tests.fuzz.model.parsing import (
    ETH_ARP,
    ETH_IPV4,
    ETH_IPV6,
    FRAGMENT,
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
)

_CHECKSUMS = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}
_MACS = bytes.fromhex("020000000b01020000000a01")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_TCP, _PORTS = struct.Struct("!HHIIBBHHH"), struct.Struct("!HH")


@dataclass(frozen=True, slots=True)
class Part:
    """A fragment: where it begins (bytes, a multiple of 8), whether more follow, which datagram's it is."""

    offset: int
    more: bool
    identification: int


def ethernet(payload: bytes, kind: int) -> bytes:
    """A frame from a pod to its node."""
    return _MACS + kind.to_bytes(2, "big") + payload


def ipv4(
    source: bytes, destination: bytes, protocol: int, payload: bytes, *, ttl: int = 64, options: bytes = b"",
    part: Part | None = None,
) -> bytes:  # fmt: skip
    """A frame with an IPv4 packet; options are padded to words."""
    options += bytes(-len(options) % 4)
    identification, fragment = 1, 0x4000
    if part is not None:
        identification, fragment = part.identification & 0xFFFF, part.offset >> 3 | part.more << 13
    head = _IPV4.pack(
        0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), identification, fragment, ttl,
        protocol, 0, source, destination,
    )  # fmt: skip
    head += options
    return ethernet(head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload, ETH_IPV4)


def ipv6(
    source: bytes, destination: bytes, protocol: int, payload: bytes, *, hop_limit: int = 64,
    extensions: tuple[tuple[int, bytes], ...] = (),
) -> bytes:  # fmt: skip
    """A frame with an IPv6 packet. Extensions: (number, bytes but for the next header's number), in order."""
    numbers = [number for number, _ in extensions] + [protocol]
    chain = b"".join(bytes((numbers[i + 1],)) + data for i, (_, data) in enumerate(extensions))
    head = struct.pack("!IHBB", 6 << 28, len(chain) + len(payload), numbers[0], hop_limit)
    return ethernet(head + source + destination + chain + payload, ETH_IPV6)


def fragment_header(part: Part, reserved: int = 0) -> tuple[int, bytes]:
    """The extension that makes a packet a fragment."""
    return FRAGMENT, struct.pack("!BHI", reserved, part.offset | part.more, part.identification)


def option_header(number: int, words: int = 0, *, kind: int = 1) -> tuple[int, bytes]:
    """An extension of hop-by-hop options, destination options or routing, 8 + 8 * ``words`` bytes long."""
    # PadN over everything; for a routing header its second byte is the type.
    return number, bytes((words, kind, 4 + words * 8)) + bytes(4 + words * 8)


def authentication_header(words: int = 4) -> tuple[int, bytes]:
    """An authentication header of 8 + 4 * ``words`` bytes."""
    return 51, bytes((words,)) + bytes(6 + words * 4)


def layer4(protocol: int, sport: int, dport: int, flags: int, payload: bytes) -> bytes:
    """A segment or datagram. Its checksum is 0."""
    if protocol == TCP:
        return _TCP.pack(sport, dport, 1, 1, 0x50, flags, 65535, 0, 0) + payload
    if protocol == UDP:
        return _PORTS.pack(sport, dport) + _PORTS.pack(8 + len(payload) & 0xFFFF, 0) + payload
    if protocol == SCTP:
        return _PORTS.pack(sport, dport) + bytes(8) + payload
    raise ValueError(f"no layer 4 for protocol {protocol}")


def icmp(kind: int, code: int, rest: bytes, payload: bytes) -> bytes:
    """An ICMP or ICMPv6 message. Its checksum is that of ICMP."""
    message = bytes((kind, code, 0, 0)) + rest + payload
    return message[:2] + checksum(message).to_bytes(2, "big") + message[4:]


def with_checksum(protocol: int, data: bytes, value: int) -> bytes:
    """Layer 4 with this checksum; as it is if it is too short for one, or of SCTP."""
    place = _CHECKSUMS.get(protocol)
    if place is None or len(data) < place + 2:
        return data
    return data[:place] + value.to_bytes(2, "big") + data[place + 2 :]


def summed(source: bytes, destination: bytes, protocol: int, data: bytes) -> bytes:
    """Layer 4 with its checksum right, in a packet between these addresses."""
    pseudo = b"" if protocol == ICMP else source + destination + struct.pack("!II", len(data), protocol)
    value = checksum(pseudo + with_checksum(protocol, data, 0))
    return with_checksum(protocol, data, value or 0xFFFF if protocol == UDP else value)


def arp(operation: int, sender_mac: bytes, sender: bytes, target: bytes) -> bytes:
    """An ARP packet."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + sender_mac + sender + bytes(6) + target
    return b"\xff" * 6 + sender_mac + ETH_ARP.to_bytes(2, "big") + body


def solicitation(source: bytes, target: bytes, mac: bytes, *, with_option: bool = True) -> bytes:
    """A neighbour solicitation to the target's multicast group."""
    group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
    body = bytes(4) + target + (b"\1\1" + mac if with_option else b"")
    pseudo = source + group + struct.pack("!IHBB", len(body) + 4, 0, 0, ICMPV6)
    value = checksum(pseudo + b"\x87\0\0\0" + body)
    message = b"\x87\0" + value.to_bytes(2, "big") + body
    frame = ipv6(source, group, ICMPV6, message, hop_limit=255)
    return b"\x33\x33" + group[12:] + mac + frame[12:]


def describe(frame: bytes) -> str:
    """A frame in a line, as far as its first headers make sense."""
    kind = int.from_bytes(frame[12:14], "big")
    names = {ETH_IPV4: _describe_ipv4, ETH_IPV6: _describe_ipv6}
    text = names[kind](frame[14:]) if kind in names and len(frame) >= 54 else ""
    return f"{len(frame)} bytes, EtherType {kind:#06x}" + (f", {text}" if text else "")


def _describe_ipv4(ip: bytes) -> str:
    fragment = int.from_bytes(ip[6:8], "big")
    header = (ip[0] & 15) * 4
    return (
        f"{IPv4Address(ip[12:16])} > {IPv4Address(ip[16:20])} version {ip[0] >> 4} header {header} "
        f"total {int.from_bytes(ip[2:4], 'big')} ttl {ip[8]} protocol {ip[9]} "
        f"id {int.from_bytes(ip[4:6], 'big'):#x} offset {(fragment & 0x1FFF) * 8}"
        f"{' MF' * (fragment >> 13 & 1)} " + _describe_layer4(ip[9], ip[header:])
    )


def _describe_ipv6(ip: bytes) -> str:
    text = (
        f"{IPv6Address(ip[8:24])} > {IPv6Address(ip[24:40])} version {ip[0] >> 4} "
        f"payload {int.from_bytes(ip[4:6], 'big')} hops {ip[7]} next {ip[6]} "
    )
    if ip[6] == FRAGMENT and len(ip) >= 48:
        fields = int.from_bytes(ip[42:44], "big")
        more = " MF" * (fields & 1)
        return f"{text}fragment next {ip[40]} id {ip[44:48].hex()} offset {fields & 0xFFF8}{more}"
    return text + _describe_layer4(ip[6], ip[40:])


def _describe_layer4(protocol: int, data: bytes) -> str:
    if protocol in (ICMP, ICMPV6) and len(data) >= 8:
        return f"type {data[0]} code {data[1]} id {int.from_bytes(data[4:6], 'big')}"
    if protocol in (TCP, UDP, SCTP) and len(data) >= 8:
        ports = f"ports {int.from_bytes(data[:2], 'big')} > {int.from_bytes(data[2:4], 'big')}"
        return ports + (f" flags {data[13]:#04x}" if protocol == TCP and len(data) >= 14 else "")
    return ""
