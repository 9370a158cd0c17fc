"""The model held to cases worked out by hand, before anything is held to the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.fuzz import build
from tests.fuzz.addresses import NODE4, NODE6, ROUTER4, ROUTER6, packed
from tests.fuzz.build import Part
from tests.fuzz.model.parsing import (
    ACK,
    DESTINATION,
    FIN,
    HOP_BY_HOP,
    ICMP,
    ICMPV6,
    ROUTING,
    RST,
    SCTP,
    SYN,
    TCP,
    UDP,
)
from tests.fuzz.model.programs import Model
from tests.fuzz.model.reasons import Reason
from tests.fuzz.model.steps import Action, Decision, Forward, Input, Way, mark_of
from tests.fuzz.model.world import DirectionPolicy, Endpoint, Entry, Node, Peer, Policy, World

WEB, CLIENT, PEER = packed("10.244.1.10"), packed("10.244.1.11"), packed("10.244.2.10")
WEB6, CLIENT6 = packed("fd00:10:244:1::a"), packed("fd00:10:244:1::b")
WORLD4, NEAR, NODE, ROUTER = packed("203.0.113.9"), packed("198.51.100.7"), packed(NODE4), packed(ROUTER4)
OTHER_NODE = packed("172.31.0.2")
WEB_DEVICE, CLIENT_DEVICE, HOST_DEVICE, VXLAN, NIC = 11, 12, 2, 4, 5
WEB_ID, CLIENT_ID, PEER_ID, NEAR_ID = 301, 300, 302, 70000

DROP, PASS, REDIRECT = Action.DROP, Action.PASS, Action.REDIRECT


def make_model(**config: object) -> Model:
    """Two endpoints, a peer behind a tunnel and a prefix of the world; nothing is enforced."""
    node = Node((NODE, ROUTER, packed(NODE6), packed(ROUTER6)), HOST_DEVICE, 3, VXLAN, NIC, 1500)
    world = World(replace(node, **config))  # type: ignore[arg-type]
    mac = bytes(5)
    world.put_endpoint(Endpoint(WEB_DEVICE, 1, WEB_ID, 1, mac + b"\1", mac + b"\2", WEB, WEB6))
    world.put_endpoint(Endpoint(CLIENT_DEVICE, 2, CLIENT_ID, 2, mac + b"\3", mac + b"\4", CLIENT, CLIENT6))
    world.put_peer(PEER, 32, Peer(PEER_ID, OTHER_NODE))
    world.put_peer(packed("198.51.100.0"), 24, Peer(NEAR_ID))
    world.policies[1] = world.policies[2] = Policy(1)
    model = Model(world)
    model.route = lambda address: NIC
    return model


Entries = list[Entry] | None


def enforce(model: Model, subject: int, *, ingress: Entries = None, egress: Entries = None) -> None:
    """Puts a subject under these entries; None leaves a direction alone."""
    epoch = model.world.policies[subject].epoch + 1 if subject in model.world.policies else 1
    made = [
        DirectionPolicy() if entries is None else DirectionPolicy(True, entries=tuple(entries))
        for entries in (ingress, egress)
    ]
    model.world.policies[subject] = Policy(epoch, *made)


def tcp(source: bytes, destination: bytes, sport: int, dport: int, flags: int = SYN, **more: Any) -> bytes:
    data = build.layer4(TCP, sport, dport, flags, b"")
    make = build.ipv4 if len(source) == 4 else build.ipv6
    return make(source, destination, TCP, data, **more)


def echo(source: bytes, destination: bytes, ident: int, *, reply: bool = False) -> bytes:
    v4 = len(source) == 4
    kind = (0 if reply else 8) if v4 else (129 if reply else 128)
    data = build.icmp(kind, 0, ident.to_bytes(2, "big") + b"\0\1", b"")
    return (build.ipv4 if v4 else build.ipv6)(source, destination, ICMP if v4 else ICMPV6, data)


def error(source: bytes, destination: bytes, quoted: bytes, *, kind: int = 3) -> bytes:
    data = build.icmp(kind, 0, bytes(4), quoted[14:62])
    return build.ipv4(source, destination, ICMP, data)


def from_client(model: Model, frame: bytes) -> Decision:
    return model.run(Input("from_container", frame, CLIENT_DEVICE))


def from_web(model: Model, frame: bytes) -> Decision:
    return model.run(Input("from_container", frame, WEB_DEVICE))


def to_web(model: Model, frame: bytes, ingress: int = 0, mark: int = 0) -> Decision:
    return model.run(Input("to_container", frame, WEB_DEVICE, ingress, mark))


def test_a_packet_to_a_local_endpoint_loses_a_hop_and_gets_its_macs() -> None:
    model = make_model()
    decision = from_client(model, tcp(CLIENT, WEB, 1000, 80))
    assert (decision.action, decision.forward, decision.mark) == (REDIRECT, Forward(Way.PEER, WEB_DEVICE), 0)
    assert decision.frame == bytes(5) + b"\1" + bytes(5) + b"\2" + tcp(CLIENT, WEB, 1000, 80, ttl=63)[12:]


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        (PEER, Decision(REDIRECT, forward=Forward(Way.EGRESS, VXLAN, CLIENT_ID, OTHER_NODE), mark=0)),
        (NODE, Decision(PASS, mark=mark_of(CLIENT_ID))),
        (WORLD4, Decision(REDIRECT, forward=Forward(Way.NEIGHBOUR, NIC), mark=mark_of(CLIENT_ID))),
    ],
)
def test_where_packets_go(destination: bytes, expected: Decision) -> None:
    decision = from_client(make_model(), tcp(CLIENT, destination, 1000, 80))
    assert replace(decision, frame=None, queue=None) == expected


@pytest.mark.parametrize("limit", [0, 1])
def test_a_spent_hop_limit_is_the_stacks(limit: int) -> None:
    decision = from_client(make_model(), tcp(CLIENT, WEB, 1000, 80, ttl=limit))
    assert (decision.action, decision.mark) == (PASS, mark_of(CLIENT_ID))


def test_with_endpoint_routes_the_stack_delivers_and_the_devices_egress_judges() -> None:
    model = make_model(endpoint_routes=True)
    enforce(model, 1, ingress=[])
    decision = from_client(model, tcp(CLIENT, WEB, 1000, 80))
    assert (decision.action, decision.mark) == (PASS, mark_of(CLIENT_ID))
    assert to_web(model, tcp(CLIENT, WEB, 1000, 80), 9, mark_of(CLIENT_ID)).reason is Reason.POLICY


def test_what_does_not_fit_the_tunnel_goes_to_the_stack() -> None:
    data = build.layer4(UDP, 1, 2, 0, bytes(1450 - 28 + 1))
    assert from_client(make_model(), build.ipv4(CLIENT, PEER, UDP, data)).action is PASS
    assert from_client(make_model(), build.ipv4(CLIENT, PEER, UDP, data[:-1])).action is REDIRECT


def test_without_an_overlay_there_is_no_way_to_a_tunnel() -> None:
    decision = from_client(make_model(vxlan=0), tcp(CLIENT, PEER, 1, 2))
    assert decision.reason is Reason.NO_TUNNEL_ENDPOINT


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (tcp(CLIENT, WEB, 1, 2)[:33], Reason.INVALID_PACKET),
        (tcp(CLIENT, WEB, 1, 2)[:-1], Reason.INVALID_PACKET),
        (tcp(CLIENT6, WEB6, 1, 2)[:-1], Reason.INVALID_PACKET),
        (tcp(WEB, CLIENT, 1, 2), Reason.INVALID_SOURCE),
        (tcp(WEB6, CLIENT6, 1, 2), Reason.INVALID_SOURCE),
        (build.ipv4(CLIENT, WEB, TCP, bytes(19)), Reason.CT_HEADER),
        (build.ipv4(CLIENT, WEB, TCP, bytes(20)), Reason.CT_HEADER),
        (build.ipv4(CLIENT, WEB, UDP, bytes(7)), Reason.CT_HEADER),
        (build.ipv4(CLIENT, WEB, SCTP, bytes(11)), Reason.CT_HEADER),
        (build.ipv4(CLIENT, WEB, ICMP, bytes(7)), Reason.CT_HEADER),
        (build.ipv4(CLIENT, WEB, 47, bytes(40)), Reason.UNKNOWN_L4),
        (build.ipv4(CLIENT, WEB, ICMPV6, bytes(40)), Reason.UNKNOWN_L4),
        (build.ipv6(CLIENT6, WEB6, ICMP, bytes(40)), Reason.UNKNOWN_L4),
        (build.ipv4(CLIENT, WEB, ICMP, build.icmp(13, 0, bytes(4), b"")), Reason.UNKNOWN_ICMP4),
        (build.ipv6(CLIENT6, WEB6, ICMPV6, build.icmp(200, 0, bytes(4), b"")), Reason.UNKNOWN_ICMP6),
        (build.ipv6(CLIENT6, WEB6, ICMPV6, build.icmp(133, 0, bytes(4), b"")), Reason.ND_IGNORED),
        (build.ethernet(bytes(46), 0x8847), Reason.UNSUPPORTED_L3),
        (echo(CLIENT, WEB, 7, reply=True), Reason.UNKNOWN_CT),
        (build.ipv6(CLIENT6, WEB6, 50, bytes(40)), Reason.UNKNOWN_L4),
    ],
)  # fmt: skip
def test_what_does_not_parse(frame: bytes, reason: Reason) -> None:
    assert from_client(make_model(), frame) == Decision(DROP, reason)


@pytest.mark.parametrize(
    "extensions",
    [
        (build.option_header(ROUTING, kind=0),),
        (build.option_header(HOP_BY_HOP),) * 7,
        (build.fragment_header(Part(0, False, 9)),) * 2,
        ((59, bytes(7)),),
        ((HOP_BY_HOP, bytes((9, 0, 0, 0, 0, 0, 0))),),
    ],
)
def test_bad_extension_headers(extensions: tuple[tuple[int, bytes], ...]) -> None:
    frame = tcp(CLIENT6, WEB6, 1, 2, extensions=extensions)
    assert from_client(make_model(), frame).reason is Reason.INVALID_EXTENSION_HEADER


@pytest.mark.parametrize(
    "extensions",
    [
        (build.option_header(HOP_BY_HOP),) * 6,
        (build.option_header(ROUTING, 2, kind=4), build.option_header(DESTINATION, 1)),
        (build.authentication_header(4),),
        (build.fragment_header(Part(0, False, 9)), build.option_header(DESTINATION)),
    ],
)
def test_extension_headers_are_passed_over(extensions: tuple[tuple[int, bytes], ...]) -> None:
    model = make_model()
    enforce(model, 1, ingress=[Entry(CLIENT_ID, TCP, 80, 16)])
    assert from_client(model, tcp(CLIENT6, WEB6, 1000, 80, extensions=extensions)).action is REDIRECT
    assert from_client(model, tcp(CLIENT6, WEB6, 1000, 81, extensions=extensions)).reason is Reason.POLICY


def test_later_fragments_are_of_their_first_ones_flow() -> None:
    model = make_model()
    enforce(model, 1, ingress=[Entry(CLIENT_ID, TCP, 80, 16)])
    later = build.ipv4(CLIENT, WEB, TCP, bytes(16), part=Part(24, False, 5))
    assert from_client(model, later).reason is Reason.FRAGMENT_NOT_FOUND
    first = tcp(CLIENT, WEB, 1000, 80, part=Part(0, True, 5))
    assert from_client(model, first).action is REDIRECT
    assert from_client(model, later).action is REDIRECT
    overlapping = build.ipv4(CLIENT, WEB, TCP, bytes(16), part=Part(16, False, 5))
    assert from_client(model, overlapping).reason is Reason.CT_HEADER
    other = build.ipv4(CLIENT, WEB, TCP, bytes(16), part=Part(24, False, 6))
    assert from_client(model, other).reason is Reason.FRAGMENT_NOT_FOUND


def test_answers_pass_by_the_flow_and_not_by_policy() -> None:
    model = make_model()
    enforce(model, 1, ingress=[Entry(CLIENT_ID, TCP, 80, 16)], egress=[])
    enforce(model, 2, ingress=[], egress=[Entry(WEB_ID, TCP, 80, 16)])
    assert from_web(model, tcp(WEB, CLIENT, 80, 1000, SYN | ACK)).reason is Reason.POLICY
    assert from_client(model, tcp(CLIENT, WEB, 1000, 80)).action is REDIRECT
    assert from_web(model, tcp(WEB, CLIENT, 80, 1000, SYN | ACK)).action is REDIRECT
    # Against the direction, and a SYN that asks for a flow of its own.
    assert from_web(model, tcp(WEB, CLIENT, 80, 1000)).reason is Reason.POLICY


def test_a_syn_starts_a_closed_flow_anew() -> None:
    model = make_model()
    from_client(model, tcp(CLIENT, WEB, 1000, 80))
    from_web(model, tcp(WEB, CLIENT, 80, 1000, RST))
    (flow,) = model.conntrack.flows.values()
    assert flow.closed and flow.packets == [1, 1]
    from_client(model, tcp(CLIENT, WEB, 1000, 80))
    (flow,) = model.conntrack.flows.values()
    assert not flow.closed and flow.packets == [1, 0]


def test_a_flow_is_closed_by_fin_from_both_ends() -> None:
    model = make_model()
    from_client(model, tcp(CLIENT, WEB, 1000, 80))
    from_client(model, tcp(CLIENT, WEB, 1000, 80, FIN | ACK))
    (flow,) = model.conntrack.flows.values()
    assert not flow.closed
    from_web(model, tcp(WEB, CLIENT, 80, 1000, FIN | ACK))
    assert flow.closed


def test_a_changed_policy_takes_effect_on_the_next_packet_either_way() -> None:
    model = make_model()
    enforce(model, 1, ingress=[Entry(CLIENT_ID, TCP, 80, 16)])
    assert from_client(model, tcp(CLIENT, WEB, 1000, 80)).action is REDIRECT
    enforce(model, 1, ingress=[])
    assert from_web(model, tcp(WEB, CLIENT, 80, 1000, ACK)).reason is Reason.POLICY
    assert from_client(model, tcp(CLIENT, WEB, 1000, 80, ACK)).reason is Reason.POLICY


def test_an_expired_flow_is_none() -> None:
    model = make_model()
    assert from_client(model, echo(CLIENT, WEB, 7)).action is REDIRECT
    next(iter(model.conntrack.flows.values())).expired = True
    assert from_web(model, echo(WEB, CLIENT, 7, reply=True)).reason is Reason.UNKNOWN_CT


def test_an_address_that_changed_hands_has_no_flows_of_before() -> None:
    model = make_model()
    assert from_client(model, echo(CLIENT, WEB, 7)).action is REDIRECT
    web = model.world.devices[WEB_DEVICE]
    model.world.remove_endpoint(WEB_DEVICE)
    model.world.put_endpoint(replace(web, endpoint_id=9))
    assert from_web(model, echo(WEB, CLIENT, 7, reply=True)).reason is Reason.UNKNOWN_CT


def test_an_error_is_of_the_flow_that_it_quotes() -> None:
    model = make_model()
    quoted = tcp(CLIENT, WORLD4, 1000, 80)
    late = Input("to_container", error(WORLD4, CLIENT, quoted, kind=11), CLIENT_DEVICE, NIC)
    assert model.run(late).reason is Reason.UNKNOWN_CT
    enforce(model, 2, ingress=[], egress=[Entry(2, TCP, 80, 16)])
    from_client(model, quoted)
    assert model.run(late).action is PASS
    # A router in between, whoever it is.
    assert model.run(replace(late, frame=error(NEAR, CLIENT, quoted, kind=11))).action is PASS
    assert model.run(replace(late, frame=error(NEAR, CLIENT, quoted, kind=5))).reason is Reason.UNKNOWN_ICMP4
    (flow,) = model.conntrack.flows.values()
    assert flow.packets == [1, 0]


def test_an_endpoint_complains_only_for_itself() -> None:
    model = make_model()
    quoted = tcp(CLIENT, WEB, 1000, 80)
    from_client(model, quoted)
    assert from_web(model, error(WEB, CLIENT, quoted)).action is REDIRECT
    assert from_web(model, error(WEB, CLIENT, tcp(CLIENT, PEER, 1, 2))).reason is Reason.INVALID_SOURCE
    assert from_web(model, error(WEB, CLIENT, tcp(WEB, CLIENT, 1, 2))).reason is Reason.CT_HEADER


@pytest.mark.parametrize(
    ("entries", "port", "reason"),
    [
        ([], 80, Reason.POLICY),
        ([Entry(CLIENT_ID, TCP, 80, 16)], 80, None),
        ([Entry(CLIENT_ID, TCP, 80, 16)], 81, Reason.POLICY),
        ([Entry(CLIENT_ID, TCP, 80, 15)], 81, None),
        ([Entry(0, TCP, 0, 0)], 81, None),
        ([Entry(CLIENT_ID, UDP, 0, 0)], 81, Reason.POLICY),
        ([Entry(WEB_ID, 0, 0, 0)], 81, Reason.POLICY),
        ([Entry(0, 0, 0, 0), Entry(CLIENT_ID, TCP, 80, 16, deny=True)], 80, Reason.POLICY_DENY),
        ([Entry(0, 0, 0, 0, deny=True), Entry(CLIENT_ID, TCP, 80, 16)], 80, Reason.POLICY_DENY),
        ([Entry(0, 0, 0, 0), Entry(CLIENT_ID, TCP, 80, 16, deny=True)], 81, None),
    ],
)
def test_policy(entries: list[Entry], port: int, reason: Reason | None) -> None:
    model = make_model()
    enforce(model, 1, ingress=entries)
    assert from_client(model, tcp(CLIENT, WEB, 1000, port)).reason is reason


def test_a_deny_counts_without_enforcement_and_audit_lets_it_pass() -> None:
    model = make_model()
    denying = DirectionPolicy(False, False, (Entry(0, TCP, 80, 16, deny=True),))
    model.world.policies[1] = Policy(7, ingress=denying)
    assert from_client(model, tcp(CLIENT, WEB, 1000, 80)).reason is Reason.POLICY_DENY
    assert from_client(model, tcp(CLIENT, WEB, 1000, 81)).action is REDIRECT
    model.world.policies[1] = Policy(8, ingress=replace(denying, audit=True))
    assert from_client(model, tcp(CLIENT, WEB, 1000, 80)).action is REDIRECT


def test_without_a_policy_row_nothing_passes_but_to_and_from_the_host() -> None:
    model = make_model()
    model.world.policies.clear()
    assert from_client(model, tcp(CLIENT, WEB, 1000, 80)).reason is Reason.POLICY_NOT_READY
    assert from_client(model, tcp(CLIENT, NODE, 1000, 80)).action is PASS
    assert to_web(model, tcp(ROUTER, WEB, 1000, 80)).action is PASS
    assert to_web(model, tcp(NEAR, WEB, 1000, 80), NIC).reason is Reason.POLICY_NOT_READY


@pytest.mark.parametrize(
    ("source", "ingress", "mark", "identity"),
    [
        (NEAR, 0, 0, 1),
        (NEAR, NIC, mark_of(PEER_ID), PEER_ID),
        (NEAR, NIC, 0, NEAR_ID),
        (NEAR, NIC, 0x0400, NEAR_ID),
        (WORLD4, NIC, 0, 2),
        (NODE, NIC, 0, 2),
        (PEER, NIC, 0, None),
    ],
)
def test_who_sent_what_the_stack_hands_over(
    source: bytes, ingress: int, mark: int, identity: int | None
) -> None:
    model = make_model()
    decision = to_web(model, tcp(source, WEB, 1000, 80), ingress, mark)
    if identity is None:
        assert decision.reason is Reason.INVALID_SOURCE
        return
    (flow,) = model.conntrack.flows.values()
    side = flow.sides[1]
    assert side is not None and side.identity == identity


def test_with_native_routing_a_pods_address_is_believed() -> None:
    model = make_model(vxlan=0)
    assert to_web(model, tcp(PEER, WEB, 1000, 80), NIC).action is PASS


def test_the_overlay() -> None:
    model = make_model()
    enforce(model, 1, ingress=[Entry(PEER_ID, TCP, 80, 16), Entry(6, TCP, 81, 16)])

    def come(vni: int | None, frame: bytes) -> Decision:
        return model.run(Input("from_overlay", frame, VXLAN, vni=vni))

    assert come(PEER_ID, tcp(PEER, WEB, 1000, 80)).forward == Forward(Way.PEER, WEB_DEVICE)
    assert come(PEER_ID, tcp(PEER, WEB, 1000, 81)).reason is Reason.POLICY
    # Another node's host is a remote node here.
    assert come(1, tcp(PEER, WEB, 1001, 81)).action is REDIRECT
    assert come(0, tcp(PEER, WEB, 1000, 80)).reason is Reason.INVALID_IDENTITY
    assert come(None, tcp(PEER, WEB, 1000, 80)).reason is Reason.NO_TUNNEL_KEY
    assert come(PEER_ID, tcp(PEER, WORLD4, 1000, 80)).reason is Reason.NO_LOCAL_CONTAINER
    assert come(PEER_ID, tcp(PEER, NODE, 1000, 80)).mark == mark_of(PEER_ID)


def test_from_host() -> None:
    model = make_model()
    to_pod = model.run(Input("from_host", tcp(NODE, WEB, 1000, 80), HOST_DEVICE))
    assert (to_pod.forward, to_pod.mark) == (Forward(Way.EGRESS, WEB_DEVICE), mark_of(1))
    away = model.run(Input("from_host", tcp(NODE, PEER, 1000, 80), HOST_DEVICE))
    assert away.forward == Forward(Way.EGRESS, VXLAN, 1, OTHER_NODE)
    nowhere = model.run(Input("from_host", tcp(NODE, WORLD4, 1000, 80), HOST_DEVICE))
    assert nowhere.reason is Reason.NO_LOCAL_CONTAINER


def test_arp_and_neighbour_discovery() -> None:
    model = make_model()
    mac = bytes(5) + b"\3"

    def asks(sender: bytes, target: bytes) -> Decision:
        return from_client(model, build.arp(1, mac, sender, target))

    answer = asks(CLIENT, WORLD4)
    assert answer.frame is not None and answer.frame[22:32] == bytes(5) + b"\4" + WORLD4
    assert asks(bytes(4), WORLD4).action is REDIRECT
    assert asks(CLIENT, CLIENT).reason is Reason.ARP_IGNORED
    assert asks(WEB, WORLD4).reason is Reason.INVALID_SOURCE

    def solicits(sender: bytes, target: bytes) -> Decision:
        return from_client(model, build.solicitation(sender, target, mac))

    answer = solicits(CLIENT6, WEB6)
    assert answer.frame is not None and answer.frame[54] == 136 and answer.frame[80:] == bytes(5) + b"\4"
    assert solicits(packed("fe80::1"), WEB6).action is REDIRECT
    assert solicits(bytes(16), CLIENT6).reason is Reason.ND_IGNORED
    assert solicits(CLIENT6, CLIENT6).reason is Reason.ND_IGNORED
    assert solicits(WEB6, CLIENT6).reason is Reason.INVALID_SOURCE
