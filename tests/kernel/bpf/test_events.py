"""What programs report, to whom, and what of the packet is in it."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from services.loader.bpf import drop_reasons as reason
from services.loader.bpf.events import Event
from services.loader.bpf.layout import Direction
from tests.kernel.bpf.conftest import SOURCES
from tests.kernel.bpf.node import (
    CLIENT,
    CLIENT6,
    CLIENT_ID,
    CLIENT_SUBJECT,
    REMOTE,
    REMOTE6,
    ROUTER,
    ROUTER6,
    WEB,
    WEB6,
    WEB_ID,
    WEB_SUBJECT,
    WORLD,
    WORLD6,
    Node,
    Rule,
    forwarded,
)
from tests.kernel.bpf.packets import ACK, FIN, RST, SYN, TCP, arp, ethernet, icmp_error, tcp, udp
from tests.kernel.bpf.packets6 import error6, icmp6, tcp6, udp6

pytestmark = pytest.mark.kernel


def where(event: Event) -> str:
    """The line of the source that an event names."""
    (path,) = Path(SOURCES).rglob(event.file)
    return path.read_text().splitlines()[event.line - 1]


@pytest.fixture
def traced(node: Node) -> Node:
    node.datapath.want_events(True, trace=True)
    return node


def seen(node: Node) -> list[tuple[str, str, str]]:
    """(kind, point, state) of what has been reported."""
    return [(event.kind, event.point, event.state) for event in node.events()]


@pytest.mark.parametrize(
    ("packet", "source", "destination"),
    [
        (tcp(CLIENT, WEB, 40000, 80, SYN, b"x" * 10), CLIENT, WEB),
        (tcp6(CLIENT6, WEB6, 40000, 80, SYN, b"x" * 10), CLIENT6, WEB6),
    ],
    ids=["ipv4", "ipv6"],
)
def test_a_drop_has_all_that_is_known_of_the_packet(
    node: Node, packet: bytes, source: str, destination: str
) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80, deny=True, cookie=9)], revision=7)
    assert not forwarded(node.leave(node.client, packet))
    (event,) = node.events()
    assert (event.kind, event.verdict, event.reason) == ("drop", "deny", reason.POLICY_DENY)
    assert (event.source, event.source_port) == (source, 40000)
    assert (event.destination, event.destination_port) == (destination, 80)
    assert (event.source_identity, event.destination_identity) == (CLIENT_ID, WEB_ID)
    assert (event.direction, event.endpoint_id) == (Direction.INGRESS, node.web.endpoint_id)
    assert (event.protocol, event.tcp_flags, event.rule_cookie, event.policy_revision) == (TCP, SYN, 9, 7)
    assert (event.length, event.packet) == (len(packet), packet)
    assert "DROP(DROP_POLICY_DENY)" in where(event)
    assert (event.point, event.state) == ("", "")


@pytest.mark.parametrize("size", [0, 1, 41, 42, 43, 44, 2000])
def test_the_first_bytes_are_the_packets(node: Node, size: int) -> None:
    node.policy(WEB_SUBJECT, ingress=[])
    packet = tcp(CLIENT, WEB, 40000, 80, SYN, bytes(i % 251 for i in range(size)))
    assert not forwarded(node.leave(node.client, packet))
    (event,) = node.events()
    assert (event.length, event.packet) == (len(packet), packet[:96])


def test_what_nobody_could_read_is_reported_with_its_bytes(node: Node) -> None:
    packets = {
        arp(1, WEB, ROUTER): reason.INVALID_SIP,
        ethernet(b"\0" * 46, 0x88CC): reason.UNKNOWN_L3,
        tcp(CLIENT, WEB, 1, 80, version=5): reason.INVALID,
        icmp6(CLIENT6, WEB6, 200, rest=bytes(30)): reason.UNKNOWN_ICMP6_TYPE,
    }
    for packet, expected in packets.items():
        assert not forwarded(node.leave(node.client, packet))
        (event,) = node.events()
        assert (event.reason, event.packet) == (expected, packet[:96])
        assert (event.endpoint_id, event.source_identity) == (node.client.endpoint_id, CLIENT_ID)


def test_what_a_stack_says_unasked_is_counted_and_not_reported(node: Node) -> None:
    for packet in (arp(1, CLIENT, CLIENT), icmp6(CLIENT6, "ff02::2", 133, rest=bytes(12), hops=255)):
        assert not forwarded(node.leave(node.client, packet))
    assert node.drops() == {reason.ARP_IGNORED: 1, reason.ND_IGNORED: 1}
    assert node.events() == []


def test_what_only_audit_mode_lets_pass_is_reported_so(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[], egress=[], revision=5, audit=True)
    assert forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, 80)))
    (event,) = node.events()
    assert (event.kind, event.verdict, event.reason, event.allowed) == (
        "verdict",
        "audit",
        reason.POLICY,
        True,
    )
    assert (event.direction, event.endpoint_id) == (Direction.INGRESS, node.web.endpoint_id)
    assert (event.policy_revision, event.rule_cookie) == (5, 0)
    rules = [Rule(CLIENT_ID, TCP, 80, deny=True, cookie=3), Rule(CLIENT_ID, TCP, 81, cookie=4)]
    node.policy(WEB_SUBJECT, ingress=rules, audit=True)
    assert forwarded(node.leave(node.client, tcp6(CLIENT6, WEB6, 1, 80)))
    assert forwarded(node.leave(node.client, tcp6(CLIENT6, WEB6, 1, 81)))
    denied, allowed = node.events()
    assert (denied.verdict, denied.reason, denied.rule_cookie) == ("audit", reason.POLICY_DENY, 3)
    assert (allowed.verdict, allowed.reason, allowed.rule_cookie) == ("allow", 0, 4)
    assert reason.POLICY not in node.drops()


def test_an_established_flow_is_reported_once(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    for flags in (SYN, ACK, ACK, FIN | ACK):
        assert forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, 80, flags)))
    assert seen(node) == [("verdict", "", "")]


def test_without_a_reader_nothing_is_made(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[])
    node.reader.close()
    assert not forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, 80)))
    later: list[Event] = []
    reader = node.datapath.events(later.append)
    assert reader.consume() == 0
    assert not forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, 81)))
    assert reader.consume() == 1
    assert later[0].destination_port == 81
    reader.close()
    assert node.drops() == {reason.POLICY: 2}


def test_only_the_first_of_many_wakes_the_reader(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[])
    poll = select.poll()
    poll.register(node.reader, select.POLLIN)
    assert poll.poll(0) == []
    for port in range(1, 51):
        assert not forwarded(node.leave(node.client, tcp(CLIENT, WEB, port, 80)))
    assert poll.poll(5000)
    # Those that woke nobody are there as well.
    assert [event.source_port for event in node.events()] == list(range(1, 51))


def test_traces_are_off_until_somebody_wants_them(node: Node) -> None:
    assert forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, 80)))
    node.datapath.want_events(True, trace=True)
    assert forwarded(node.leave(node.client, tcp(CLIENT, WEB, 2, 80)))
    node.datapath.want_events(True)
    assert forwarded(node.leave(node.client, tcp(CLIENT, WEB, 3, 80)))
    assert [(event.kind, event.source_port) for event in node.events()] == [("trace", 2)]


@pytest.mark.parametrize(
    ("source", "destination", "point"),
    [
        (CLIENT, WEB, "to-endpoint"),
        (CLIENT6, WEB6, "to-endpoint"),
        (CLIENT, REMOTE, "to-overlay"),
        (CLIENT6, REMOTE6, "to-overlay"),
        (CLIENT, ROUTER, "to-host"),
        (CLIENT6, ROUTER6, "to-host"),
        (CLIENT, WORLD, "to-network"),
        (CLIENT6, WORLD6, "to-network"),
    ],
)
def test_a_trace_tells_where_a_new_flow_goes(traced: Node, source: str, destination: str, point: str) -> None:
    packet = (tcp6 if ":" in source else tcp)(source, destination, 1, 80)
    assert forwarded(traced.leave(traced.client, packet))
    (event,) = traced.events()
    assert (event.kind, event.point, event.state) == ("trace", point, "new")
    assert (event.verdict, event.reason, event.packet) == ("allow", 0, packet[:96])
    assert event.source_identity == CLIENT_ID
    # Of the rest nothing is reported.
    assert forwarded(traced.leave(traced.client, packet))
    assert traced.events() == []


@pytest.mark.parametrize("last", [FIN | ACK, RST, RST | ACK])
def test_a_trace_tells_of_the_end_of_a_flow(traced: Node, last: int) -> None:
    for flags in (SYN, ACK):
        assert forwarded(traced.leave(traced.client, tcp6(CLIENT6, WEB6, 1, 80, flags)))
    assert forwarded(traced.leave(traced.web, tcp6(WEB6, CLIENT6, 80, 1, last)))
    assert seen(traced) == [("trace", "to-endpoint", "new"), ("trace", "to-endpoint", "closing")]


def test_a_trace_tells_of_errors_in_a_flow(traced: Node) -> None:
    asked, asked6 = udp(CLIENT, WEB, 5000, 53), udp6(CLIENT6, WEB6, 5000, 53)
    assert forwarded(traced.leave(traced.client, asked))
    assert forwarded(traced.leave(traced.client, asked6))
    traced.events()
    assert forwarded(traced.leave(traced.web, icmp_error(WEB, asked)))
    assert forwarded(traced.leave(traced.web, error6(WEB6, asked6)))
    assert seen(traced) == [("trace", "to-endpoint", "related")] * 2


def test_a_trace_comes_after_the_verdicts_and_not_for_a_drop(traced: Node) -> None:
    traced.policy(CLIENT_SUBJECT, egress=[Rule(WEB_ID, TCP, 80)])
    traced.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    assert forwarded(traced.leave(traced.client, tcp(CLIENT, WEB, 1, 80)))
    assert not forwarded(traced.leave(traced.client, tcp(CLIENT, WEB, 1, 81)))
    assert [event.kind for event in traced.events()] == ["verdict", "verdict", "trace", "drop"]


def test_counters_of_drops_are_by_reason_and_direction(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[])
    node.policy(CLIENT_SUBJECT, egress=[Rule(WEB_ID)])
    size = len(tcp(CLIENT, WEB, 1, 80))
    for _ in range(3):
        assert not forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, 80)))
    for _ in range(2):
        assert not forwarded(node.leave(node.client, tcp6(CLIENT6, REMOTE6, 1, 80)))
    counts = {(m.reason, m.direction): (m.packets, m.bytes) for m in node.datapath.metrics() if m.reason}
    assert counts == {
        (reason.POLICY, Direction.INGRESS): (3, 3 * size),
        (reason.POLICY, Direction.EGRESS): (2, 2 * (size + 20)),
    }
