"""Real packets between real namespaces, on one node and across two."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from services.loader.bpf import drop_reasons as reason
from services.loader.bpf.layout import mac_bytes
from tests.kernel.bpf.cluster import (
    SILENCE,
    Cluster,
    ClusterNode,
    Pod,
    connects,
    listening,
    open_socket,
    pings,
)
from tests.kernel.bpf.namespaces import Namespaces
from tests.kernel.bpf.node import Rule
from tests.kernel.bpf.packets import SYN, TCP, UDP, Ip, tcp, tcp_segment, with_l4_checksum
from tests.kernel.bpf.packets6 import tcp6
from tests.patience import patient

pytestmark = pytest.mark.kernel

WEB_ID, CLIENT_ID, NEIGHBOUR_ID = 1001, 1002, 1003
ETH_P_ALL = 3


@pytest.fixture
def cluster(namespaces: Namespaces, pin_dir: str, cache_dir: str) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(namespaces, pin_dir, cache_dir, stack)


@pytest.fixture
def first(cluster: Cluster) -> ClusterNode:
    return cluster.nodes[0]


@pytest.fixture
def web(cluster: Cluster) -> Pod:
    return cluster.add_pod(cluster.nodes[0], "web", WEB_ID)


@pytest.fixture
def neighbour(cluster: Cluster, web: Pod) -> Pod:
    """On the node of ``web``."""
    return cluster.add_pod(cluster.nodes[0], "nbr", NEIGHBOUR_ID)


@pytest.fixture
def client(cluster: Cluster) -> Pod:
    """On the other node."""
    return cluster.add_pod(cluster.nodes[1], "client", CLIENT_ID)


def test_pods_and_nodes_reach_each_other(cluster: Cluster, web: Pod, neighbour: Pod, client: Pod) -> None:
    first, second = cluster.nodes
    with listening(web, 80) as server:
        for namespace in (neighbour.namespace, client.namespace, first.namespace, second.namespace):
            assert connects(namespace, server), namespace.name
    for source, target in (
        (web, client.address), (client, web.address), (neighbour, web.address), (web, neighbour.address),
        (web, first.router), (web, first.address), (client, first.router), (web, second.router),
    ):  # fmt: skip
        assert pings(source.namespace, target), (source.address, target)
    for each in cluster.nodes:
        assert each.node.drops() == {}


def test_policy_holds_on_one_node_and_across(cluster: Cluster, web: Pod, neighbour: Pod, client: Pod) -> None:
    node = web.node.node
    node.policy(web.row.subject, ingress=[Rule(CLIENT_ID, TCP, 80)])
    with listening(web, 80) as server, listening(web, 81) as other:
        assert connects(client.namespace, server)
        assert not connects(client.namespace, other)
        assert not connects(neighbour.namespace, server)
        # The node itself always; another node only if it is allowed.
        assert connects(web.node.namespace, server)
        assert not connects(client.node.namespace, server)
        node.policy(web.row.subject, ingress=[Rule(6)])
        assert connects(client.node.namespace, server)
        assert not connects(client.namespace, server)
    assert set(node.drops()) == {reason.POLICY}


def test_a_change_reaches_a_connection_in_its_middle(web: Pod, client: Pod) -> None:
    node = web.node.node
    with listening(web, 80) as server, client.socket(socket.SOCK_STREAM) as sender:
        sender.connect(server.getsockname())
        receiver, _ = server.accept()
        with receiver:
            sender.sendall(b"1")
            assert receiver.recv(1) == b"1"
            node.policy(web.row.subject, ingress=[])
            sender.sendall(b"2")
            receiver.settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                receiver.recv(1)
            node.policy(web.row.subject, ingress=[Rule(CLIENT_ID)])
            receiver.settimeout(10)
            assert receiver.recv(1) == b"2"


@pytest.mark.parametrize("source", ["neighbour", "client"])
def test_much_data_arrives_whole(source: str, web: Pod, request: pytest.FixtureRequest) -> None:
    """Segments larger than the MTU, as the stack makes them, go through as they are."""
    pod: Pod = request.getfixturevalue(source)
    size = 16 << 20
    with listening(web, 80) as server, pod.socket(socket.SOCK_STREAM) as sender:
        sender.connect(server.getsockname())
        receiver, _ = server.accept()
        with receiver:
            thread = threading.Thread(target=sender.sendall, args=(bytes(size),))
            thread.start()
            left = size
            while left:
                left -= len(receiver.recv(1 << 20))
            thread.join()
    assert web.node.node.drops() == {}


@pytest.mark.parametrize("size", [1, 1400, 4000, 20000])
def test_datagrams_of_any_size_arrive(web: Pod, neighbour: Pod, client: Pod, size: int) -> None:
    web.node.node.policy(web.row.subject, ingress=[Rule(0, UDP, 53)])
    for source in (neighbour, client):
        with web.socket(socket.SOCK_DGRAM) as server, source.socket(socket.SOCK_DGRAM) as sender:
            server.bind((web.address, 53))
            sender.sendto(bytes(size), server.getsockname())
            data, peer = server.recvfrom(65535)
            assert len(data) == size
            server.sendto(data, peer)
            assert len(sender.recv(65535)) == size


def test_a_large_ping_passes_in_fragments(web: Pod, neighbour: Pod, client: Pod) -> None:
    for source in (neighbour, client):
        assert pings(source.namespace, web.address, "-s", "4000")


def test_a_refusal_comes_back(web: Pod, neighbour: Pod, client: Pod) -> None:
    """ICMP port unreachable is of the datagram's flow, also where nothing may come in by itself."""
    for source in (neighbour, client):
        source.node.node.policy(source.row.subject, ingress=[])
        with source.socket(socket.SOCK_DGRAM) as sender:
            sender.connect((web.address, 9))
            sender.send(b"?")
            with pytest.raises(ConnectionRefusedError):
                sender.recv(1)


