"""Source and destination rewritten there and back, with every checksum right."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest

from services.loader.bpf.nat import Kind
from tests.kernel.nat.frames import SCTP, TCP, UDP, Family, Packet, build, checksum, take_apart
from tests.kernel.nat.translator import NO_MAPPING, Translator, summed

pytestmark = pytest.mark.kernel

PROTOCOLS = ["tcp", "udp", "echo", "sctp"]


def number(family: Family, protocol: str) -> int:
    return {"tcp": TCP, "udp": UDP, "sctp": SCTP, "echo": family.echo}[protocol]


def request(family: Family, protocol: str, sport: int = 40000, data: bytes = b"question") -> Packet:
    return build(family, family.pod, family.peer, number(family, protocol), sport, 80, data)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pod_leaves_with_the_nodes_address_and_a_port_of_the_range(
    nat: Translator, family: Family, protocol: str
) -> None:
    sent = request(family, protocol)
    left = nat.leave(sent).packet
    assert (left.source, left.destination) == (family.node, family.peer)
    assert left.transport_sum() == 0
    if protocol == "sctp":
        assert left.payload == sent.payload
    else:
        assert 61000 <= left.ports[0] <= 65535
        assert left.ports[1] == (left.ports[0] if protocol == "echo" else 80)
    assert replace(left, source=sent.source, payload=sent.payload) == sent
    # Nothing but port and checksum has changed behind the IP header.
    changed = {at for at, (a, b) in enumerate(zip(sent.payload, left.payload, strict=True)) if a != b}
    assert (
        changed <= {"tcp": {0, 1, 16, 17}, "udp": {0, 1, 6, 7}, "echo": {2, 3, 4, 5}, "sctp": set()}[protocol]
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_answer_comes_back_to_the_pod(nat: Translator, family: Family, protocol: str) -> None:
    sent = request(family, protocol)
    answer = nat.leave(sent).packet.answered()
    back = nat.arrive(answer).packet
    assert back == sent.answered()
    source, destination, flow_source, sport, dport = nat.known()
    size = 16 if family.v6 else 4
    assert source[:size] == flow_source[:size] == family.pack(family.peer)
    assert destination == family.pack(family.pod) + bytes(16 - size)
    assert (sport, dport) == back.ports


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_flow_keeps_its_pair_of_entries(nat: Translator, family: Family, protocol: str) -> None:
    ports = {
        nat.leave(request(family, protocol, data=data)).packet.ports[0] for data in (b"a", b"bc", b"def")
    }
    assert len(ports) == 1
    (original,) = nat.entries(Kind.ORIGINAL)
    assert len(nat.entries()) == 2
    nat.both(original)
    assert (original.source, original.source_port) == (family.pod, 40000)
    assert (original.to, original.to_port) == (family.node, ports.pop())


def test_packets_of_every_length_have_right_checksums(nat: Translator, family: Family) -> None:
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    for size in [*range(70), *(source.randrange(1400) for _ in range(300))]:
        for protocol in ("tcp", "udp", "echo"):
            sent = request(family, protocol, source.randrange(1, 65536), source.randbytes(size))
            left = nat.leave(sent).packet
            assert left.transport_sum() == 0, f"seed {seed}"
            assert nat.arrive(left.answered(source.randbytes(size))).packet.transport_sum() == 0, (
                f"seed {seed}"
            )


def test_a_wrong_checksum_stays_wrong(nat: Translator, family: Family) -> None:
    sent = request(family, "udp")
    spoilt = replace(sent, payload=sent.payload[:-1] + b"?")
    assert nat.leave(spoilt).packet.transport_sum() != 0


def test_no_udp_checksum_stays_none(nat: Translator, family: Family) -> None:
    left = nat.leave(request(family, "udp").without_checksum()).packet
    assert left.payload[6:8] == bytes(2)
    assert nat.arrive(left.answered().without_checksum()).packet.payload[6:8] == bytes(2)


def test_a_udp_checksum_that_comes_to_zero_is_not_none(nat: Translator, family: Family) -> None:
    """Two bytes of payload chosen so that the sum of what leaves, and of what comes back, is 0."""
    port = nat.leave(request(family, "udp")).packet.ports[0]

    def with_zero_sum(packet: Packet) -> bytes:
        empty = replace(packet, payload=packet.payload[:6] + bytes(4))
        return struct.pack("!H", empty.transport_sum())

    out = build(family, family.node, family.peer, UDP, port, 80, b"--")
    sent = request(family, "udp", data=with_zero_sum(out))
    assert nat.leave(sent).packet.payload[6:8] == b"\xff\xff"
    back = build(family, family.peer, family.pod, UDP, 80, 40000, b"--")
    answer = build(family, family.peer, family.node, UDP, 80, port, with_zero_sum(back))
    assert nat.arrive(answer).packet.payload[6:8] == b"\xff\xff"


def test_other_traffic_of_the_node_is_left_alone(nat: Translator, family: Family) -> None:
    sent = request(family, "tcp")
    port = nat.leave(sent).packet.ports[0]
    for packet in (
        build(family, family.peer, family.node, TCP, 80, port + 1),
        build(family, family.peer, family.node, TCP, 81, port),
        build(family, family.other_peer, family.node, TCP, 80, port),
        build(family, family.peer, family.node, UDP, 80, port),
        build(family, family.peer, family.node, family.echo, port, port),
        build(family, family.peer, family.pod, TCP, 80, 40000),
    ):
        outcome = nat.arrive(packet)
        assert outcome.untouched and outcome.frame == packet.frame()


def test_who_pings_the_node_gets_the_nodes_answer(nat: Translator, family: Family) -> None:
    """Also with the identifier that a pod's ping to the same peer has."""
    ident = nat.leave(request(family, "echo")).packet.ports[0]
    assert nat.arrive(build(family, family.peer, family.node, family.echo, ident, ident)).untouched


