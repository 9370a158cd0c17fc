"""ICMP errors about translated packets: the quote is what its reader sent, byte for byte."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.kernel.nat.frames import SCTP, TCP, UDP, V4, Family, Packet, build, error, head
from tests.kernel.nat.translator import NO_MAPPING, Translator, summed

pytestmark = pytest.mark.kernel

PROTOCOLS = ["tcp", "udp", "echo", "sctp"]


def request(family: Family, protocol: str, data: bytes = b"question") -> Packet:
    number = {"tcp": TCP, "udp": UDP, "sctp": SCTP, "echo": family.echo}[protocol]
    return build(family, family.pod, family.peer, number, 40000, 80, data)


def quote(packet: Packet) -> bytes:
    return packet.payload[8:]


@pytest.mark.parametrize("sender", ["router", "peer"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_error_about_what_a_pod_sent_reaches_it(
    nat: Translator, family: Family, protocol: str, sender: str
) -> None:
    sent = request(family, protocol)
    left = nat.leave(sent).packet
    for kind in family.errors:
        for quoted, expected in ((left.ip(), sent.ip()), (head(left), head(sent))):
            complaint = error(family, getattr(family, sender), family.node, quoted, kind, 1, word=1280)
            got = nat.arrive(complaint).packet
            assert (got.source, got.destination) == (complaint.source, family.pod)
            assert got.transport_sum() == 0
            assert got.payload[:2] + got.payload[4:8] == complaint.payload[:2] + complaint.payload[4:8]
            assert quote(got) == expected
    _, destination, flow_source, sport, dport = nat.known()
    size = 16 if family.v6 else 4
    assert destination[:size] == family.pack(family.pod)
    assert flow_source[:size] == family.pack(family.peer)
    assert (sport, dport) == sent.answered().ports


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_error_of_a_pod_about_what_it_got_reaches_the_peer(
    nat: Translator, family: Family, protocol: str
) -> None:
    sent = request(family, protocol)
    answer = nat.leave(sent).packet.answered()
    got = nat.arrive(answer).packet
    for kind in family.errors:
        for quoted, expected in ((got.ip(), answer.ip()), (head(got), head(answer))):
            complaint = error(family, family.pod, family.peer, quoted, kind, 1)
            left = nat.leave(complaint).packet
            assert (left.source, left.destination) == (family.node, family.peer)
            assert left.transport_sum() == 0
            assert quote(left) == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_error_of_the_node_about_an_answer_keeps_its_own_source(
    nat: Translator, family: Family, protocol: str
) -> None:
    """The stack's, when an answer that is translated back already cannot be forwarded."""
    answer = nat.leave(request(family, protocol)).packet.answered()
    got = nat.arrive(answer).packet
    for node in (family.node, family.router):
        left = nat.leave(error(family, node, family.peer, got.ip(), family.errors[-1])).packet
        assert (left.source, left.destination) == (node, family.peer)
        assert left.transport_sum() == 0
        assert quote(left) == answer.ip()


def test_a_quote_without_udp_checksum_keeps_none(nat: Translator, family: Family) -> None:
    sent = request(family, "udp").without_checksum()
    left = nat.leave(sent).packet
    got = nat.arrive(error(family, family.router, family.node, left.ip(), family.errors[0])).packet
    assert got.transport_sum() == 0
    assert quote(got) == sent.ip()


def test_options_in_the_error_and_in_its_quote(nat: Translator, family: Family) -> None:
    options = b"\1" * 8 if not family.v6 else struct.pack("!BBBB", family.echo, 0, 1, 4) + bytes(4)
    sent = request(family, "udp")
    if not family.v6:
        sent = replace(sent, extra=options)
    left = nat.leave(sent).packet
    complaint = error(family, family.router, family.node, left.ip(), family.errors[0])
    got = nat.arrive(replace(complaint, extra=options)).packet
    assert (got.extra, got.transport_sum()) == (options, 0)
    assert quote(got) == sent.ip()


def test_what_follows_the_packet_in_the_frame_is_no_quote(nat: Translator, family: Family) -> None:
    """Where the quoted TCP header would go on."""
    sent = request(family, "tcp")
    complaint = error(family, family.router, family.node, head(nat.leave(sent).packet), family.errors[0])
    outcome = nat.arrive(complaint.frame() + bytes(range(1, 40)))
    assert outcome.frame.endswith(bytes(range(1, 40)))
    assert outcome.packet.transport_sum() == 0
    assert quote(outcome.packet) == head(sent)


@pytest.mark.parametrize("padding", [64, 128])
def test_a_quote_with_padding_behind_it_has_right_checksums(
    nat: Translator, family: Family, padding: int
) -> None:
    """As routers do that add extensions (RFC 4884)."""
    sent = request(family, "udp", b"")
    quoted = nat.leave(sent).packet.ip().ljust(padding, b"\0") + b"\x20\0\xdf\xff"
    got = nat.arrive(error(family, family.router, family.node, quoted, family.errors[0])).packet
    assert got.transport_sum() == 0
    assert quote(got) == sent.ip().ljust(padding, b"\0") + b"\x20\0\xdf\xff"


def test_an_error_about_a_first_fragment_reaches_the_pod(nat: Translator) -> None:
    """IPv4's; IPv6 quotes with a fragment header are not parsed (docs/datapath.md)."""
    family = V4
    whole = request(family, "udp", bytes(2000))
    sent = replace(whole, payload=whole.payload[:1000], fragment=(0, True))
    left = nat.leave(sent).packet
    got = nat.arrive(error(family, family.router, family.node, left.ip(), 11, 1)).packet
    assert got.transport_sum() == 0
    assert quote(got) == sent.ip()


def test_errors_about_nothing_known_are_not_translated(nat: Translator, family: Family) -> None:
    nat.leave(request(family, "udp"))
    other = build(family, family.node, family.peer, UDP, 40000, 80)
    complaint = error(family, family.router, family.node, other.ip(), family.errors[0])
    outcome = nat.arrive(complaint)
    assert outcome.untouched and outcome.frame == complaint.frame()
    # From a pod it would leave with the pod's address.
    unknown = build(family, family.peer, family.pod, UDP, 9, 9)
    assert (
        nat.leave(error(family, family.pod, family.peer, unknown.ip(), family.errors[0])).dropped_for
        == NO_MAPPING
    )
    assert len(nat.entries()) == 2


def test_an_error_about_a_ping_of_the_peer_is_the_nodes(nat: Translator, family: Family) -> None:
    """The node's own answer to a ping, with the identifier of a pod's ping to the same peer."""
    ident = nat.leave(request(family, "echo")).packet.ports[0]
    asked = build(family, family.peer, family.node, family.echo, ident, ident)
    complaint = error(family, family.router, family.node, asked.answered().ip(), family.errors[0])
    assert nat.arrive(complaint).untouched


def test_a_sum_over_the_whole_error_stays_right(nat: Translator, family: Family) -> None:
    """CHECKSUM_COMPLETE."""
    sent = request(family, "udp")
    left = nat.leave(sent).packet
    complaint = error(family, family.router, family.node, left.ip(), family.errors[0])
    with summed():
        got = nat.arrive(complaint, complete=True).packet
    assert quote(got) == sent.ip()
    complaint = error(family, family.pod, family.peer, sent.answered().ip(), family.errors[0])
    with summed():
        nat.leave(complaint, complete=True)
