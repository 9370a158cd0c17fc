"""IPv6, where it is not IPv4 with longer addresses: neighbours, extension headers, ICMPv6."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from services.loader.bpf import drop_reasons as reason
from services.loader.bpf.layout import IpcacheValue, ipv6_bytes, mac_bytes
from services.loader.bpf.testrun import TC_ACT_OK, TC_ACT_REDIRECT, run_program
from tests.kernel.bpf.node import (
    CLIENT6,
    CLIENT_ID,
    CLIENT_SUBJECT,
    NODE6,
    OTHER_NODE,
    REMOTE6,
    REMOTE_ID,
    ROUTER6,
    WEB6,
    WEB_ID,
    WEB_SUBJECT,
    WORLD6,
    Node,
    Rule,
    forwarded,
)
from tests.kernel.bpf.packets import (
    ACK,
    POD_MAC,
    SYN,
    TCP,
    UDP,
    tcp_segment,
    udp_datagram,
)
from tests.kernel.bpf.packets6 import (
    ADVERTISEMENT,
    FRAGMENT,
    HOP_BY_HOP,
    ICMPV6,
    NOTHING,
    OPTIONS,
    PADDING,
    ROUTING,
    Ip6,
    echo6,
    error6,
    fragment_header,
    hops,
    icmp6,
    is_sound,
    solicitation,
    tcp6,
    udp6,
)

pytestmark = pytest.mark.kernel

LINK_LOCAL = "fe80::ff:fe00:a"


def dropped_for(node: Node, packet: bytes) -> int | None:
    """The reason for which the client's packet is dropped, None if it passes."""
    before = node.drops()
    if forwarded(node.leave(node.client, packet)):
        return None
    (found,) = [key for key, count in node.drops().items() if count != before.get(key, 0)]
    return found


@pytest.mark.parametrize("left", [2, 64, 255])
def test_a_local_packet_gets_new_addresses_and_one_hop_less(node: Node, left: int) -> None:
    sent = tcp6(CLIENT6, WEB6, 40000, 80, hops=left)
    run = node.leave(node.client, sent)
    assert run.action == TC_ACT_REDIRECT
    assert run.packet[:12] == mac_bytes(node.web.pod_mac) + mac_bytes(node.web.host_mac)
    assert hops(run.packet) == left - 1
    assert (run.packet[12:21], run.packet[22:]) == (sent[12:21], sent[22:])


def test_a_spent_hop_limit_is_the_stacks_to_tell(node: Node) -> None:
    run = node.leave(node.client, tcp6(CLIENT6, WEB6, 40000, 80, hops=1))
    assert run.action == TC_ACT_OK
    assert hops(run.packet) == 1


def test_pods_elsewhere_the_node_and_the_world_are_reached(node: Node) -> None:
    assert node.leave(node.client, tcp6(CLIENT6, REMOTE6, 1, 80)).action == TC_ACT_REDIRECT
    for address in (NODE6, ROUTER6, WORLD6):
        run = node.leave(node.client, tcp6(CLIENT6, address, 1, 80))
        assert (run.action, run.mark) == (TC_ACT_OK, 0x0F00 | CLIENT_ID << 16), address
    assert node.drops() == {}


def test_each_end_judges(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80, cookie=77)], revision=9)
    assert dropped_for(node, tcp6(CLIENT6, WEB6, 1, 80)) is None
    (event,) = node.events()
    assert (event.kind, event.verdict, event.rule_cookie, event.policy_revision) == (
        "verdict",
        "allow",
        77,
        9,
    )
    assert (event.source, event.destination, event.destination_port) == (CLIENT6, WEB6, 80)
    assert dropped_for(node, tcp6(CLIENT6, WEB6, 1, 81)) == reason.POLICY
    node.policy(CLIENT_SUBJECT, egress=[Rule(REMOTE_ID, UDP, 53)])
    assert dropped_for(node, udp6(CLIENT6, REMOTE6, 5000, 53)) is None
    assert dropped_for(node, udp6(CLIENT6, REMOTE6, 5000, 54)) == reason.POLICY
    assert dropped_for(node, udp6(CLIENT6, WORLD6, 5000, 53)) == reason.POLICY


def test_a_flow_is_kept_and_answered(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, ingress=[])
    assert dropped_for(node, tcp6(CLIENT6, WEB6, 40000, 80, SYN)) is None
    assert forwarded(node.leave(node.web, tcp6(WEB6, CLIENT6, 80, 40000, SYN | ACK)))
    assert not forwarded(node.leave(node.web, tcp6(WEB6, CLIENT6, 80, 40001, SYN | ACK)))
    (flow,) = node.datapath.conntrack()
    assert (flow.source, flow.source_port, flow.destination, flow.destination_port) == (
        CLIENT6, 40000, WEB6, 80,
    )  # fmt: skip
    assert (flow.protocol, flow.packets, flow.reply_seen) == (TCP, (1, 1), True)
    assert (flow.egress.identity, flow.ingress.identity) == (WEB_ID, CLIENT_ID)
    assert node.datapath.conntrack_purge([WEB6]) == 1
    assert node.datapath.conntrack_gc(time.monotonic()).seen == 0


