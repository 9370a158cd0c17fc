"""Which port a flow gets, and that no two flows ever have the same one."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from services.loader.bpf.nat import Kind, NatEntry
from tests.kernel.bpf.namespaces import Namespace
from tests.kernel.nat.frames import SCTP, TCP, UDP, Family, Packet, build
from tests.kernel.nat.translator import NO_MAPPING, Translator, reverse_of

pytestmark = pytest.mark.kernel

Opener = Callable[..., Translator]


def flow(family: Family, sport: int, *, pod: str = "", peer: str = "", protocol: int = TCP) -> Packet:
    return build(family, pod or family.pod, peer or family.peer, protocol, sport, 80)


def port_of(nat: Translator, packet: Packet) -> int:
    """The source port with which it leaves."""
    return nat.leave(packet).packet.ports[0]


def original(nat: Translator, packet: Packet) -> NatEntry:
    (found,) = [
        entry
        for entry in nat.entries(Kind.ORIGINAL)
        if (entry.source, entry.source_port) == (packet.source, packet.ports[0])
    ]
    return found


def assert_sound(nat: Translator) -> None:
    """Every flow has a pair, and no two have one port towards the same peer."""
    originals = nat.entries(Kind.ORIGINAL)
    reverse = {replace(entry, created=0) for entry in nat.entries(Kind.REVERSE)}
    assert {reverse_of(entry) for entry in originals} <= reverse
    taken = Counter((e.protocol, e.destination, e.destination_port, e.to, e.to_port) for e in originals)
    assert all(count == 1 for count in taken.values())


@pytest.mark.parametrize("protocol", ["tcp", "udp", "echo"])
def test_a_port_of_the_range_is_kept_while_it_is_free(nat: Translator, family: Family, protocol: str) -> None:
    kind = {"tcp": TCP, "udp": UDP, "echo": family.echo}[protocol]
    for port in (61000, 62345, 65535):
        assert port_of(nat, flow(family, port, protocol=kind)) == port
        another = port_of(nat, flow(family, port, pod=family.other_pod, protocol=kind))
        assert another != port and 61000 <= another <= 65535
        # A port is one flow's only towards one peer.
        assert (
            port_of(nat, flow(family, port, pod=family.other_pod, peer=family.other_peer, protocol=kind))
            == port
        )
    for port in (0, 1, 60999):
        assert 61000 <= port_of(nat, flow(family, port, protocol=kind)) <= 65535
    assert_sound(nat)


def test_ports_are_spread_over_the_range(nat: Translator, family: Family) -> None:
    ports = {port_of(nat, flow(family, sport)) for sport in range(1, 401)}
    assert len(ports) == 400
    assert min(ports) < 62000 and max(ports) > 64500
    # Not in order, and another order for the next peer: nothing to foretell one by another.
    again = [port_of(nat, flow(family, sport, peer=family.other_peer)) for sport in range(1, 401)]
    assert sum(a == b for a, b in zip(sorted(ports), again, strict=True)) < 20
    assert_sound(nat)


def test_a_range_of_two_ports_is_exhausted_by_two_flows(
    namespace: Namespace, open_translator: Opener, family: Family
) -> None:
    nat = open_translator(ports=(61000, 61001))
    assert {port_of(nat, flow(family, 1)), port_of(nat, flow(family, 2))} == {61000, 61001}
    assert nat.leave(flow(family, 3)).dropped_for == NO_MAPPING
    assert nat.leave(flow(family, 61000, pod=family.other_pod)).dropped_for == NO_MAPPING
    # Elsewhere the ports are free.
    assert port_of(nat, flow(family, 3, peer=family.other_peer)) in (61000, 61001)
    assert port_of(nat, flow(family, 3, protocol=UDP)) in (61000, 61001)
    # The flows that have one go on.
    first = port_of(nat, flow(family, 1))
    for entry in nat.both(original(nat, flow(family, 1))):
        nat.forget(entry)
    assert port_of(nat, flow(family, 3)) == first
    assert nat.leave(flow(family, 1)).dropped_for == NO_MAPPING
    assert_sound(nat)


@pytest.mark.parametrize("size", [1, 7, 31])
def test_every_port_of_a_small_range_is_found(
    namespace: Namespace, open_translator: Opener, family: Family, size: int
) -> None:
    nat = open_translator(ports=(61000, 61000 + size - 1))
    ports = [port_of(nat, flow(family, sport)) for sport in range(1, size + 1)]
    assert sorted(ports) == list(range(61000, 61000 + size))
    assert nat.leave(flow(family, size + 1)).dropped_for == NO_MAPPING


def test_a_nearly_full_range_still_yields_ports(
    namespace: Namespace, open_translator: Opener, family: Family
) -> None:
    """Half of it is given out without a miss; then more and more flows are dropped, never doubled."""
    nat = open_translator(ports=(61000, 61499))
    assert all(nat.leave(flow(family, sport)).dropped_for is None for sport in range(1, 251))
    for sport in range(251, 700):
        assert nat.leave(flow(family, sport)).dropped_for in (None, NO_MAPPING)
    assert len(nat.entries(Kind.ORIGINAL)) > 450
    assert_sound(nat)


@pytest.mark.parametrize("lost", [Kind.ORIGINAL, Kind.REVERSE])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "echo", "sctp"])
def test_the_next_packet_puts_back_what_the_lru_took(
    nat: Translator, family: Family, lost: Kind, protocol: str
) -> None:
    kind = {"tcp": TCP, "udp": UDP, "echo": family.echo, "sctp": SCTP}[protocol]
    sent = flow(family, 1234, protocol=kind)
    left = nat.leave(sent).packet
    before = nat.both(original(nat, sent))
    nat.forget(before[lost])
    assert len(nat.entries()) == 1
    assert nat.leave(sent).packet == left
    after = nat.both(original(nat, sent))
    assert [replace(entry, created=0) for entry in after] == [replace(entry, created=0) for entry in before]
    assert nat.arrive(left.answered()).packet == sent.answered()


def test_a_flow_finds_its_port_again_though_a_nearer_one_is_free_by_now(
    namespace: Namespace, open_translator: Opener, family: Family
) -> None:
    """Flows that had to look further: their original entry lost, all that stood in their way gone."""
    nat = open_translator(ports=(61000, 61063))
    ports = {sport: port_of(nat, flow(family, sport)) for sport in range(1, 51)}
    survivors = range(41, 51)
    for entry in nat.entries():
        port = entry.source_port if entry.kind == Kind.ORIGINAL else entry.to_port
        if port not in survivors or entry.kind == Kind.ORIGINAL:
            nat.forget(entry)
    assert {sport: port_of(nat, flow(family, sport)) for sport in survivors} == {
        s: ports[s] for s in survivors
    }
    assert_sound(nat)


def test_a_pair_that_is_gone_is_made_anew(nat: Translator, family: Family) -> None:
    sent = flow(family, 5)
    nat.leave(sent)
    for entry in nat.entries():
        nat.forget(entry)
    assert nat.arrive(build(family, family.peer, family.node, TCP, 80, 61000)).untouched
    nat.leave(sent)
    assert_sound(nat)


def test_a_port_that_another_flow_took_meanwhile_is_not_shared(
    namespace: Namespace, open_translator: Opener, family: Family
) -> None:
    nat = open_translator(ports=(61000, 61001))
    first, second, third = (flow(family, sport) for sport in (1, 2, 3))
    lost = port_of(nat, first)
    nat.leave(second)
    nat.forget(nat.both(original(nat, first))[1])
    assert port_of(nat, third) == lost
    assert nat.leave(first).dropped_for == NO_MAPPING
    nat.forget(nat.both(original(nat, second))[1])
    nat.forget(original(nat, second))
    assert port_of(nat, first) != lost
    assert_sound(nat)


def test_a_new_address_of_the_node_is_used_at_once(
    namespace: Namespace, open_translator: Opener, family: Family
) -> None:
    sent = flow(family, 5)
    open_translator().leave(sent)
    moved = open_translator(node4="192.0.2.9", node6="2001:db8:1::9")
    left = moved.leave(sent).packet
    assert left.source == ("2001:db8:1::9" if family.v6 else "192.0.2.9")
    assert left.transport_sum() == 0
    assert original(moved, sent).to == left.source
    assert moved.arrive(left.answered()).packet == sent.answered()


def test_sctp_keeps_its_port_and_is_dropped_where_another_pod_has_it(nat: Translator, family: Family) -> None:
    assert port_of(nat, flow(family, 5, protocol=SCTP)) == 5
    assert nat.leave(flow(family, 5, pod=family.other_pod, protocol=SCTP)).dropped_for == NO_MAPPING
    assert port_of(nat, flow(family, 5, pod=family.other_pod, peer=family.other_peer, protocol=SCTP)) == 5
    assert port_of(nat, flow(family, 6, pod=family.other_pod, protocol=SCTP)) == 6
    assert_sound(nat)


def test_a_port_of_the_nodes_own_connection_is_refused(
    namespace: Namespace, nat: Translator, family: Family
) -> None:
    namespace.command(
        "ip", "address", "add", f"{family.peer}/{128 if family.v6 else 32}", "dev", "lo", "nodad"
    )
    kind = socket.AF_INET6 if family.v6 else socket.AF_INET
    with (
        socket.socket(kind) as server,
        socket.socket(kind) as client,
        socket.socket(kind, socket.SOCK_DGRAM) as dns,
    ):
        server.bind((family.peer, 80))
        server.listen()
        client.bind((family.node, 61234))
        client.connect((family.peer, 80))
        assert port_of(nat, flow(family, 61234)) != 61234
        # Towards another peer, and in another protocol, the port is not the node's.
        assert port_of(nat, flow(family, 61234, peer=family.other_peer)) == 61234
        assert port_of(nat, flow(family, 61234, protocol=UDP)) == 61234
        dns.bind((family.node, 61235))
        dns.connect((family.peer, 80))
        assert port_of(nat, flow(family, 61235, protocol=UDP)) != 61235
        assert port_of(nat, flow(family, 61235, peer=family.other_peer, protocol=UDP)) == 61235
        assert port_of(nat, flow(family, 61235)) == 61235


def test_a_port_that_the_node_listens_on_is_refused(
    namespace: Namespace, nat: Translator, family: Family
) -> None:
    kind = socket.AF_INET6 if family.v6 else socket.AF_INET
    with socket.socket(kind) as server, socket.socket(kind, socket.SOCK_DGRAM) as datagrams:
        server.bind((family.node, 61240))
        server.listen()
        datagrams.bind((family.node, 61241))
        assert port_of(nat, flow(family, 61240)) != 61240
        assert port_of(nat, flow(family, 61241, protocol=UDP)) != 61241


def test_two_cpus_at_once_never_share_a_port(
    namespace: Namespace, open_translator: Opener, family: Family
) -> None:
    """Two flows for two ports: as often as not both want the same one first, in the same moment."""
    nat = open_translator(ports=(61000, 61001))
    for _ in range(20):
        for ports in nat.race(family, same=False):
            assert sorted(ports) == [61000, 61001]
        assert_sound(nat)
        for entry in nat.entries():
            nat.forget(entry)


def test_two_cpus_at_once_agree_on_the_port_of_a_flow(nat: Translator, family: Family) -> None:
    for _ in range(20):
        rounds = nat.race(family, same=True)
        assert all(first == second != 0 for first, second in rounds)
        assert_sound(nat)
        assert len(nat.entries()) == 2 * len(rounds)
        for entry in nat.entries():
            nat.forget(entry)


def test_who_loses_the_race_for_a_flow_takes_the_winners_port(nat: Translator, family: Family) -> None:
    """Such as when the search of the first found a port taken that was free for the second."""
    nat.race(family, same=True)
    for entry in nat.entries():
        nat.forget(entry)
        if entry.kind == Kind.ORIGINAL:
            nat.table(family).put(*replace(entry, to_port=61500).pack())
    assert set(nat.race_lost(family)) == {61500}
    assert {entry.to_port for entry in nat.entries(Kind.ORIGINAL)} == {61500}
    assert nat.entries(Kind.REVERSE) == []