def test_an_echo_reply_starts_nothing(nat: Translator, family: Family) -> None:
    asked = build(family, family.peer, family.pod, family.echo, 7, 7)
    assert nat.leave(asked.answered()).dropped_for == NO_MAPPING
    # Nor is it one of the pod's own ping with the same identifier.
    nat.leave(request(family, "echo", 7))
    assert nat.leave(asked.answered()).dropped_for == NO_MAPPING


def test_excluded_destinations_see_the_pods_address(nat: Translator, family: Family) -> None:
    nat.exclude("fd01::/32" if family.v6 else "10.1.0.0/16")
    excluded = build(family, family.pod, family.excluded, TCP, 1, 2)
    outcome = nat.leave(excluded)
    assert outcome.untouched and outcome.frame == excluded.frame()
    assert nat.leave(request(family, "tcp")).packet.source == family.node
    assert len(nat.entries()) == 2


def test_a_single_address_can_be_excluded(nat: Translator, family: Family) -> None:
    nat.exclude(family.peer)
    assert nat.leave(request(family, "udp")).untouched
    assert nat.leave(build(family, family.pod, family.other_peer, UDP, 1, 2)).packet.source == family.node


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_options_and_extension_headers_are_no_obstacle(
    nat: Translator, family: Family, protocol: str
) -> None:
    for size in (8, 24, 40):
        # Hop-by-hop options that are padding; IPv4: no-operation.
        extra = bytes((number(family, protocol), size // 8 - 1, 1, size - 4)) + bytes(size - 4)
        if not family.v6:
            extra = b"\1" * size
        sent = replace(request(family, protocol), extra=extra)
        left = nat.leave(sent).packet
        assert (left.source, left.extra, left.transport_sum()) == (family.node, extra, 0)
        assert nat.arrive(replace(left.answered(), extra=extra)).packet == replace(
            sent.answered(), extra=extra
        )


@pytest.mark.parametrize("protocol", ["tcp", "udp", "echo"])
def test_a_sum_over_the_whole_packet_stays_right(nat: Translator, family: Family, protocol: str) -> None:
    """CHECKSUM_COMPLETE, what some devices give to received packets."""
    sent = request(family, protocol)
    with summed():
        left = nat.leave(sent, complete=True).packet
        nat.arrive(left.answered(), complete=True)


@pytest.mark.parametrize("protocol", ["tcp", "udp", "echo"])
def test_fragments_go_by_the_ports_of_the_first(nat: Translator, family: Family, protocol: str) -> None:
    data = random.randbytes(3000)

    def pieces(packet: Packet) -> list[Packet]:
        cuts = [(0, 1200), (1200, 2400), (2400, len(packet.payload))]
        return [
            replace(packet, payload=packet.payload[start:end], fragment=(start, end < len(packet.payload)))
            for start, end in cuts
        ]

    def together(parts: list[Packet]) -> Packet:
        return replace(parts[0], payload=b"".join(part.payload for part in parts), fragment=None)

    sent = request(family, protocol, data=data)
    parts = [nat.leave(piece).packet for piece in pieces(sent)]
    assert [part.fragment for part in parts] == [piece.fragment for piece in pieces(sent)]
    assert {part.source for part in parts} == {family.node}
    # Later fragments are data: not a byte of them may change.
    assert [part.payload for part in parts[1:]] == [piece.payload for piece in pieces(sent)[1:]]
    left = together(parts)
    assert left.transport_sum() == 0
    answer = replace(left.answered(data), ident=99)
    back = together([nat.arrive(piece).packet for piece in pieces(answer)])
    assert back == replace(sent.answered(data), ident=99)
    assert len(nat.entries()) == 2


def test_a_trailer_of_the_frame_is_left_alone(nat: Translator, family: Family) -> None:
    outcome = nat.leave(request(family, "udp").frame() + b"trailer")
    assert outcome.frame.endswith(b"trailer")
    assert outcome.packet.transport_sum() == 0


def test_the_frame_checks_that_these_tests_rely_on_can_fail(family: Family) -> None:
    packet = request(family, "tcp")
    assert packet.transport_sum() == 0 and take_apart(packet.frame()) == packet
    assert replace(packet, source=family.other_pod).transport_sum() != 0
    assert checksum(b"\0\1\xf2\3\xf4\xf5\xf6\xf7") == 0x220D