def test_both_families_of_an_endpoint_are_under_its_policy(node: Node) -> None:
    """Prefixes of either family, in one policy."""
    node.datapath.ipcache_put([("2001:db8::/32", IpcacheValue(1 << 24)), ("2001:db8::7", IpcacheValue(2))])
    node.policy(CLIENT_SUBJECT, egress=[Rule(1 << 24)])
    assert dropped_for(node, tcp6(CLIENT6, "2001:db8::8", 1, 80)) is None
    # The whole address goes before the prefix.
    assert dropped_for(node, tcp6(CLIENT6, WORLD6, 1, 80)) == reason.POLICY


def test_a_forged_source_is_dropped(node: Node) -> None:
    for source in (WEB6, REMOTE6, WORLD6, ROUTER6, LINK_LOCAL, "::"):
        assert dropped_for(node, tcp6(source, REMOTE6, 1, 80)) == reason.INVALID_SIP, source
    assert node.datapath.conntrack() == []
    event = node.events()[0]
    assert (event.source, event.source_identity, event.endpoint_id) == (WEB6, CLIENT_ID, 12)


def test_an_endpoint_without_an_address_sends_none(node: Node) -> None:
    node.datapath.update_endpoint(replace(node.client, ipv6=""))
    for source in (CLIENT6, "::"):
        assert dropped_for(node, tcp6(source, WEB6, 1, 80)) == reason.INVALID_SIP


@pytest.mark.parametrize("source", [CLIENT6, LINK_LOCAL])
@pytest.mark.parametrize("target", [ROUTER6, WEB6, WORLD6])
def test_who_asks_for_a_neighbour_gets_the_devices_mac(node: Node, source: str, target: str) -> None:
    run = node.leave(node.client, solicitation(source, target, POD_MAC))
    assert run.action == TC_ACT_REDIRECT
    expected = icmp6(
        target, source, ADVERTISEMENT, hops=255,
        rest=b"\xe0\0\0\0" + ipv6_bytes(target) + b"\2\1" + mac_bytes(node.client.host_mac),
    )  # fmt: skip
    assert run.packet[14:] == expected[14:]
    assert is_sound(run.packet)
    assert run.packet[:12] == mac_bytes(node.client.pod_mac) + mac_bytes(node.client.host_mac)
    # The answer leaves by the device's egress, where to_container stands.
    assert node.arrive(node.client, run.packet).action == TC_ACT_OK


def test_what_wants_no_answer_gets_none(node: Node) -> None:
    quiet = [
        solicitation(CLIENT6, CLIENT6, POD_MAC),
        # Is the address taken? Nobody else has it.
        solicitation("::", CLIENT6, POD_MAC),
        icmp6(CLIENT6, "ff02::2", 133, rest=bytes(12), hops=255),
        icmp6(CLIENT6, WEB6, ADVERTISEMENT, rest=bytes(20), hops=255),
        icmp6(CLIENT6, "ff02::16", 143, rest=bytes(12), hops=1),
    ]
    for packet in quiet:
        assert dropped_for(node, packet) == reason.ND_IGNORED, packet.hex()
    assert dropped_for(node, solicitation(WEB6, ROUTER6, POD_MAC)) == reason.INVALID_SIP
    forged = bytearray(solicitation(CLIENT6, ROUTER6, POD_MAC))
    forged[21] = 254  # came through a router
    assert dropped_for(node, bytes(forged)) == reason.INVALID


def test_the_nodes_own_discovery_passes(node: Node) -> None:
    for packet in (solicitation(ROUTER6, CLIENT6, POD_MAC), solicitation(LINK_LOCAL, CLIENT6, POD_MAC)):
        assert node.arrive(node.client, packet).action == TC_ACT_OK


@pytest.mark.parametrize("kind", [0, 5, 100, 127, 138, 144, 155, 255])
def test_other_icmpv6_is_dropped(node: Node, kind: int) -> None:
    assert dropped_for(node, icmp6(CLIENT6, WEB6, kind, rest=bytes(40))) == reason.UNKNOWN_ICMP6_TYPE


def test_pings_are_judged_by_their_type(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, ICMPV6, 128)])
    node.policy(CLIENT_SUBJECT, ingress=[])
    assert dropped_for(node, echo6(CLIENT6, WEB6, 7)) is None
    assert forwarded(node.leave(node.web, echo6(WEB6, CLIENT6, 7, reply=True)))
    assert not forwarded(node.leave(node.web, echo6(WEB6, CLIENT6, 8, reply=True)))
    assert not forwarded(node.leave(node.web, echo6(WEB6, CLIENT6, 7)))
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, ICMPV6, 8), Rule(CLIENT_ID, 1, 128)])
    assert dropped_for(node, echo6(CLIENT6, WEB6, 9)) == reason.POLICY


def test_an_error_about_a_flow_passes(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, ingress=[])
    asked = udp6(CLIENT6, WEB6, 5000, 53)
    assert dropped_for(node, asked) is None
    assert forwarded(node.leave(node.web, error6(WEB6, asked)))
    assert not forwarded(node.leave(node.web, error6(WEB6, udp6(CLIENT6, WEB6, 5001, 53))))
    assert node.drops() == {reason.UNKNOWN_CT: 1}


