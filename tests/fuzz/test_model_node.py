"""The model's masquerading and host firewall held to cases worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.fuzz import build
from tests.fuzz.addresses import NODE6, packed
from tests.fuzz.build import Part
from tests.fuzz.model import sums
from tests.fuzz.model.masquerade import Breach
from tests.fuzz.model.parsing import ACK, ICMP, ICMPV6, SCTP, SYN, TCP, UDP, Tuple5
from tests.fuzz.model.programs import Model
from tests.fuzz.model.reasons import Reason
from tests.fuzz.model.rewriting import readdressed
from tests.fuzz.model.steps import MARK_OVERLAY, Action, Decision, Input
from tests.fuzz.model.world import Entry, Failsafe, Peer, Socket
from tests.fuzz.test_model import (
    CLIENT,
    CLIENT6,
    CLIENT_DEVICE,
    CLIENT_ID,
    HOST_DEVICE,
    NEAR,
    NIC,
    NODE,
    OTHER_NODE,
    PEER,
    ROUTER,
    WEB,
    WORLD4,
    enforce,
    make_model,
)

WORLD6 = packed("2001:db8::7")
PORTS = (2000, 2001)
HOST = 9

DROP, PASS, REDIRECT = Action.DROP, Action.PASS, Action.REDIRECT


def make_node(ports: tuple[int, int] = PORTS, **config: object) -> Model:
    """A node that masquerades, whose programs give a flow the first port that is free."""
    own = {4: NODE, 6: packed(NODE6)}
    model = make_model(masquerade=True, own=own, ports=ports, **config)
    model.chosen = first_free(model)
    return model


def first_free(model: Model) -> Callable[[Tuple5, int | None], int | None]:
    def choose(flow: Tuple5, place: int | None) -> int | None:
        first, last = model.world.node.ports
        taken = {place[3] for place in model.masquerade.owners}
        return next((port for port in range(first, last + 1) if port not in taken), None)

    return choose


def packet(
    source: bytes, destination: bytes, sport: int, dport: int, *, protocol: int = UDP, flags: int = SYN
) -> bytes:
    data = build.summed(source, destination, protocol, build.layer4(protocol, sport, dport, flags, b"abc"))
    return (build.ipv4 if len(source) == 4 else build.ipv6)(source, destination, protocol, data)


def echo(source: bytes, destination: bytes, ident: int, *, reply: bool = False) -> bytes:
    v4 = len(source) == 4
    kind = (0 if reply else 8) if v4 else (129 if reply else 128)
    protocol = ICMP if v4 else ICMPV6
    data = build.icmp(kind, 0, ident.to_bytes(2, "big") + b"\0\1", b"")
    data = build.summed(source, destination, protocol, data)
    return (build.ipv4 if v4 else build.ipv6)(source, destination, protocol, data)


def error(source: bytes, destination: bytes, quoted: bytes) -> bytes:
    v4 = len(source) == 4
    protocol = ICMP if v4 else ICMPV6
    data = build.icmp(3 if v4 else 1, 0, bytes(4), quoted[14:80])
    data = build.summed(source, destination, protocol, data)
    return (build.ipv4 if v4 else build.ipv6)(source, destination, protocol, data)


def leave(model: Model, frame: bytes, *, ingress: int = CLIENT_DEVICE, mark: int = 0) -> Decision:
    return model.run(Input("to_netdev", frame, NIC, ingress, mark))


def come(model: Model, frame: bytes) -> Decision:
    return model.run(Input("from_netdev", frame, NIC, NIC))


def at_pod(frame: bytes) -> bytes:
    """What arrives, MACs, hop limit and what covers that aside."""
    if frame[12:14] == b"\x86\xdd":
        return frame[14:21] + frame[22:]
    return frame[14:22] + frame[23:24] + frame[26:]


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize(("pod", "peer", "own"), [(CLIENT, WORLD4, NODE), (CLIENT6, WORLD6, packed(NODE6))])
def test_a_pods_packet_leaves_as_the_nodes_and_its_answer_finds_back(
    protocol: int, pod: bytes, peer: bytes, own: bytes
) -> None:
    model = make_node()
    left = leave(model, packet(pod, peer, 1000, 80, protocol=protocol))
    assert left.frame == packet(own, peer, 2000, 80, protocol=protocol)
    answer = come(model, packet(peer, own, 80, 2000, protocol=protocol, flags=SYN | ACK))
    assert answer.forward is not None and answer.forward.ifindex == CLIENT_DEVICE
    expected = packet(peer, pod, 80, 1000, protocol=protocol, flags=SYN | ACK)
    assert answer.frame is not None and at_pod(answer.frame) == at_pod(expected)
    assert sums.right(answer.frame) == sums.right(expected)


def test_an_echos_identifier_is_translated() -> None:
    model = make_node()
    model.run(Input("from_container", echo(CLIENT, WORLD4, 7), CLIENT_DEVICE))
    assert leave(model, echo(CLIENT, WORLD4, 7)).frame == echo(NODE, WORLD4, 2000)
    assert come(model, echo(WORLD4, NODE, 2000)).action is PASS, "who pings the node means the node"
    answer = come(model, echo(WORLD4, NODE, 2000, reply=True))
    assert answer.frame is not None and at_pod(answer.frame) == at_pod(echo(WORLD4, CLIENT, 7, reply=True))
    assert leave(model, echo(CLIENT, WORLD4, 9, reply=True)).reason is Reason.NO_MAPPING


def test_flows_to_one_peer_do_not_share_a_port() -> None:
    model = make_node()
    leave(model, packet(CLIENT, WORLD4, 1000, 80))
    assert leave(model, packet(WEB, WORLD4, 1000, 80)).frame == packet(NODE, WORLD4, 2001, 80)
    assert leave(model, packet(WEB, WORLD4, 1001, 80)).reason is Reason.NO_MAPPING
    # Towards another peer they are free.
    model.chosen = lambda flow, place: 2001
    assert leave(model, packet(WEB, NEAR, 1001, 80)).frame == packet(NODE, NEAR, 2001, 80)
    # What has a port keeps it.
    assert leave(model, packet(WEB, WORLD4, 1000, 80)).frame == packet(NODE, WORLD4, 2001, 80)


@pytest.mark.parametrize(
    ("sport", "port"), [(1000, 1999), (1000, 2002), (1000, 2000), (2001, 2000), (1000, None)]
)
def test_a_port_against_the_rules_is_a_breach(sport: int, port: int | None) -> None:
    model = make_node(sockets=(Socket(NODE, UDP, 2000, peer=(WORLD4, 80)),))
    model.chosen = lambda flow, place: port
    with pytest.raises(Breach):
        leave(model, packet(CLIENT, WORLD4, sport, 80))


def test_a_flow_keeps_its_port_if_it_can() -> None:
    model = make_node()
    model.chosen = lambda flow, place: flow.sport
    assert leave(model, packet(CLIENT, WORLD4, 2001, 80)).frame == packet(NODE, WORLD4, 2001, 80)
    with pytest.raises(Breach):
        leave(model, packet(WEB, WORLD4, 2001, 80))


@pytest.mark.parametrize("is_original", [True, False])
def test_a_lost_entry_is_put_back(*, is_original: bool) -> None:
    model = make_node()
    leave(model, packet(CLIENT, WORLD4, 1000, 80))
    flow = Tuple5(CLIENT, WORLD4, UDP, 1000, 80)
    model.masquerade.forget(flow, 2000, is_original=is_original)
    model.chosen = lambda flow, place: 2000
    assert leave(model, packet(CLIENT, WORLD4, 1000, 80)).frame == packet(NODE, WORLD4, 2000, 80)
    assert come(model, packet(WORLD4, NODE, 80, 2000)).action is REDIRECT


def test_of_sctp_only_the_address_is_translated() -> None:
    model = make_node()
    left = leave(model, packet(CLIENT, WORLD4, 1000, 80, protocol=SCTP))
    assert left.frame == packet(NODE, WORLD4, 1000, 80, protocol=SCTP)
    assert leave(model, packet(WEB, WORLD4, 1000, 80, protocol=SCTP)).reason is Reason.NO_MAPPING


@pytest.mark.parametrize("destination", [PEER, packed("224.0.0.1"), packed("255.255.255.255"), NEAR])
def test_what_keeps_its_address(destination: bytes) -> None:
    model = make_node()
    model.world.excluded = ((packed("198.51.100.0"), 24),)
    frame = packet(CLIENT, destination, 1000, 80)
    assert leave(model, frame) == Decision(PASS, frame=frame, mark=0)


def test_other_nodes_know_pods_by_their_addresses_when_routing_is_native() -> None:
    frame = packet(CLIENT, OTHER_NODE, 1000, 80)
    for vxlan, address in ((0, CLIENT), (4, NODE)):
        model = make_node(vxlan=vxlan)
        model.world.put_peer(OTHER_NODE, 32, Peer(6))
        decision = leave(model, frame)
        assert decision.frame is not None and decision.frame[26:30] == address


def test_who_came_by_a_pods_own_address_is_answered_from_there() -> None:
    model = make_node()
    assert come(model, packet(NEAR, CLIENT, 5, 80)).action is REDIRECT
    frame = packet(CLIENT, NEAR, 80, 5)
    assert leave(model, frame).frame == frame


def test_a_node_without_an_address_of_the_family_translates_none() -> None:
    model = make_node()
    del model.world.node.own[6]
    frame = packet(CLIENT6, WORLD6, 1000, 80)
    assert leave(model, frame).frame == frame


@pytest.mark.parametrize(("pod", "peer", "own"), [(CLIENT, WORLD4, NODE), (CLIENT6, WORLD6, packed(NODE6))])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_errors_are_translated_with_what_they_quote(
    protocol: int, pod: bytes, peer: bytes, own: bytes
) -> None:
    model = make_node()
    sent = packet(pod, peer, 1000, 80, protocol=protocol)
    model.run(Input("from_container", sent, CLIENT_DEVICE))
    left = leave(model, sent).frame
    assert left is not None
    arrived = come(model, error(peer, own, left)).frame
    assert arrived is not None and at_pod(arrived) == at_pod(error(peer, pod, sent))
    # The pod complains of the answer.
    answer = packet(peer, pod, 80, 1000, protocol=protocol)
    told = leave(model, error(pod, peer, answer)).frame
    assert told is not None and sums.right(told) == sums.right(error(pod, peer, answer))
    assert told == error(own, peer, packet(peer, own, 80, 2000, protocol=protocol))


def test_later_fragments_follow_their_first_one() -> None:
    model = make_node()
    data = build.summed(CLIENT, WORLD4, UDP, build.layer4(UDP, 1000, 80, 0, bytes(24)))
    first = build.ipv4(CLIENT, WORLD4, UDP, data[:16], part=Part(0, True, 5))
    later = build.ipv4(CLIENT, WORLD4, UDP, data[16:], part=Part(16, False, 5))
    whole = build.summed(NODE, WORLD4, UDP, build.layer4(UDP, 2000, 80, 0, bytes(24)))
    assert leave(model, first).frame == build.ipv4(NODE, WORLD4, UDP, whole[:16], part=Part(0, True, 5))
    assert leave(model, later).frame == build.ipv4(NODE, WORLD4, UDP, whole[16:], part=Part(16, False, 5))


def test_a_missing_udp_checksum_stays_missing_and_a_wrong_one_wrong() -> None:
    model = make_node()
    none = build.ipv4(CLIENT, WORLD4, UDP, build.layer4(UDP, 1000, 80, 0, b"abc"))
    left = leave(model, none).frame
    assert left is not None and left[40:42] == b"\0\0"
    wrong = build.ipv4(CLIENT, WORLD4, UDP, build.with_checksum(UDP, none[34:], 7))
    left = leave(model, wrong).frame
    assert left is not None and sums.right(left) == {"IP header"}


def test_a_checksum_that_comes_to_zero_is_sent_as_its_other_form() -> None:
    model = make_node()
    frame = packet(CLIENT, WORLD4, 1000, 80)
    parsed = model._parsed(frame)
    right = int.from_bytes(frame[40:42], "big")
    # A datagram whose sum will be 65535 with the new address and port.
    moved = (_added(NODE) + 2000 - _added(CLIENT) - 1000) % 0xFFFF
    payload = ((right - moved) % 0xFFFF).to_bytes(2, "big")
    data = build.summed(CLIENT, WORLD4, UDP, build.layer4(UDP, 1000, 80, 0, payload + b"abc"))
    frame = build.ipv4(CLIENT, WORLD4, UDP, data)
    parsed = replace(parsed, end=len(frame))
    changed, _ = readdressed(frame, parsed, is_source=True, address=NODE, port=2000)
    assert changed[40:42] != b"\0\0" and "layer 4" in sums.right(changed)


def _added(address: bytes) -> int:
    return int.from_bytes(address[:2], "big") + int.from_bytes(address[2:], "big")


def test_translations_go_with_their_flows() -> None:
    model = make_node()
    frame = packet(CLIENT, WORLD4, 1000, 80)
    model.run(Input("from_container", frame, CLIENT_DEVICE))
    leave(model, frame)
    model.masquerade.collect()
    assert model.masquerade.originals and model.masquerade.owners
    model.conntrack.flows.clear()
    model.masquerade.collect()
    assert not model.masquerade.originals and not model.masquerade.owners


def test_an_answer_to_a_pod_that_is_gone() -> None:
    model = make_node()
    leave(model, packet(CLIENT, WORLD4, 1000, 80))
    model.world.remove_endpoint(CLIENT_DEVICE)
    assert come(model, packet(WORLD4, NODE, 80, 2000)).reason is Reason.NO_LOCAL_CONTAINER


def test_the_overlays_packets_and_others_pass() -> None:
    model = make_node()
    frame = packet(CLIENT, WORLD4, 1000, 80)
    assert leave(model, frame, mark=MARK_OVERLAY).frame == frame
    forwarded = packet(NEAR, WORLD4, 1000, 80)
    assert leave(model, forwarded, ingress=NIC).frame == forwarded
    assert come(model, packet(WORLD4, NEAR, 1, 2)).action is PASS
    assert come(model, packet(PEER, CLIENT, 1, 2)).reason is Reason.INVALID_SOURCE


def test_bandwidth() -> None:
    model = make_node()
    client = model.world.devices[CLIENT_DEVICE]
    model.world.put_endpoint(replace(client, rate=1000))
    frame = packet(CLIENT, PEER, 1000, 80)
    decision = model.run(Input("from_container", frame, CLIENT_DEVICE))
    assert decision.queue == CLIENT_DEVICE
    out = Input("to_overlay", frame, 4, vni=CLIENT_ID, queue=CLIENT_DEVICE)
    assert (model.run(out).is_paced, model.run(out).mark) == (True, MARK_OVERLAY)
    model.wait = lambda ifindex: 2.5
    assert model.run(out).reason is Reason.BANDWIDTH
    assert model.run(replace(out, queue=0)).action is PASS
    assert model.run(replace(out, vni=None)).reason is Reason.NO_TUNNEL_ENDPOINT


def firewall(**rules: list[Entry] | None) -> Model:
    """A node under a policy."""
    model = make_model()
    model.world.host_subject = HOST
    enforce(model, HOST, **rules)
    return model


def to_node(model: Model, frame: bytes) -> Decision:
    return model.run(Input("to_host", frame, HOST_DEVICE, HOST_DEVICE, 0x0F00 | CLIENT_ID << 16))


def from_node(model: Model, frame: bytes) -> Decision:
    return model.run(Input("to_netdev", frame, NIC))


def test_the_node_is_under_its_policy_for_pods_and_the_network() -> None:
    model = firewall(ingress=[Entry(CLIENT_ID, UDP, 53, 16), Entry(70000, UDP, 80, 16)], egress=[])
    assert to_node(model, packet(CLIENT, NODE, 1000, 53)).action is PASS
    assert to_node(model, packet(CLIENT, NODE, 1000, 54)).reason is Reason.POLICY
    assert come(model, packet(NEAR, NODE, 1000, 80)).action is PASS
    assert come(model, packet(NEAR, NODE, 1000, 81)).reason is Reason.POLICY
    # The answers pass by their flows.
    assert from_node(model, packet(NODE, NEAR, 80, 1000)).action is PASS
    assert from_node(model, packet(NODE, NEAR, 81, 1000)).reason is Reason.POLICY
    assert from_node(model, packet(NODE, WORLD4, 1000, 80)).reason is Reason.POLICY
    # What the node forwards is none of its policy.
    assert leave(model, packet(NEAR, WORLD4, 1, 2), ingress=NIC).action is PASS


def test_pods_packets_to_the_node_take_the_way_past_the_policy() -> None:
    model = firewall()
    decision = model.run(Input("from_container", packet(CLIENT, ROUTER, 1, 2), CLIENT_DEVICE))
    assert decision.forward is not None and decision.forward.ifindex == model.world.node.net
    sent = model.run(Input("from_host", packet(NODE, WEB, 1, 2), HOST_DEVICE))
    assert sent.action is REDIRECT
    enforce(model, HOST, egress=[])
    assert model.run(Input("from_host", packet(NODE, WEB, 1, 2), HOST_DEVICE)).reason is Reason.POLICY


def test_no_policy_closes_the_failsafe_ports() -> None:
    model = firewall(ingress=[], egress=[])
    model.world.failsafe = frozenset((Failsafe(True, TCP, 22), Failsafe(False, UDP, 53)))
    assert come(model, packet(NEAR, NODE, 1000, 22, protocol=TCP)).action is PASS
    answer = packet(NODE, NEAR, 22, 1000, protocol=TCP, flags=SYN | ACK)
    assert from_node(model, answer).action is PASS
    assert from_node(model, packet(NODE, WORLD4, 1000, 53)).action is PASS
    assert come(model, packet(NEAR, NODE, 1000, 53)).reason is Reason.POLICY
    model.world.policies.clear()
    assert come(model, packet(NEAR, NODE, 1001, 22, protocol=TCP)).action is PASS
    assert come(model, packet(NEAR, NODE, 1001, 23, protocol=TCP)).reason is Reason.POLICY_NOT_READY


def test_what_has_no_flow_is_judged_by_itself() -> None:
    frame = build.ipv4(NEAR, NODE, 47, bytes(20))
    assert come(firewall(), frame).action is PASS, "nothing is enforced"
    assert come(firewall(ingress=[]), frame).reason is Reason.POLICY
    assert come(firewall(ingress=[Entry(70000, 47, 0, 0)]), frame).action is PASS
    assert come(firewall(ingress=[Entry(0, ICMP, 0, 16)]), echo(NEAR, NODE, 7, reply=True)).action is PASS
    assert come(firewall(ingress=[Entry(0, ICMP, 8, 16)]), echo(NEAR, NODE, 7, reply=True)).action is DROP
    assert come(firewall(ingress=[Entry(0, 0, 0, 0)]), frame[:30] + NODE).reason is Reason.INVALID_PACKET


def test_a_connection_from_before_is_judged_by_who_began_it() -> None:
    sockets = (
        Socket(NODE, TCP, 22),
        Socket(NODE, TCP, 22, peer=(NEAR, 5)),
        Socket(NODE, TCP, 6, peer=(NEAR, 80)),
    )
    model = firewall(ingress=[Entry(0, TCP, 22, 16)], egress=[Entry(0, TCP, 80, 16)])
    model.world.node = replace(model.world.node, sockets=sockets)
    assert from_node(model, packet(NODE, NEAR, 22, 5, protocol=TCP, flags=ACK)).action is PASS
    assert come(model, packet(NEAR, NODE, 80, 6, protocol=TCP, flags=ACK)).action is PASS
    assert from_node(model, packet(NODE, NEAR, 22, 9, protocol=TCP, flags=ACK)).reason is Reason.POLICY
    assert {flow.tuple.source for flow in model.conntrack.flows.values()} == {NEAR, NODE}


def test_reports() -> None:
    model = firewall(ingress=[Entry(CLIENT_ID, UDP, 53, 16, cookie=7)])
    model.world.wants_events = model.world.wants_trace = True
    to_node(model, packet(CLIENT, NODE, 1000, 53))
    verdict, trace = model.reports
    assert (verdict.kind, verdict.verdict, verdict.rule, verdict.identities) == (
        "verdict",
        "allow",
        (7, 1),
        (300, 1),
    )
    assert (trace.kind, trace.point, trace.state) == ("trace", "to-host", "new")
    to_node(model, packet(CLIENT, NODE, 1000, 53))
    assert not model.reports
    to_node(model, packet(CLIENT, NODE, 1000, 54))
    (drop,) = model.reports
    assert (drop.reason, drop.is_ingress, drop.flow) == (Reason.POLICY, True, (UDP, 1000, 54))
    model.run(Input("from_container", build.arp(2, bytes(6), CLIENT, WEB), CLIENT_DEVICE))
    assert not model.reports, "chatter is only counted"
