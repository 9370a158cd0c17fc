"""A policy comes and goes under connections that are there: they are judged by who began them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from tests.kernel.host.conftest import CLOSED, OPEN, SSH, Cluster
from tests.kernel.host.policies import EGRESS, INGRESS
from tests.kernel.host.traffic import accepted, blocked, carries, connect, reaches, talks

pytestmark = pytest.mark.kernel

Apply = Callable[[str], None]
Eventually = Callable[[Callable[[], bool]], None]
both = pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])


@both
def test_what_the_node_began_goes_on_whoever_speaks_first(
    cluster: Cluster, policy: Apply, ipv6: bool
) -> None:
    with (
        accepted(cluster.world, cluster.node, port=7000, ipv6=ipv6) as (server, client),
        accepted(cluster.world, cluster.node, port=7001, ipv6=ipv6) as (server2, client2),
        accepted(cluster.far, cluster.node, port=7002, ipv6=ipv6) as (server3, client3),
        accepted(cluster.pod, cluster.node, port=7003, ipv6=ipv6) as (server4, client4),
    ):
        policy(INGRESS)
        # Nothing has been seen of it when the peer sends.
        assert carries(server, client)
        assert carries(client, server)
        assert carries(client2, server2)
        assert carries(server2, client2)
        assert carries(server3, client3)
        assert carries(server4, client4)


@both
@pytest.mark.parametrize("first", ["peer", "node"])
def test_what_a_peer_began_is_judged_by_ingress_whoever_speaks_first(
    cluster: Cluster, policy: Apply, eventually: Eventually, first: str, ipv6: bool
) -> None:
    with (
        connect(cluster.world, cluster.node, SSH, ipv6=ipv6) as lifeline,
        connect(cluster.world, cluster.node, OPEN, ipv6=ipv6) as allowed,
        accepted(cluster.node, cluster.world, port=7000, ipv6=ipv6) as (server, client),
        # To the underlay's address it would come with the other node's.
        accepted(cluster.router, cluster.far, port=7001, ipv6=ipv6) as (server2, client2),
    ):
        assert talks(lifeline) and talks(allowed)
        policy(INGRESS)
        # Egress is open, and does not make them the node's.
        for one, other in ((server, client), (server2, client2)):
            ends = (other, one) if first == "peer" else (one, other)
            assert blocked(carries, *ends)
        assert talks(lifeline)
        assert talks(allowed)
        cluster.rig.remove_policy(INGRESS)
        # What was held up arrives.
        eventually(lambda: carries(client, server))
        eventually(lambda: carries(server, client))


@both
def test_egress_cuts_what_the_node_began_and_not_what_others_did(
    cluster: Cluster, policy: Apply, ipv6: bool
) -> None:
    with (
        connect(cluster.node, cluster.world, CLOSED, ipv6=ipv6) as denied,
        connect(cluster.node, cluster.world, OPEN, ipv6=ipv6) as allowed,
        accepted(cluster.node, cluster.world, port=7000, ipv6=ipv6) as (server, client),
    ):
        policy(EGRESS)
        assert blocked(talks, denied)
        assert talks(allowed)
        # The peer's port is none that the node may send to; the peer began.
        assert carries(server, client)
        assert carries(client, server)


@both
def test_a_change_reaches_what_was_admitted(cluster: Cluster, policy: Apply, ipv6: bool) -> None:
    policy(INGRESS)
    with connect(cluster.world, cluster.node, OPEN, ipv6=ipv6) as admitted:
        assert talks(admitted)
        policy(INGRESS.replace("8443", "8444"))
        assert blocked(talks, admitted)
        assert blocked(reaches, cluster.world, cluster.node, OPEN, ipv6=ipv6)


def test_it_comes_and_goes_many_times(cluster: Cluster, policy: Apply) -> None:
    with connect(cluster.node, cluster.world, CLOSED) as own:
        for _ in range(3):
            policy(INGRESS)
            assert blocked(reaches, cluster.world, cluster.node, CLOSED)
            assert talks(own)
            cluster.rig.remove_policy(INGRESS)
            assert reaches(cluster.world, cluster.node, CLOSED)
            assert talks(own)


def next_sequence(of: socket.socket) -> int:
    """The sequence number of what is sent next: who does not know it is not heard."""
    repair, queue, sequence, send_queue, no_probe = 19, 20, 21, 2, -1  # linux/tcp.h
    of.setsockopt(socket.IPPROTO_TCP, repair, 1)
    of.setsockopt(socket.IPPROTO_TCP, queue, send_queue)
    found = of.getsockopt(socket.IPPROTO_TCP, sequence)
    of.setsockopt(socket.IPPROTO_TCP, repair, no_probe)
    return found & 0xFFFFFFFF


def too_big(about: socket.socket, mtu: int) -> bytes:
    """What a router says of the packets that an end of an IPv4 connection sends, from the ICMP header on."""
    local, remote = about.getsockname(), about.getpeername()
    quoted = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 1500, 1, 0x4000, 64, 6, 0,
        socket.inet_aton(local[0]), socket.inet_aton(remote[0]),
    ) + struct.pack("!HHII", local[1], remote[1], next_sequence(about), 0)  # fmt: skip
    header = struct.pack("!BBHHH", 3, 4, 0, 0, mtu)
    total = sum(struct.unpack(f"!{(len(header) + len(quoted)) // 2}H", header + quoted))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return struct.pack("!BBHHH", 3, 4, total, 0, mtu) + quoted


def path_mtu(of: socket.socket) -> int:
    ip_mtu = 14
    return of.getsockopt(socket.IPPROTO_IP, ip_mtu)


def test_a_router_may_tell_of_a_connection_of_which_nothing_was_seen_yet(
    cluster: Cluster, policy: Apply, eventually: Eventually
) -> None:
    with (
        accepted(cluster.world, cluster.node, port=7000) as (_, own),
        accepted(cluster.node, cluster.world, port=7001) as (denied, _),
    ):
        policy(INGRESS)
        raw = cluster.world.namespace.run(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        )
        with raw:
            before = path_mtu(own)
            # What it denies goes unheard; the kernel keeps one MTU a peer, so that comes first.
            raw.sendto(too_big(denied, before - 200), (cluster.node.ipv4, 0))
            raw.sendto(too_big(own, before - 100), (cluster.node.ipv4, 0))
            eventually(lambda: path_mtu(own) == before - 100)
    cluster.node.namespace.command("ip", "route", "flush", "cache")