def test_a_hop_that_runs_out_is_reported_by_the_router(web: Pod, neighbour: Pod, client: Pod) -> None:
    assert not pings(neighbour.namespace, web.address, "-t", "1")
    assert pings(neighbour.namespace, web.address, "-t", "2")
    heard = neighbour.namespace.command("sh", "-c", f"ping -c 1 -W 1 -t 1 {web.address} || true")
    assert f"From {web.node.router}" in heard and "Time to live exceeded" in heard
    heard = client.namespace.command("sh", "-c", f"ping -c 1 -W 1 -t 1 {web.address} || true")
    assert f"From {web.node.router}" in heard and "Time to live exceeded" in heard


def vxlan_identity(frame: bytes) -> int | None:
    """The VNI of an Ethernet frame, None if it is not VXLAN."""
    if frame[12:14] != b"\x08\x00" or frame[23] != UDP or frame[36:38] != struct.pack("!H", 4789):
        return None
    return int.from_bytes(frame[46:49], "big")


def test_the_identity_travels_in_the_vni(cluster: Cluster, web: Pod, client: Pod) -> None:
    first = cluster.nodes[0]
    with first.namespace.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        tap.bind(("eth0", ETH_P_ALL))
    with tap:
        tap.settimeout(patient(5))
        assert pings(web.namespace, client.address)
        assert pings(first.namespace, client.address)
        seen: list[int] = []
        while len(seen) < 4:
            identity = vxlan_identity(tap.recv(2048))
            if identity is not None:
                seen.append(identity)
    # The answer to the node comes from the pod; the question to it from the host.
    assert seen == [WEB_ID, CLIENT_ID, 1, CLIENT_ID]


def forge(cluster: Cluster, vni: int, inner: bytes) -> None:
    """Sends a VXLAN packet to the first node from the second's stack, past its programs."""
    with open_socket(cluster.nodes[1].namespace, socket.SOCK_DGRAM) as sender:
        header = struct.pack("!II", 0x08000000, vni << 8)
        sender.sendto(header + inner, (cluster.nodes[0].address, 4789))


def await_drop(node: ClusterNode, expected: int) -> None:
    """Waits until a drop for this reason, and no other, is counted."""
    # A pod's stack announces itself from its link-local address.
    announced = {reason.ND_IGNORED, reason.INVALID_SIP}
    deadline = time.monotonic() + patient(5)
    while not set(node.node.drops()) - announced:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert set(node.node.drops()) - announced == {expected}


@pytest.mark.parametrize(
    ("vni", "destination", "expected"),
    [
        (0, "web", reason.INVALID_IDENTITY),
        (CLIENT_ID, "10.244.1.77", reason.NO_LXC),
        (CLIENT_ID, "198.51.100.1", reason.NO_LXC),
        (CLIENT_ID, "web", reason.POLICY),
        (1, "web", reason.POLICY),
    ],
)
def test_what_the_overlay_brings_is_judged(
    cluster: Cluster, web: Pod, client: Pod, vni: int, destination: str, expected: int
) -> None:
    # Identity 1 is not this node's host when another node says it.
    web.node.node.policy(web.row.subject, ingress=[Rule(1), Rule(NEIGHBOUR_ID)])
    target = web.address if destination == "web" else destination
    forge(cluster, vni, tcp(client.address, target, 1, 80))
    await_drop(cluster.nodes[0], expected)


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("web", reason.POLICY),
        ("fd00:244:1::77", reason.NO_LXC),
        ("2001:db8::1", reason.NO_LXC),
    ],
)
def test_ipv6_that_the_overlay_brings_is_judged(
    cluster: Cluster, web: Pod, client: Pod, destination: str, expected: int
) -> None:
    target = cluster.give_ipv6(web) if destination == "web" else destination
    web.node.node.policy(web.row.subject, ingress=[Rule(NEIGHBOUR_ID)])
    forge(cluster, CLIENT_ID, tcp6("fd00:244:2::10", target, 1, 80))
    await_drop(cluster.nodes[0], expected)


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (b"\x86\xdd\x60" + bytes(39), reason.INVALID_EXTHDR),
        (b"\x86\xdd\x50" + bytes(39), reason.INVALID),
        (b"\x88\xcc" + bytes(46), reason.UNKNOWN_L3),
    ],
)
def test_nonsense_from_the_overlay_is_dropped(
    cluster: Cluster, web: Pod, inner: bytes, expected: int
) -> None:
    forge(cluster, CLIENT_ID, mac_bytes("02:00:00:00:00:01") * 2 + inner)
    await_drop(cluster.nodes[0], expected)


