"""Headers that are wrong, cut off or in pieces: never a pass, always counted."""

from __future__ import annotations

import random

import pytest

from services.loader.bpf import drop_reasons as reason
from tests.kernel.bpf.node import CLIENT, CLIENT_ID, WEB, WEB_SUBJECT, Node, Rule, forwarded
from tests.kernel.bpf.packets import (
    ACK,
    ETH_ARP,
    ICMP,
    MORE_FRAGMENTS,
    SCTP,
    TCP,
    UDP,
    Ip,
    arp,
    echo,
    ethernet,
    icmp_error,
    icmp_message,
    tcp,
    tcp_segment,
    udp,
    udp_datagram,
)

pytestmark = pytest.mark.kernel


def dropped_for(node: Node, packet: bytes) -> int | None:
    """The reason for which the client's packet is dropped, None if it passes."""
    before = node.drops()
    if forwarded(node.leave(node.client, packet)):
        return None
    (found,) = [key for key, count in node.drops().items() if count != before.get(key, 0)]
    return found


def head(protocol: int = UDP, **fields: object) -> Ip:
    return Ip(CLIENT, WEB, protocol, **fields)  # type: ignore[arg-type]


SHORTEST = 14 + 20
DATAGRAM = udp_datagram(5000, 53)


@pytest.mark.parametrize(
    "packet",
    [
        ethernet(head(version=5).pack(DATAGRAM)),
        ethernet(head(ihl=4).pack(DATAGRAM)),
        ethernet(head(ihl=0).pack(DATAGRAM)),
        ethernet(head(total=19).pack(DATAGRAM)),
        ethernet(head(total=0).pack(DATAGRAM)),
        ethernet(head(total=1500).pack(DATAGRAM)),
        ethernet(head(ihl=15, total=29).pack(DATAGRAM)),
    ],
)
def test_a_wrong_ip_header_is_dropped(node: Node, packet: bytes) -> None:
    assert dropped_for(node, packet) == reason.INVALID
    assert node.datapath.conntrack() == []


SHORT = [
    *[(TCP, tcp_segment(1, 80, 2)[:size]) for size in (0, 1, 4, 8, 13, 19)],
    *[(UDP, DATAGRAM[:size]) for size in (0, 3, 7)],
    *[(SCTP, b"\0\1\0\2\0\0\0\0\0\0\0\0"[:size]) for size in (0, 4, 11)],
    *[(ICMP, icmp_message(8)[:size]) for size in (0, 7)],
    (TCP, tcp_segment(1, 80, 2, words=4)),
]


@pytest.mark.parametrize(("protocol", "payload"), SHORT)
@pytest.mark.parametrize("padding", [0, 40])
def test_a_short_transport_header_is_dropped(node: Node, protocol: int, payload: bytes, padding: int) -> None:
    """Padding of the frame is no part of the packet."""
    packet = ethernet(head(protocol).pack(payload) + b"\0" * padding)
    assert dropped_for(node, packet) == reason.CT_INVALID_HDR


def test_a_frame_cut_off_within_the_packet_is_dropped(node: Node) -> None:
    whole = tcp(CLIENT, WEB, 1, 80)
    # Newer kernels test-run no frame shorter than its IP header; test_traffic.py sends such ones.
    for size in range(SHORTEST, len(whole)):
        assert dropped_for(node, whole[:size]) == reason.INVALID, size


def test_ip_options_are_no_obstacle(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    for length in range(4, 44, 4):
        options = b"\x01" * length
        assert dropped_for(node, tcp(CLIENT, WEB, length, 80, options=options)) is None
        assert dropped_for(node, tcp(CLIENT, WEB, length, 81, options=options)) == reason.POLICY


def test_padding_does_not_count(node: Node) -> None:
    assert dropped_for(node, udp(CLIENT, WEB, 5000, 53) + b"\0" * 18) is None


@pytest.mark.parametrize("protocol", [2, 4, 41, 47, 50, 51, 89, 255])
def test_unknown_protocols_are_dropped(node: Node, protocol: int) -> None:
    assert dropped_for(node, ethernet(head(protocol).pack(b"\0" * 40))) == reason.UNKNOWN_L4


@pytest.mark.parametrize("kind", [4, 5, 9, 10, 13, 14, 15, 17, 18, 42, 255])
def test_other_icmp_is_dropped(node: Node, kind: int) -> None:
    packet = ethernet(head(ICMP).pack(icmp_message(kind, payload=b"\0" * 28)))
    assert dropped_for(node, packet) == reason.UNKNOWN_ICMP4_TYPE


@pytest.mark.parametrize("size", range(28))
def test_an_icmp_error_that_quotes_too_little_is_dropped(node: Node, size: int) -> None:
    asked = udp(WEB, CLIENT, 5000, 53)
    assert forwarded(node.leave(node.web, asked))
    packet = ethernet(Ip(CLIENT, WEB, ICMP).pack(icmp_message(3, 3, payload=asked[14 : 14 + size])))
    assert dropped_for(node, packet) == reason.CT_INVALID_HDR


def test_an_icmp_error_that_quotes_nonsense_is_dropped(node: Node) -> None:
    for inner in (
        Ip(WEB, CLIENT, UDP, version=6).pack(DATAGRAM),
        Ip(WEB, CLIENT, UDP, ihl=4).pack(DATAGRAM),
        Ip(WEB, CLIENT, UDP, ihl=15).pack(DATAGRAM),
        Ip(WEB, CLIENT, UDP, fragment=10).pack(DATAGRAM),
    ):
        packet = ethernet(Ip(CLIENT, WEB, ICMP).pack(icmp_message(3, 3, payload=inner)))
        assert dropped_for(node, packet) == reason.CT_INVALID_HDR
    error = icmp_error(CLIENT, ethernet(Ip(WEB, CLIENT, 47).pack(b"\0" * 8)))
    assert dropped_for(node, error) == reason.UNKNOWN_L4
    error = icmp_error(CLIENT, icmp_error(WEB, udp(CLIENT, WEB, 1, 2)))
    assert dropped_for(node, error) == reason.UNKNOWN_ICMP4_TYPE


@pytest.mark.parametrize(
    "change",
    [
        lambda body: b"\0\2" + body[2:],
        lambda body: body[:2] + b"\x86\xdd" + body[4:],
        lambda body: body[:4] + b"\x08" + body[5:],
        lambda body: body[:5] + b"\x10" + body[6:],
        lambda body: body[:27],
    ],
)
def test_a_wrong_arp_is_dropped(node: Node, change: object) -> None:
    body = arp(1, CLIENT, WEB)[14:]
    assert callable(change)
    assert dropped_for(node, ethernet(change(body), ETH_ARP)) == reason.INVALID


def fragments(ident: int, dport: int = 53) -> tuple[bytes, bytes, bytes]:
    """A datagram in three pieces."""
    payload = udp_datagram(5000, dport, b"x" * 40)
    first = ethernet(head(ident=ident, fragment=MORE_FRAGMENTS).pack(payload[:16]))
    second = ethernet(head(ident=ident, fragment=MORE_FRAGMENTS | 2).pack(payload[16:32]))
    return first, second, ethernet(head(ident=ident, fragment=4).pack(payload[32:]))


def test_later_fragments_follow_the_first(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, UDP, 53)])
    for packet in fragments(7):
        assert dropped_for(node, packet) is None
    (flow,) = node.datapath.conntrack()
    assert (flow.destination_port, flow.packets) == (53, (3, 0))


