"""Conntrack: what answers, what is judged again, what starts over."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from services.loader.bpf import drop_reasons as reason
from services.loader.bpf.layout import CtEntry, EndpointRow, IpcacheValue
from tests.kernel.bpf.node import (
    CLIENT,
    CLIENT_ID,
    CLIENT_SUBJECT,
    OTHER_NODE,
    REMOTE,
    WEB,
    WEB_ID,
    WEB_SUBJECT,
    WORLD,
    Node,
    Rule,
    forwarded,
)
from tests.kernel.bpf.packets import ACK, FIN, RST, SYN, TCP, UDP, echo, icmp_error, tcp, udp

pytestmark = pytest.mark.kernel


def request(node: Node, flags: int = ACK, *, sport: int = 40000) -> bool:
    return forwarded(node.leave(node.client, tcp(CLIENT, WEB, sport, 80, flags)))


def answer(node: Node, flags: int = ACK, *, dport: int = 40000) -> bool:
    return forwarded(node.leave(node.web, tcp(WEB, CLIENT, 80, dport, flags)))


def establish(node: Node) -> None:
    assert request(node, SYN)
    assert answer(node, SYN | ACK)
    assert request(node)
    node.events()


def only_flow(node: Node) -> CtEntry:
    (entry,) = node.datapath.conntrack()
    return entry


def test_an_answer_needs_no_rule(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)], egress=[])
    node.policy(CLIENT_SUBJECT, ingress=[], egress=[Rule(WEB_ID, TCP, 80)])
    assert not answer(node, SYN | ACK)
    establish(node)
    assert not forwarded(node.leave(node.web, tcp(WEB, CLIENT, 80, 40001, ACK)))
    assert not forwarded(node.leave(node.web, tcp(WEB, CLIENT, 81, 40000, ACK)))
    assert not forwarded(node.leave(node.web, udp(WEB, CLIENT, 80, 40000)))


def test_an_entry_tells_who_began_and_what_passed(node: Node) -> None:
    now = time.monotonic()
    establish(node)
    flow = only_flow(node)
    assert (flow.source, flow.source_port, flow.destination, flow.destination_port) == (
        CLIENT,
        40000,
        WEB,
        80,
    )
    assert (flow.packets, flow.bytes) == ((2, 1), (108, 54))
    assert flow.reply_seen and not flow.closing
    assert (flow.egress.owner, flow.egress.identity) == (node.client.endpoint_id, WEB_ID)
    assert (flow.ingress.owner, flow.ingress.identity) == (node.web.endpoint_id, CLIENT_ID)
    assert abs(flow.created - now) <= 2


def test_both_directions_share_one_entry_whoever_has_the_smaller_address(node: Node) -> None:
    assert forwarded(node.leave(node.web, tcp(WEB, CLIENT, 500, 80, SYN)))
    assert forwarded(node.leave(node.client, tcp(CLIENT, WEB, 80, 500, SYN | ACK)))
    flow = only_flow(node)
    assert (flow.source, flow.destination, flow.reply_seen) == (WEB, CLIENT, True)


@pytest.mark.parametrize("established", [True, False])
def test_an_established_flow_consults_no_policy(node: Node, established: bool) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    assert request(node, SYN)
    node.datapath.policy_delete(list(node.datapath.policy_entries()))
    assert request(node, ACK, sport=40000 if established else 40001) is established


def lifetime(node: Node) -> float:
    return only_flow(node).expires - time.monotonic()


def test_lifetimes_follow_the_state(node: Node) -> None:
    assert request(node, SYN)
    assert 58 <= lifetime(node) <= 61
    assert answer(node, SYN | ACK)
    assert 7998 <= lifetime(node) <= 8001
    assert request(node, FIN | ACK)
    assert not only_flow(node).closing
    assert 7998 <= lifetime(node) <= 8001
    assert answer(node, FIN | ACK)
    assert only_flow(node).closing
    assert 8 <= lifetime(node) <= 11


def test_a_reset_ends_a_flow(node: Node) -> None:
    establish(node)
    assert answer(node, RST | ACK)
    assert only_flow(node).closing
    assert 8 <= lifetime(node) <= 11


def test_udp_lives_a_minute(node: Node) -> None:
    assert forwarded(node.leave(node.client, udp(CLIENT, WEB, 5000, 53)))
    assert 58 <= lifetime(node) <= 61


def test_garbage_collection_removes_what_has_expired(node: Node) -> None:
    establish(node)
    assert forwarded(node.leave(node.client, udp(CLIENT, WEB, 5000, 53)))
    stats = node.datapath.conntrack_gc(time.monotonic() + 100)
    assert (stats.seen, stats.removed) == (2, 1)
    assert only_flow(node).protocol == TCP


def test_flows_of_an_address_can_be_purged(node: Node) -> None:
    establish(node)
    assert forwarded(node.leave(node.client, udp(CLIENT, WORLD, 5000, 53)))
    assert node.datapath.conntrack_purge([WEB]) == 1
    assert only_flow(node).destination == WORLD


def test_a_narrowed_policy_reaches_established_flows_both_ways(node: Node) -> None:
    establish(node)
    node.policy(WEB_SUBJECT, ingress=[])
    assert not request(node)
    assert not answer(node)
    assert node.drops() == {reason.POLICY: 2}
    # Judged in the flow's direction each time: the responder's ingress, at its port.
    for event in node.events():
        assert (event.endpoint_id, event.direction) == (node.web.endpoint_id, 0)
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    assert answer(node)
    assert request(node)
    assert node.events() == []


def test_a_narrowed_egress_policy_reaches_established_flows_both_ways(node: Node) -> None:
    establish(node)
    node.policy(CLIENT_SUBJECT, egress=[Rule(WEB_ID, TCP, 81)])
    assert not answer(node)
    assert not request(node)
    assert not answer(node)


def test_a_flow_is_judged_again_once_per_epoch(node: Node) -> None:
    establish(node)
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    for _ in range(3):
        assert request(node) and answer(node)
    (value,) = node.datapath.policy_entries().values()
    assert value.packets == 1


def test_a_denied_flow_does_not_turn_round(node: Node) -> None:
    """The responder goes on sending: its packets stay answers, which open ingress lets in no more."""
    establish(node)
    node.policy(CLIENT_SUBJECT, egress=[])
    for _ in range(3):
        assert not request(node)
        assert not answer(node)
    assert only_flow(node).source == CLIENT


def test_removing_the_row_stops_established_flows(node: Node) -> None:
    establish(node)
    node.datapath.subject_delete(CLIENT_SUBJECT)
    assert not request(node)
    assert not answer(node)
    assert node.drops() == {reason.POLICY_NOT_READY: 2}


def test_an_endpoint_that_changes_its_subject_is_judged_again(node: Node) -> None:
    establish(node)
    node.policy(3, egress=[])
    row = node.datapath.subject_get(CLIENT_SUBJECT)
    assert row is not None
    # The same epoch, in another subject.
    node.datapath.subject_put(3, replace(node.datapath.subject_get(3) or row, epoch=row.epoch))
    node.datapath.update_endpoint(replace(node.client, subject=3))
    assert not request(node)
    assert not answer(node)


def test_a_peer_that_changes_its_identity_is_judged_again(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID)])
    establish(node)
    node.datapath.update_endpoint(replace(node.client, identity=5000))
    assert not request(node)


def test_a_remote_peer_that_changes_its_identity_is_judged_again(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, egress=[Rule(1003)])
    assert forwarded(node.leave(node.client, tcp(CLIENT, REMOTE, 1, 80, SYN)))
    node.datapath.ipcache_put([(REMOTE, IpcacheValue(5000, OTHER_NODE))])
    assert not forwarded(node.leave(node.client, tcp(CLIENT, REMOTE, 1, 80, ACK)))


def test_a_new_prefix_is_judged_again(node: Node) -> None:
    """The flow remembers the trie's answer until the trie changes."""
    node.policy(CLIENT_SUBJECT, egress=[Rule(2)])
    packet = tcp(CLIENT, WORLD, 1, 80, ACK)
    assert forwarded(node.leave(node.client, packet))
    assert forwarded(node.leave(node.client, packet))
    node.datapath.ipcache_put([("198.51.100.0/24", IpcacheValue(1 << 24))])
    assert not forwarded(node.leave(node.client, packet))
    node.datapath.ipcache_delete(["198.51.100.0/24"])
    assert forwarded(node.leave(node.client, packet))


