"""The prober and the network under the nodes, without any service."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab import netns, sweep, underlay
from cli.lab.paths import LabPaths, netns_path
from cli.lab.prober import DEFAULT_TIMEOUT, Attempt, probe_many
from cli.lab.processes import POOL_CIDRS

pytestmark = pytest.mark.cluster
NODES = ["node-1", "node-2"]
PROTOCOLS = ("TCP", "UDP", "SCTP")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabPaths]:
    paths = LabPaths.of(tmp_path_factory.mktemp("underlay") / "lab")
    underlay.ensure(paths, NODES)
    yield paths
    sweep.remove(paths)
    assert not netns.named(paths.netns_prefix)


@pytest.fixture(params=[4, 6])
def ends(paths: LabPaths, request: pytest.FixtureRequest) -> tuple[Path, Path, str]:
    first, second = (netns_path(paths.node_netns(node)) for node in NODES)
    return first, second, underlay.node_address("node-2", request.param)


def test_making_the_underlay_again_changes_nothing(paths: LabPaths) -> None:
    before = [netns.ip("addr", netns=name) for name in netns.named(paths.netns_prefix)]
    underlay.ensure(paths, NODES)
    assert [netns.ip("addr", netns=name) for name in netns.named(paths.netns_prefix)] == before


def test_a_half_made_node_is_made_whole(paths: LabPaths, ends: tuple[Path, Path, str]) -> None:
    first, second, address = ends
    netns.ip("link", "delete", underlay.DEVICE, netns=paths.node_netns("node-2"))
    underlay.ensure(paths, NODES)
    (outcome,) = probe_many([Attempt(first, address, 80, "TCP", second)])
    assert outcome.reached


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_open_way_is_reached(ends: tuple[Path, Path, str], protocol: str) -> None:
    first, second, address = ends
    (outcome,) = probe_many([Attempt(first, address, 80, protocol, second)])
    assert outcome.reached and outcome.seconds < DEFAULT_TIMEOUT
    assert outcome.source_port > 1024


@pytest.mark.parametrize("known", [True, False], ids=["answered", "silent"])
def test_a_message_is_answered_or_seen_to_arrive(ends: tuple[Path, Path, str], known: bool) -> None:
    first, second, address = ends
    # Echo, which the kernel answers, and information and node queries, which it does not.
    type = {(4, True): 8, (4, False): 15, (6, True): 128, (6, False): 139}[6 if ":" in address else 4, known]
    (outcome,) = probe_many([Attempt(first, address, type, "ICMP", second)])
    assert (outcome.reached, outcome.how) == (True, "answered" if known else "arrived")
    assert outcome.seconds < DEFAULT_TIMEOUT


def test_a_timestamp_is_answered_over_ipv4(paths: LabPaths) -> None:
    first, second = (netns_path(paths.node_netns(node)) for node in NODES)
    address = underlay.node_address("node-2", 4)
    (outcome,) = probe_many([Attempt(first, address, 13, "ICMP", second)])
    assert (outcome.reached, outcome.how) == (True, "answered")


def test_pings_are_told_apart(ends: tuple[Path, Path, str]) -> None:
    first, second, address = ends
    nowhere = "2001:db8::9" if ":" in address else "192.0.2.9"
    type = 128 if ":" in address else 8
    pings = [Attempt(first, to, type, "ICMP", second) for to in (address, nowhere, address)]
    outcomes = probe_many(pings, timeout=0.2)
    assert [outcome.reached for outcome in outcomes] == [True, False, True]
    assert len({outcome.source_port for outcome in outcomes}) == 3


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "ICMP"])
def test_a_blocked_way_is_not_reached(paths: LabPaths, ends: tuple[Path, Path, str], protocol: str) -> None:
    first, second, address = ends
    back = underlay.node_address("node-1", 6 if ":" in address else 4)
    netns.ip("route", "add", "blackhole", back, netns=paths.node_netns("node-2"))
    try:
        port = {"ICMP": 128 if ":" in address else 8}.get(protocol, 80)
        (outcome,) = probe_many([Attempt(first, address, port, protocol, second)], timeout=0.2)
        assert not outcome.reached
        assert outcome.how == "no answer within 0.2 s"
    finally:
        netns.ip("route", "del", "blackhole", back, netns=paths.node_netns("node-2"))


def test_a_refusal_is_an_answer(ends: tuple[Path, Path, str]) -> None:
    first, _, address = ends
    for outcome in probe_many([Attempt(first, address, 81, protocol) for protocol in ("TCP", "UDP")]):
        assert outcome.reached and "refused" in outcome.how


@pytest.mark.parametrize("nowhere", ["192.0.2.9", "2001:db8::9"])
def test_no_route_is_told_apart_from_a_drop(paths: LabPaths, nowhere: str) -> None:
    netns.ip("route", "add", "unreachable", nowhere, netns=paths.node_netns("node-1"))
    first = netns_path(paths.node_netns("node-1"))
    for outcome in probe_many([Attempt(first, nowhere, 80, protocol) for protocol in (*PROTOCOLS, "ICMP")]):
        assert not outcome.reached
        assert outcome.how in ("no route to host", "network is unreachable")


@pytest.mark.parametrize("both", [False, True])
def test_a_listener_of_the_pods_own_is_probed_and_kept(ends: tuple[Path, Path, str], both: bool) -> None:
    first, second, address = ends
    family = socket.AF_INET6 if both or ":" in address else socket.AF_INET

    def listen() -> socket.socket:
        own = socket.create_server(("", 8080), family=family, dualstack_ipv6=both)
        own.settimeout(2)
        return own

    with netns.run_in(second, listen) as own:
        (outcome,) = probe_many([Attempt(first, address, 8080, "TCP", second)])
        assert outcome.reached
        own.accept()[0].close()


def test_many_probes_take_hardly_longer_than_one(ends: tuple[Path, Path, str]) -> None:
    first, second, address = ends
    attempts = [Attempt(first, address, 1000 + n % 40, PROTOCOLS[n % 3], second) for n in range(1200)]
    outcomes = probe_many(attempts, timeout=2)
    assert len(outcomes) == 1200
    assert all(outcome.reached for outcome in outcomes)


def test_the_caller_stays_in_its_own_namespace(ends: tuple[Path, Path, str]) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    probe_many([Attempt(ends[0], ends[2], 80, "TCP", ends[1])])
    assert os.stat("/proc/thread-self/ns/net").st_ino == before


@pytest.mark.parametrize("family", underlay.FAMILIES)
def test_the_host_outside_reaches_nodes_and_has_no_way_to_pods(paths: LabPaths, family: int) -> None:
    node, outside = netns_path(paths.node_netns("node-1")), netns_path(paths.outside_netns)
    pods = ipaddress.ip_network(POOL_CIDRS[family])
    own, away = underlay.node_address("node-1", family), underlay.OUTSIDE_HOST[family]
    there, back, lost = probe_many(
        [
            Attempt(node, away, 80, "TCP", outside),
            Attempt(outside, own, 80, "TCP", node),
            Attempt(outside, str(pods[9]), 80, "TCP"),
        ]
    )
    assert there.reached and back.reached
    assert lost.how == "network is unreachable"


def test_an_underlay_of_one_family_has_no_other(tmp_path: Path) -> None:
    paths = LabPaths.of(tmp_path / "lab")
    try:
        underlay.ensure(paths, ["node-1"], families=(4,))
        for name in netns.named(paths.netns_prefix):
            assert not netns.ip("-6", "addr", "show", "scope", "global", netns=name)
    finally:
        sweep.remove(paths)