def test_pods_reach_each_other_by_ipv6(cluster: Cluster, web: Pod, neighbour: Pod, client: Pod) -> None:
    for pod in (web, neighbour, client):
        cluster.give_ipv6(pod)
    for source, target in ((neighbour, web), (web, neighbour), (client, web), (web, client)):
        assert pings(source.namespace, target.row.ipv6), (source.row.ipv6, target.row.ipv6)
        # In fragments.
        assert pings(source.namespace, target.row.ipv6, "-s", "8000"), (source.row.ipv6, target.row.ipv6)
    web.node.node.policy(web.row.subject, ingress=[Rule(CLIENT_ID, TCP, 80)])
    with (
        listening(web, 80, family=socket.AF_INET6) as server,
        listening(web, 81, family=socket.AF_INET6) as other,
    ):
        assert connects(client.namespace, server)
        assert not connects(client.namespace, other)
        assert not connects(neighbour.namespace, server)
    assert not pings(client.namespace, web.row.ipv6)
    events = [event for event in web.node.node.events() if event.reason == reason.POLICY]
    assert {(event.source, event.destination) for event in events} == {
        (client.row.ipv6, web.row.ipv6),
        (neighbour.row.ipv6, web.row.ipv6),
    }


def test_frames_too_short_for_a_header_are_dropped(web: Pod, neighbour: Pod) -> None:
    """From a pod's packet socket: the truncated frames that a test run does not take."""
    with neighbour.namespace.entered():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        raw.bind(("eth0", 0))
    head = Ip(neighbour.address, web.address, TCP)
    whole = head.pack(with_l4_checksum(head, tcp_segment(1, 80, SYN), 16))
    frame = mac_bytes(neighbour.row.host_mac) + mac_bytes(neighbour.row.pod_mac) + b"\x08\x00" + whole
    with raw:
        for size in range(15, 34):
            raw.send(frame[:size])
    node = neighbour.node.node
    assert node.drops() == {reason.INVALID: 19}


def test_vlan_tags_are_dropped(web: Pod, neighbour: Pod) -> None:
    with neighbour.namespace.entered():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        raw.bind(("eth0", 0))
    packet = tcp(neighbour.address, web.address, 1, 80)
    with raw:
        raw.send(mac_bytes(neighbour.row.host_mac) + packet[6:12] + b"\x81\x00\x00\x05" + packet[12:])
    assert neighbour.node.node.drops() == {reason.UNSUPPORTED_L2: 1}


def test_a_pod_cannot_pretend_to_be_another(web: Pod, neighbour: Pod) -> None:
    with neighbour.socket(socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        forged = Ip("10.244.1.99", web.address, UDP).pack(struct.pack("!HHHH", 1, 53, 8, 0))
        raw.sendto(forged, (web.address, 0))
    assert neighbour.node.node.drops() == {reason.INVALID_SIP: 1}
    (event,) = neighbour.node.node.events()
    assert (event.source, event.endpoint_id) == ("10.244.1.99", neighbour.row.endpoint_id)


def test_forwarding_needs_nobody_running(web: Pod, client: Pod) -> None:
    """Every descriptor closed: pins and filters hold all there is."""
    with listening(web, 80) as server:
        for pod in (web, client):
            pod.node.datapath.close()
        assert connects(client.namespace, server)


def test_the_world_behind_the_node_is_reached_and_answers(cluster: Cluster, web: Pod) -> None:
    """By the node's stack; the world here is the other node, which has no overlay to this address."""
    first, second = cluster.nodes
    second.namespace.command("ip", "address", "add", "198.51.100.1/32", "dev", "lo")
    second.namespace.command("ip", "route", "add", f"{web.address}/32", "via", first.address)
    first.namespace.command("ip", "route", "add", "198.51.100.1/32", "via", second.address)
    assert pings(web.namespace, "198.51.100.1")
    web.node.node.policy(web.row.subject, ingress=[], egress=[Rule(2, TCP, 80)])
    with open_socket(second.namespace, socket.SOCK_STREAM) as server:
        server.bind(("198.51.100.1", 80))
        server.listen()
        assert connects(web.namespace, server)
    assert not pings(web.namespace, "198.51.100.1")