def test_an_address_given_to_another_endpoint_brings_no_flows_along(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, ingress=[])
    establish(node)
    node.datapath.detach_endpoint(node.client.ifindex, CLIENT)
    successor = replace(node.client, endpoint_id=99)
    node.datapath.attach_endpoint(successor)
    assert not answer(node)
    assert node.drops() == {reason.POLICY: 1}


def test_a_connection_attempt_against_the_flow_is_a_new_flow(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, ingress=[])
    establish(node)
    assert not answer(node, SYN)
    assert answer(node, ACK)


def test_a_connection_attempt_after_the_end_is_judged_anew(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    establish(node)
    assert request(node, RST)
    before = node.datapath.policy_entries()
    node.datapath.policy_delete(list(before))
    assert request(node, ACK)
    assert not request(node, SYN)
    node.datapath.policy_put(list(before.items()))
    assert request(node, SYN)
    assert not only_flow(node).closing


def test_pings_both_ways_are_two_flows(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, ingress=[])
    assert forwarded(node.leave(node.client, echo(CLIENT, WEB, 7)))
    assert forwarded(node.leave(node.web, echo(WEB, CLIENT, 7, reply=True)))
    assert not forwarded(node.leave(node.web, echo(WEB, CLIENT, 7)))
    assert not forwarded(node.leave(node.web, echo(WEB, CLIENT, 8, reply=True)))
    assert node.drops() == {reason.POLICY: 1, reason.UNKNOWN_CT: 1}


def test_an_icmp_error_about_a_flow_passes(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, ingress=[])
    asked = udp(CLIENT, WEB, 5000, 53)
    assert forwarded(node.leave(node.client, asked))
    assert forwarded(node.leave(node.web, icmp_error(WEB, asked)))
    assert not forwarded(node.leave(node.web, icmp_error(WEB, udp(CLIENT, WEB, 5001, 53))))
    assert node.drops() == {reason.UNKNOWN_CT: 1}


def test_an_icmp_error_about_a_ping_passes(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, ingress=[])
    asked = echo(CLIENT, WEB, 7)
    assert forwarded(node.leave(node.client, asked))
    assert forwarded(node.leave(node.web, icmp_error(WEB, asked, code=1)))
    assert not forwarded(node.leave(node.web, icmp_error(WEB, echo(CLIENT, WEB, 9))))


def test_an_icmp_error_passes_only_while_its_flow_is_allowed(node: Node) -> None:
    asked = udp(CLIENT, WEB, 5000, 53)
    assert forwarded(node.leave(node.client, asked))
    node.policy(WEB_SUBJECT, ingress=[])
    assert not forwarded(node.leave(node.web, icmp_error(WEB, asked)))


def test_an_icmp_error_prolongs_and_counts_nothing(node: Node) -> None:
    asked = udp(CLIENT, WEB, 5000, 53)
    assert forwarded(node.leave(node.client, asked))
    before = only_flow(node)
    assert forwarded(node.leave(node.web, icmp_error(WEB, asked)))
    assert only_flow(node) == before


def test_an_icmp_error_of_a_router_passes(node: Node) -> None:
    asked = udp(CLIENT, WORLD, 5000, 53)
    assert forwarded(node.leave(node.client, asked))
    error = icmp_error("203.0.113.9", asked, kind=3, code=4)
    node.policy(CLIENT_SUBJECT, ingress=[], egress=[Rule(2, UDP, 53)])
    assert forwarded(node.arrive(node.client, error, ingress_ifindex=node.host_ifindex))


def test_a_router_may_complain_of_an_answer(node: Node) -> None:
    """The router is the world, which the responder does not let in; its error is of the flow that it does."""
    node.policy(WEB_SUBJECT, ingress=[Rule(2, TCP, 80)])
    through_stack = {"ingress_ifindex": node.host_ifindex}
    assert forwarded(node.arrive(node.web, tcp(WORLD, WEB, 500, 80, SYN), **through_stack))
    answered = tcp(WEB, WORLD, 80, 500, SYN | ACK)
    assert forwarded(node.leave(node.web, answered))
    node.datapath.ipcache_put([("203.0.113.0/24", IpcacheValue(1 << 24))])
    for _ in range(2):
        assert forwarded(node.arrive(node.web, icmp_error("203.0.113.9", answered, code=4), **through_stack))
        assert forwarded(node.arrive(node.web, tcp(WORLD, WEB, 500, 80, ACK), **through_stack))
    assert only_flow(node).ingress.identity == 2


def test_an_endpoint_cannot_speak_for_others_flows(node: Node) -> None:
    """An ICMP error about a flow that its sender has no part in."""
    asked = udp(CLIENT, WORLD, 5000, 53)
    assert forwarded(node.leave(node.client, asked))
    assert not forwarded(node.leave(node.web, icmp_error(WEB, asked)))
    assert node.drops() == {reason.INVALID_SIP: 1}


def test_an_icmp_error_goes_to_who_sent_what_it_quotes(node: Node) -> None:
    asked = udp(CLIENT, WEB, 5000, 53)
    assert forwarded(node.leave(node.client, asked))
    assert not forwarded(node.leave(node.web, icmp_error(WEB, asked, destination=REMOTE)))
    assert node.drops() == {reason.CT_INVALID_HDR: 1}


def owner_row(node: Node) -> EndpointRow:
    return next(row for row in node.datapath.endpoints() if row.ipv4 == WEB)


def test_endpoints_are_read_back_from_the_maps(node: Node) -> None:
    assert owner_row(node) == node.web
    assert len(node.datapath.endpoints()) == 2
