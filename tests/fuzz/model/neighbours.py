"""ARP and neighbour discovery, which the node's side of a pod's link answers."""

from __future__ import annotations

from tests.fuzz.model import frames
from tests.fuzz.model.parsing import ETHERNET, ICMPV6, Header
from tests.fuzz.model.reasons import Drop, Reason
from tests.fuzz.model.world import Endpoint

SOLICITATION = 135
DISCOVERY = range(133, 138)
UNSPECIFIED, LOOPBACK = bytes(16), bytes(15) + b"\1"
_IPV4_OVER_ETHERNET, _REQUEST = bytes.fromhex("000108000604"), b"\0\1"


def arp(frame: bytes, endpoint: Endpoint) -> bytes:
    """The answer to the pod's ARP packet. Raises Drop."""
    _check_request(frame)
    sender, target = frame[28:32], frame[38:42]
    if sender not in (endpoint.ipv4, bytes(4)):
        raise Drop(Reason.INVALID_SOURCE)
    if target in (endpoint.ipv4, sender):
        raise Drop(Reason.ARP_IGNORED)
    return frames.arp_reply(frame, endpoint.host_mac)


def arp_of_node(frame: bytes, mac: bytes) -> bytes:
    """The answer to the node's ARP packet: what it asks for is at ``mac``. Raises Drop."""
    _check_request(frame)
    if frame[28:32] == frame[38:42]:
        raise Drop(Reason.ARP_IGNORED)
    return frames.arp_reply(frame, mac)


def _check_request(frame: bytes) -> None:
    if arp_addresses(frame) is None:
        raise Drop(Reason.INVALID_PACKET)
    if frame[20:22] != _REQUEST:
        raise Drop(Reason.ARP_IGNORED)


def arp_addresses(frame: bytes) -> tuple[bytes, bytes] | None:
    """Who asks, and for whom; None for what is no ARP of IPv4."""
    if len(frame) < ETHERNET + 28 or frame[14:20] != _IPV4_OVER_ETHERNET:
        return None
    return frame[28:32], frame[38:42]


def _icmp_type(frame: bytes) -> int | None:
    """The type of an ICMPv6 message without extension headers in front; None for anything else."""
    if len(frame) < ETHERNET + 48 or frame[20] != ICMPV6:
        return None
    return frame[54]


def is_discovery(frame: bytes) -> bool:
    """Whether an IPv6 packet is neighbour discovery."""
    return _icmp_type(frame) in DISCOVERY


def is_solicitation(frame: bytes) -> bool:
    """Whether an IPv6 packet is a neighbour solicitation."""
    return _icmp_type(frame) == SOLICITATION


def solicitation(frame: bytes, header: Header, endpoint: Endpoint) -> bytes:
    """The answer to the pod's solicitation. Raises Drop."""
    body = frame[header.start : header.end]
    if len(body) < 24 or body[1] or header.hop_limit != 255:
        raise Drop(Reason.INVALID_PACKET)
    if header.source == UNSPECIFIED:
        raise Drop(Reason.ND_IGNORED)
    if header.source != endpoint.ipv6 and not _is_link_local(header.source):
        raise Drop(Reason.INVALID_SOURCE)
    if body[8:24] in (endpoint.ipv6, header.source):
        raise Drop(Reason.ND_IGNORED)
    return frames.advertisement(frame, header, endpoint)


def is_chatter(header: Header) -> bool:
    """Whether an IPv6 packet is from an address that leads nowhere to whoever listens on the link."""
    is_from_link = _is_link_local(header.source) or header.source == UNSPECIFIED
    return is_from_link and header.destination[0] == 0xFF


def is_of_link(address: bytes) -> bool:
    """Whether no router forwards what comes from an IPv6 address."""
    return _is_link_local(address) or address == LOOPBACK or address[0] == 0xFF


def _is_link_local(address: bytes) -> bool:
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80