def test_later_fragments_of_a_denied_datagram_are_denied(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, UDP, 53)])
    for packet in fragments(8, dport=54):
        assert dropped_for(node, packet) == reason.POLICY


def test_a_fragment_without_its_first_is_dropped(node: Node) -> None:
    first, second, third = fragments(9)
    assert dropped_for(node, third) == reason.FRAG_NOT_FOUND
    assert dropped_for(node, second) == reason.FRAG_NOT_FOUND
    assert dropped_for(node, first) is None
    assert dropped_for(node, fragments(10)[1]) == reason.FRAG_NOT_FOUND


def test_a_tiny_first_fragment_is_dropped(node: Node) -> None:
    for protocol, payload in SHORT:
        packet = ethernet(head(protocol, fragment=MORE_FRAGMENTS).pack(payload))
        assert dropped_for(node, packet) == reason.CT_INVALID_HDR


def test_a_forged_first_fragment_leads_no_other_astray(node: Node) -> None:
    payload = udp_datagram(5000, 53, b"x" * 40)
    forged = Ip(CLIENT, "10.244.2.10", UDP, ident=5, fragment=MORE_FRAGMENTS)
    assert not forwarded(node.leave(node.web, ethernet(forged.pack(payload[:16]))))
    later = Ip(CLIENT, "10.244.2.10", UDP, ident=5, fragment=2)
    assert dropped_for(node, ethernet(later.pack(payload[16:]))) == reason.FRAG_NOT_FOUND


def test_pieces_of_a_large_ping_and_its_answer_pass(node: Node) -> None:
    message = echo(CLIENT, WEB, 3, payload=b"p" * 60)[34:]
    for offset, more in ((0, True), (4, False)):
        flags = (MORE_FRAGMENTS if more else 0) | offset
        piece = message[:32] if more else message[32:]
        assert dropped_for(node, ethernet(head(ICMP, ident=3, fragment=flags).pack(piece))) is None
    message = echo(WEB, CLIENT, 3, reply=True, payload=b"p" * 60)[34:]
    for offset, more in ((0, True), (4, False)):
        flags = (MORE_FRAGMENTS if more else 0) | offset
        piece = message[:32] if more else message[32:]
        packet = ethernet(Ip(WEB, CLIENT, ICMP, ident=4, fragment=flags).pack(piece))
        assert forwarded(node.leave(node.web, packet))


def test_a_later_fragment_has_no_tcp_flags(node: Node) -> None:
    """What stands where the flags would be is payload."""
    segment = tcp_segment(1, 80, ACK, b"y" * 20)
    for flags, piece in ((MORE_FRAGMENTS, segment[:24]), (3, b"\xff" * 16)):
        assert dropped_for(node, ethernet(head(TCP, ident=6, fragment=flags).pack(piece))) is None
    (flow,) = node.datapath.conntrack()
    assert not flow.closing


def test_random_bytes_never_pass(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[], egress=[])
    node.policy(node.client.subject, ingress=[], egress=[])
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    template = tcp(CLIENT, WEB, 1, 80)
    for _ in range(3000):
        packet = bytearray(template + source.randbytes(source.randrange(40)))
        for _ in range(source.randrange(1, 12)):
            packet[source.randrange(14, len(packet))] = source.randrange(256)
        cut = bytes(packet[: source.randrange(SHORTEST, len(packet) + 1)])
        assert not forwarded(node.leave(node.client, cut)), f"seed {seed}: {cut.hex()}"