@pytest.mark.parametrize(
    "extensions",
    [
        [(HOP_BY_HOP, PADDING[:7])],
        [(OPTIONS, PADDING[:7])],
        [(HOP_BY_HOP, PADDING[:7]), (OPTIONS, PADDING[:7]), (ROUTING, b"\0\2\0" + bytes(4))],
        [(OPTIONS, PADDING[:7])] * 6,
    ],
)
def test_extension_headers_are_no_obstacle(node: Node, extensions: list[tuple[int, bytes]]) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    assert dropped_for(node, tcp6(CLIENT6, WEB6, 1, 80, extensions=extensions)) is None
    assert dropped_for(node, tcp6(CLIENT6, WEB6, 1, 81, extensions=extensions)) == reason.POLICY


@pytest.mark.parametrize(
    "packet",
    [
        tcp6(CLIENT6, WEB6, 1, 80, extensions=[(OPTIONS, PADDING[:7])] * 7),
        tcp6(CLIENT6, WEB6, 1, 80, extensions=[(ROUTING, b"\0\0\0" + bytes(4))]),
        tcp6(CLIENT6, WEB6, 1, 80, extensions=[fragment_header(0, more=True), fragment_header(0, more=True)]),
        Ip6(CLIENT6, WEB6, NOTHING).frame(b""),
        # Longer than the payload.
        Ip6(CLIENT6, WEB6, HOP_BY_HOP).frame(b"\6\4" + bytes(14)),
        Ip6(CLIENT6, WEB6, FRAGMENT).frame(b"\6\0\0\0"),
    ],
)
def test_extension_headers_that_lead_astray_are_dropped(node: Node, packet: bytes) -> None:
    assert dropped_for(node, packet) == reason.INVALID_EXTHDR


@pytest.mark.parametrize(
    "packet",
    [
        Ip6(CLIENT6, WEB6, UDP, version=4).frame(udp_datagram(1, 2)),
        Ip6(CLIENT6, WEB6, UDP, length=500).frame(udp_datagram(1, 2)),
    ],
)
def test_a_wrong_header_is_dropped(node: Node, packet: bytes) -> None:
    assert dropped_for(node, packet) == reason.INVALID


def test_a_short_transport_header_is_dropped(node: Node) -> None:
    for protocol, segment in (
        (TCP, tcp_segment(1, 80, SYN)),
        (UDP, udp_datagram(1, 2, b"")),
        (ICMPV6, bytes(8)),
    ):
        for size in range(len(segment)):
            # Padding of the frame is no part of the packet.
            packet = Ip6(CLIENT6, WEB6, protocol).frame(segment[:size]) + bytes(40)
            assert dropped_for(node, packet) == reason.CT_INVALID_HDR, (protocol, size)


def test_later_fragments_follow_the_first(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, UDP, 53)])
    for port, verdict in ((53, None), (54, reason.POLICY)):
        whole = udp_datagram(5000, port, b"x" * 40)
        for offset, piece in ((0, whole[:24]), (3, whole[24:])):
            header = fragment_header(offset, more=not offset, ident=port)
            packet = Ip6(CLIENT6, WEB6, UDP, extensions=[header]).frame(piece)
            assert dropped_for(node, packet) == verdict, (port, offset)
    alone = Ip6(CLIENT6, WEB6, UDP, extensions=[fragment_header(3, more=False, ident=9)]).frame(bytes(24))
    assert dropped_for(node, alone) == reason.FRAG_NOT_FOUND


def test_the_stack_hands_over_for_an_endpoint(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[])
    assert node.arrive(node.web, tcp6(ROUTER6, WEB6, 1, 80)).action == TC_ACT_OK
    other = node.client.ifindex
    assert not forwarded(node.arrive(node.web, tcp6(WORLD6, WEB6, 1, 80), ingress_ifindex=other))
    assert not forwarded(node.arrive(node.web, tcp6(ROUTER6, CLIENT6, 1, 80)))
    assert node.drops() == {reason.POLICY: 1, reason.NO_LXC: 1}


def test_the_host_reaches_pods_here_and_elsewhere(node: Node) -> None:
    for address in (WEB6, REMOTE6):
        assert node.host_sends(tcp6(ROUTER6, address, 1, 80)).action == TC_ACT_REDIRECT
    assert not forwarded(node.host_sends(tcp6(ROUTER6, "fd00:244:1::99", 1, 80)))
    assert node.drops() == {reason.NO_LXC: 1}


def test_what_comes_out_of_the_overlay_needs_a_tunnel_key(node: Node) -> None:
    fd, vxlan = node.datapath.program_fd("from_overlay"), node.datapath.config.vxlan_ifindex
    assert not forwarded(run_program(fd, tcp6(REMOTE6, WEB6, 1, 80), ifindex=vxlan))
    assert node.drops() == {reason.NO_TUNNEL_KEY: 1}
    assert OTHER_NODE in {value.tunnel for value in node.datapath.ipcache().values()}
