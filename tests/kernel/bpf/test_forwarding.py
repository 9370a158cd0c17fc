"""Where packets go and what is done to them on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.loader.bpf import drop_reasons as reason
from services.loader.bpf.events import Event
from services.loader.bpf.layout import IpcacheValue, mac_bytes
from services.loader.bpf.testrun import TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, run_program
from tests.kernel.bpf.node import (
    CLIENT,
    CLIENT_ID,
    CLIENT_SUBJECT,
    NODE,
    OTHER_NODE,
    OTHER_ROUTER,
    REMOTE,
    ROUTER,
    WEB,
    WEB_ID,
    WEB_SUBJECT,
    WORLD,
    Node,
    Rule,
    forwarded,
)
from tests.kernel.bpf.packets import (
    ACK,
    HOST_MAC,
    POD_MAC,
    SYN,
    TCP,
    arp,
    echo,
    ethernet,
    icmp_error,
    ip_header_is_sound,
    tcp,
    ttl,
    udp,
)

pytestmark = pytest.mark.kernel


def mark_of(identity: int) -> int:
    return 0x0F00 | (identity & 0xFFFF) << 16 | identity >> 16


@pytest.mark.parametrize("hops", [2, 64, 255])
def test_a_local_packet_gets_new_addresses_and_one_hop_less(node: Node, hops: int) -> None:
    # Many identifications: the checksum must come out right for each, carries included.
    for ident in (0, 1, 0x00FF, 0x7FFF, 0xFEFF, 0xFFFF, *range(0x3000, 0x3040)):
        sent = udp(CLIENT, WEB, 5000, 53, ttl=hops, ident=ident)
        run = node.leave(node.client, sent)
        assert run.action == TC_ACT_REDIRECT
        assert run.packet[:12] == mac_bytes(node.web.pod_mac) + mac_bytes(node.web.host_mac)
        assert ttl(run.packet) == hops - 1
        assert ip_header_is_sound(run.packet)
        assert run.packet[26:] == sent[26:]
        assert run.mark == 0


def test_a_spent_ttl_goes_to_the_stack_for_an_answer(node: Node) -> None:
    run = node.leave(node.client, udp(CLIENT, WEB, 5000, 53, ttl=1))
    assert (run.action, ttl(run.packet)) == (TC_ACT_OK, 1)
    error = icmp_error(ROUTER, udp(CLIENT, WEB, 5000, 53), kind=11, code=0)
    assert forwarded(node.arrive(node.client, error))


def test_a_packet_to_another_node_is_redirected_to_the_overlay(node: Node) -> None:
    sent = tcp(CLIENT, REMOTE, 1, 80)
    run = node.leave(node.client, sent)
    assert (run.action, run.packet, run.mark) == (TC_ACT_REDIRECT, sent, 0)


def test_without_an_overlay_a_tunnel_leads_nowhere(node: Node) -> None:
    node.datapath.ipcache_put([(REMOTE, IpcacheValue(1003))])
    assert node.leave(node.client, tcp(CLIENT, REMOTE, 1, 80)).action == TC_ACT_OK


def test_a_prefix_can_lead_into_the_overlay(node: Node) -> None:
    node.datapath.ipcache_put([("10.244.2.0/24", IpcacheValue(2, OTHER_NODE))])
    for _ in range(2):
        assert node.leave(node.client, tcp(CLIENT, "10.244.2.77", 1, 80, ACK)).action == TC_ACT_REDIRECT


def test_the_longest_prefix_and_the_exact_address_win(node: Node) -> None:
    node.datapath.ipcache_put(
        [("0.0.0.0/0", IpcacheValue(70)), ("198.51.0.0/16", IpcacheValue(71)), (WORLD, IpcacheValue(72))]
    )
    for address, identity in ((WORLD, 72), ("198.51.0.1", 71), ("9.9.9.9", 70)):
        node.policy(CLIENT_SUBJECT, egress=[Rule(identity)])
        assert forwarded(node.leave(node.client, tcp(CLIENT, address, 1, 80)))


@pytest.mark.parametrize("address", [NODE, ROUTER])
def test_the_nodes_own_addresses_are_the_host(node: Node, address: str) -> None:
    node.policy(CLIENT_SUBJECT, egress=[Rule(1, TCP, 80)])
    run = node.leave(node.client, tcp(CLIENT, address, 1, 80))
    assert (run.action, run.mark) == (TC_ACT_OK, mark_of(CLIENT_ID))
    assert not forwarded(node.leave(node.client, tcp(CLIENT, address, 1, 81)))
    # Whatever the cluster calls this node's address.
    node.datapath.ipcache_put([(address, IpcacheValue(6))])
    assert forwarded(node.leave(node.client, tcp(CLIENT, address, 2, 80)))


def test_another_nodes_addresses_are_remote_nodes(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, egress=[Rule(6)])
    assert node.leave(node.client, tcp(CLIENT, OTHER_NODE, 1, 80)).action == TC_ACT_OK
    assert node.leave(node.client, tcp(CLIENT, OTHER_ROUTER, 1, 80)).action == TC_ACT_REDIRECT


def test_a_packet_to_the_world_goes_to_the_stack_with_its_identity(node: Node) -> None:
    run = node.leave(node.client, tcp(CLIENT, WORLD, 1, 80))
    assert (run.action, run.mark) == (TC_ACT_OK, mark_of(CLIENT_ID))


def test_the_host_reaches_its_pods_whatever_their_policy(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(1, deny=True)], egress=[])
    sent = tcp(ROUTER, WEB, 1, 80)
    run = node.host_sends(sent)
    assert (run.action, run.mark) == (TC_ACT_REDIRECT, mark_of(1))
    assert run.packet[:12] == mac_bytes(node.web.pod_mac) + mac_bytes(node.web.host_mac)
    assert forwarded(node.arrive(node.web, run.packet, mark=run.mark))
    answer = node.leave(node.web, tcp(WEB, ROUTER, 80, 1, SYN | ACK))
    assert answer.action == TC_ACT_OK
    assert not forwarded(node.leave(node.web, tcp(WEB, ROUTER, 80, 2, SYN)))


def test_the_host_reaches_pods_without_a_policy_row(node: Node) -> None:
    node.datapath.subject_delete(WEB_SUBJECT)
    assert forwarded(node.arrive(node.web, tcp(ROUTER, WEB, 1, 80)))
    assert forwarded(node.leave(node.web, tcp(WEB, ROUTER, 80, 1, ACK)))
    assert forwarded(node.leave(node.web, tcp(WEB, NODE, 5, 10250)))


def test_a_policy_change_does_not_cut_the_host_off(node: Node) -> None:
    assert forwarded(node.arrive(node.web, tcp(ROUTER, WEB, 1, 80)))
    node.policy(WEB_SUBJECT, ingress=[], egress=[])
    assert forwarded(node.leave(node.web, tcp(WEB, ROUTER, 80, 1, ACK)))
    assert forwarded(node.arrive(node.web, tcp(ROUTER, WEB, 1, 80, ACK)))


def test_an_answer_from_the_host_passes(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[], egress=[Rule(1, TCP, 443)])
    assert forwarded(node.leave(node.web, tcp(WEB, ROUTER, 1, 443)))
    assert forwarded(node.arrive(node.web, tcp(ROUTER, WEB, 443, 1, SYN | ACK)))


def test_what_only_claims_to_be_the_host_is_the_world(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(1)])
    claimed = tcp(ROUTER, WEB, 1, 80)
    run = node.host_sends(claimed, ingress_ifindex=node.host_ifindex)
    assert run.mark == mark_of(2)
    assert not forwarded(node.arrive(node.web, claimed, ingress_ifindex=node.host_ifindex))
    assert node.drops() == {reason.POLICY: 1}


def test_the_world_is_judged_as_the_world(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(2, TCP, 80)])
    assert forwarded(node.arrive(node.web, tcp(WORLD, WEB, 1, 80), ingress_ifindex=node.host_ifindex))
    assert not forwarded(node.arrive(node.web, tcp(WORLD, WEB, 1, 81), ingress_ifindex=node.host_ifindex))
    run = node.host_sends(tcp(WORLD, WEB, 1, 80), ingress_ifindex=node.host_ifindex)
    assert (run.action, run.mark) == (TC_ACT_REDIRECT, mark_of(2))


def test_the_worlds_answers_pass(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, ingress=[])
    assert forwarded(node.leave(node.client, tcp(CLIENT, WORLD, 1, 80)))
    for _ in range(2):
        answer = tcp(WORLD, CLIENT, 80, 1, ACK)
        assert forwarded(node.arrive(node.client, answer, ingress_ifindex=node.host_ifindex))


def test_a_pods_address_coming_in_by_a_device_is_forged(node: Node) -> None:
    forged = tcp(REMOTE, WEB, 1, 80)
    assert not forwarded(node.host_sends(forged, ingress_ifindex=node.host_ifindex))
    assert not forwarded(node.arrive(node.web, forged, ingress_ifindex=node.host_ifindex))
    assert not forwarded(node.host_sends(tcp(CLIENT, WEB, 1, 80), ingress_ifindex=node.host_ifindex))
    assert node.drops() == {reason.INVALID_SIP: 3}


def test_the_mark_carries_a_local_identity_through_the_stack(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID)])
    packet = tcp(CLIENT, WEB, 1, 80)
    run = node.host_sends(packet, ingress_ifindex=node.host_ifindex, mark=mark_of(CLIENT_ID))
    assert (run.action, run.mark) == (TC_ACT_REDIRECT, mark_of(CLIENT_ID))
    assert forwarded(node.arrive(node.web, packet, ingress_ifindex=node.host_ifindex, mark=run.mark))


def test_the_mark_holds_24_bits_of_identity(node: Node) -> None:
    identity = 0xABCDEF
    node.policy(WEB_SUBJECT, ingress=[Rule(identity)])
    packet = tcp(WORLD, WEB, 1, 80)
    assert forwarded(node.arrive(node.web, packet, ingress_ifindex=node.host_ifindex, mark=mark_of(identity)))
    assert not forwarded(node.arrive(node.web, tcp(WORLD, WEB, 2, 80), ingress_ifindex=node.host_ifindex))


def test_the_host_reaches_other_nodes_pods_through_the_overlay(node: Node) -> None:
    assert node.host_sends(tcp(ROUTER, REMOTE, 1, 80)).action == TC_ACT_REDIRECT


def test_nobody_has_the_address(node: Node) -> None:
    assert node.host_sends(tcp(ROUTER, "10.244.1.200", 1, 80)).action == TC_ACT_SHOT
    assert not forwarded(node.arrive(node.web, tcp(ROUTER, CLIENT, 1, 80)))
    assert node.drops() == {reason.NO_LXC: 2}


def test_a_forged_source_is_dropped(node: Node) -> None:
    for source in (WEB, REMOTE, WORLD, ROUTER, "0.0.0.0"):
        assert not forwarded(node.leave(node.client, tcp(source, REMOTE, 1, 80)))
    assert node.drops() == {reason.INVALID_SIP: 5}
    assert node.datapath.conntrack() == []
    event = node.events()[0]
    assert (event.source, event.source_identity, event.endpoint_id) == (WEB, CLIENT_ID, 12)


def test_arp_is_answered_with_the_devices_mac(node: Node) -> None:
    for target in (ROUTER, WEB, WORLD):
        run = node.leave(node.client, arp(1, CLIENT, target))
        assert run.action == TC_ACT_REDIRECT
        expected = arp(2, target, CLIENT, sender_mac=node.client.host_mac, target_mac=POD_MAC)
        assert run.packet[:42] == mac_bytes(POD_MAC) + expected[6:]
    # The answer leaves by the device's egress, where to_container stands.
    assert node.arrive(node.client, expected).action == TC_ACT_OK


def test_arp_that_wants_no_answer_gets_none(node: Node) -> None:
    assert not forwarded(node.leave(node.client, arp(1, CLIENT, CLIENT)))
    assert not forwarded(node.leave(node.client, arp(1, "0.0.0.0", CLIENT)))
    assert not forwarded(node.leave(node.client, arp(2, CLIENT, ROUTER)))
    assert node.drops() == {reason.ARP_IGNORED: 3}
    assert not forwarded(node.leave(node.client, arp(1, WEB, ROUTER)))
    assert node.drops()[reason.INVALID_SIP] == 1


def test_the_hosts_arp_is_answered_towards_the_host(node: Node) -> None:
    run = node.host_sends(arp(1, ROUTER, WEB, sender_mac=HOST_MAC))
    assert run.action == TC_ACT_REDIRECT
    assert run.packet[:6] == mac_bytes(HOST_MAC)


def test_what_is_neither_ip_nor_arp_is_dropped_and_counted(node: Node) -> None:
    packet = ethernet(b"\0" * 46, 0x88CC)
    assert not forwarded(node.leave(node.client, packet))
    assert not forwarded(node.arrive(node.client, packet))
    assert node.drops() == {reason.UNKNOWN_L3: 2}
    event = node.events()[0]
    assert (event.source, event.destination, event.length, event.packet) == ("", "", 60, packet)


def test_a_device_that_is_no_endpoint_passes_nothing(node: Node) -> None:
    node.datapath.detach_endpoint(node.client.ifindex, CLIENT)
    assert not forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, 80)))
    assert not forwarded(node.arrive(node.client, tcp(ROUTER, CLIENT, 1, 80)))
    assert node.drops() == {reason.NO_ENDPOINT_ROW: 2}


def test_detaching_leaves_an_address_that_has_moved_on(node: Node) -> None:
    node.datapath.attach_endpoint(replace(node.web, ipv4=CLIENT, endpoint_id=50))
    node.datapath.detach_endpoint(node.client.ifindex, CLIENT)
    run = node.host_sends(tcp(ROUTER, CLIENT, 1, 80))
    assert run.packet[:6] == mac_bytes(node.web.pod_mac)


def test_what_comes_out_of_the_overlay_needs_a_tunnel_key(node: Node) -> None:
    fd = node.datapath.program_fd("from_overlay")
    vxlan = node.datapath.config.vxlan_ifindex
    assert run_program(fd, tcp(REMOTE, WEB, 1, 80), ifindex=vxlan).action == TC_ACT_SHOT
    assert node.drops() == {reason.NO_TUNNEL_KEY: 1}


def test_metrics_count_what_is_forwarded_per_direction(node: Node) -> None:
    assert forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, 80)))
    assert forwarded(node.leave(node.client, tcp(CLIENT, REMOTE, 1, 80)))
    assert forwarded(node.arrive(node.client, echo(ROUTER, CLIENT, 1)))
    counts = {m.direction.name: (m.packets, m.bytes) for m in node.datapath.metrics()}
    assert counts == {"EGRESS": (2, 108), "INGRESS": (2, 54 + len(echo(ROUTER, CLIENT, 1)))}


def test_events_that_find_no_room_are_counted(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[])
    fd = node.datapath.program_fd("from_container")
    run_program(fd, tcp(CLIENT, WEB, 1, 80), ifindex=node.client.ifindex, repeat=20000)
    drops = node.drops()
    assert drops[reason.POLICY] == 20000
    assert len(node.events()) + drops[reason.EVENT_LOST] == 20000
    assert drops[reason.EVENT_LOST] > 0


def test_a_reader_takes_events_in_portions(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[])
    for port in range(10):
        assert not forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, port)))
    ports: list[int] = []
    reader = node.datapath.events(lambda event: ports.append(event.destination_port))
    assert [reader.consume(limit=4) for _ in range(4)] == [4, 4, 2, 0]
    assert ports == list(range(10))
    reader.close()


def test_what_a_reader_raises_comes_out_and_loses_one_event(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[])
    for port in range(3):
        assert not forwarded(node.leave(node.client, tcp(CLIENT, WEB, 1, port)))
    ports: list[int] = []

    def take(event: Event) -> None:
        if event.destination_port == 1:
            raise LookupError("not this one")
        ports.append(event.destination_port)

    reader = node.datapath.events(take)
    with pytest.raises(LookupError):
        reader.consume()
    assert reader.consume() == 1
    assert ports == [0, 2]
    reader.close()


def test_identities_of_both_ends_are_in_an_event(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, egress=[Rule(WEB_ID)])
    assert not forwarded(node.leave(node.client, tcp(CLIENT, REMOTE, 1, 80)))
    (event,) = node.events()
    assert (event.source_identity, event.destination_identity) == (CLIENT_ID, 1003)
