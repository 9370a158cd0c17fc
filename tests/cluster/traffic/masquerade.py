"""Who is outside of the cluster sees the node's address, and its answers find their way back to the pod."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.cluster.traffic.path_mtu import told_mtu
from tests.cluster.traffic.peers import router
from tests.cluster.traffic.places import FAMILIES, FAR, NEAR, WEB, Place, Places, poll
from tests.cluster.traffic.policy_changes import apply, remove_all
from tests.cluster.traffic.sockets import Echo, connect, exchange, transfer

PORT = 7000
# The nodes' ports that masqueraded flows come from.
RANGE = range(61000, 65536)
EXCLUDED = {4: "198.51.100.1", 6: "2001:db8:1::1"}
EXCLUDE = "198.51.100.0/24,2001:db8:1::/48"
NOT_EXCLUDED = {4: "203.0.113.1", 6: "2001:db8:2::1"}
KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
NARROW = 1400

NO_WORLD = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: no-world, namespace: traffic}
spec:
  endpointSelector: {matchLabels: {app: near}}
  egress:
  - toEntities: [cluster]
"""

families = pytest.mark.parametrize("family", FAMILIES)
pods = pytest.mark.parametrize("pod", [NEAR, FAR])


def seen_by(place: Place, source: Place, address: str, *, source_port: int = 0) -> set[tuple[str, int]]:
    """Whom a host believes to talk with when `source` comes by TCP and by UDP; its answers have to arrive."""
    with Echo(place, PORT, address) as echo:
        for kind in KINDS:
            with connect(source, address, PORT, kind, source_port=source_port) as made:
                assert exchange(made, b"who am I?") == b"who am I?"
    return {*echo.received, *echo.datagrams}


def addresses_seen(place: Place, source: Place, address: str) -> set[str]:
    """As `seen_by`, without the ports."""
    return {seen for seen, _ in seen_by(place, source, address)}


class World:
    """What does not depend on masquerading."""

    @pytest.fixture(autouse=True)
    def world_addresses(self, places: Places) -> Iterator[None]:
        """Gives the world an address that pods reach with their own, and one that they do not."""
        extra = [*EXCLUDED.values(), *NOT_EXCLUDED.values()]
        for address in extra:
            places.world.ip("addr", "add", address, "dev", "lo")
        yield
        for address in extra:
            places.world.ip("addr", "del", f"{address}/{128 if ':' in address else 32}", "dev", "lo")

    @families
    @pods
    def test_whoever_has_a_route_reaches_a_pod_by_its_own_address(
        self, places: Places, pod: str, family: int
    ) -> None:
        with Echo(places[pod], PORT) as echo:
            for kind in KINDS:
                with connect(places.world, places[pod].addresses[family], PORT, kind) as made:
                    assert exchange(made, b"hello") == b"hello"
        assert len({*echo.received, *echo.datagrams}) == 2

    @families
    @pods
    def test_a_pod_reaches_its_own_node_with_its_own_address(
        self, places: Places, pod: str, family: int
    ) -> None:
        node = places.node_of(pod)
        assert addresses_seen(node, places[pod], node.addresses[family]) == {places[pod].addresses[family]}

    @families
    def test_a_node_keeps_its_own_ports(self, places: Places, family: int) -> None:
        node = places["node-1"]
        seen = seen_by(places.outside, node, places.outside.addresses[family], source_port=40123)
        assert seen == {(node.addresses[family], 40123)}

    @families
    @pods
    def test_what_is_excluded_sees_the_pods_own_address(self, places: Places, pod: str, family: int) -> None:
        assert addresses_seen(places.world, places[pod], EXCLUDED[family]) == {places[pod].addresses[family]}


class Masquerade(World):
    """With masquerading. `OTHER_NODES` are reached with the node's address, or with the pod's own."""

    OTHER_NODES_SEE_NODE: bool

    @families
    @pods
    def test_the_node_is_seen_and_a_port_of_the_range(self, places: Places, pod: str, family: int) -> None:
        seen = seen_by(places.outside, places[pod], places.outside.addresses[family])
        assert {address for address, _ in seen} == {places.node_of(pod).addresses[family]}
        assert all(port in RANGE for _, port in seen)

    @families
    @pods
    def test_the_world_sees_the_node_too(self, places: Places, pod: str, family: int) -> None:
        node = places.node_of(pod).addresses[family]
        assert addresses_seen(places.world, places[pod], NOT_EXCLUDED[family]) == {node}

    @families
    def test_another_node_sees_who_it_can_answer(self, places: Places, family: int) -> None:
        other = places["node-2"]
        expected = places["node-1"] if self.OTHER_NODES_SEE_NODE else places[NEAR]
        seen = addresses_seen(other, places[NEAR], other.addresses[family])
        assert seen == {expected.addresses[family]}

    @families
    @pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
    def test_every_protocol_is_answered(self, places: Places, protocol: str, family: int) -> None:
        probes = [(pod, "@outside", 80, protocol) for pod in (WEB, NEAR, FAR)]
        results = places.lab.probe_many(probes, family=family, timeout=2)
        assert [(each.source, each.how) for each in results if not each.allowed] == []

    @families
    def test_a_port_of_the_range_is_kept_unless_the_node_has_it(self, places: Places, family: int) -> None:
        outside = places.outside.addresses[family]
        node = places["node-1"]
        assert seen_by(places.outside, places[NEAR], outside, source_port=62001) == {
            (node.addresses[family], 62001)
        }
        with Echo(places.outside, PORT) as echo, contextlib.ExitStack() as stack:
            own = stack.enter_context(connect(node, outside, PORT, source_port=62002))
            pod = stack.enter_context(connect(places[NEAR], outside, PORT, source_port=62002))
            assert exchange(own, b"node") == b"node"
            assert exchange(pod, b"pod") == b"pod"
            assert exchange(own, b"node") == b"node"
            told = {bytes(data): peer for peer, data in echo.received.items()}
        assert told[b"nodenode"] == (node.addresses[family], 62002)
        assert told[b"pod"][0] == node.addresses[family] and told[b"pod"][1] in RANGE
        assert told[b"pod"][1] != 62002

    @families
    @pods
    @pytest.mark.parametrize("size", [56, 4000, 20000])
    def test_an_echo_comes_back(self, places: Places, pod: str, size: int, family: int) -> None:
        command = ["ping", f"-{family}", "-c", "3", "-i", "0.01", "-W", "5", "-s", str(size)]
        assert "3 received" in places[pod].run(*command, places.outside.addresses[family])

    @families
    def test_two_pods_may_ask_with_one_identifier(self, places: Places, family: int) -> None:
        command = ["ping", f"-{family}", "-c", "100", "-i", "0.005", "-W", "5", "-e", "4242"]
        told: dict[str, str] = {}

        def ping(pod: str) -> None:
            told[pod] = places[pod].run(*command, places.outside.addresses[family])

        threads = [threading.Thread(target=ping, args=(pod,)) for pod in (WEB, NEAR)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all("100 received" in told[pod] and "DUP" not in told[pod] for pod in (WEB, NEAR))

    @families
    @pods
    @pytest.mark.parametrize("size", [0, 1200, 4000, 65000])
    def test_a_datagram_comes_back_whole(self, places: Places, pod: str, size: int, family: int) -> None:
        data = os.urandom(size)
        outside = places.outside.addresses[family]
        with Echo(places.outside, PORT), connect(places[pod], outside, PORT, socket.SOCK_DGRAM) as made:
            assert exchange(made, data) == data

    @families
    @pods
    def test_a_large_transfer_arrives_whole_both_ways(self, places: Places, pod: str, family: int) -> None:
        transfer(places[pod], places.outside, family, 64 << 20)

    @families
    @pods
    def test_a_closed_port_is_told(self, places: Places, pod: str, family: int) -> None:
        outside = places.outside.addresses[family]
        with pytest.raises(ConnectionRefusedError):
            connect(places[pod], outside, 7099)
        with connect(places[pod], outside, 7099, socket.SOCK_DGRAM) as made:
            with pytest.raises(ConnectionRefusedError):
                exchange(made, b"anybody?")

    @families
    def test_a_port_of_the_range_that_nobody_has_is_the_nodes(self, places: Places, family: int) -> None:
        with pytest.raises(ConnectionRefusedError):
            connect(places.outside, places["node-1"].addresses[family], 63999)

    @families
    @pods
    @pytest.mark.parametrize("option", [[], ["-I"], ["-T", "-p", "80"]], ids=["udp", "icmp", "tcp"])
    def test_traceroute_shows_every_hop(
        self, places: Places, pod: str, option: list[str], family: int
    ) -> None:
        command = ["traceroute", f"-{family}", "-n", "-q", "1", "-w", "5", *option]
        told = places[pod].run(*command, places.outside.addresses[family])
        hops = re.findall(r"^ *\d+ +(\S+)", told, re.MULTILINE)
        assert hops == self.hops(places, pod, family)

    @families
    @pods
    def test_mtr_shows_every_hop(self, places: Places, pod: str, family: int) -> None:
        command = ["mtr", f"-{family}", "-n", "-j", "-c", "3", "-i", "0.1", "-G", "1"]
        hubs = json.loads(places[pod].run(*command, places.outside.addresses[family]))["report"]["hubs"]
        assert [hub["host"] for hub in hubs] == self.hops(places, pod, family)
        assert all(hub["Loss%"] == 0 for hub in hubs)

    def hops(self, places: Places, pod: str, family: int) -> list[str]:
        """From a pod to the host outside."""
        return [router(places[pod], family), places.world.addresses[family], places.outside.addresses[family]]

    @families
    def test_a_narrower_way_behind_the_node_is_told_and_used(self, places: Places, family: int) -> None:
        outside = places.outside.addresses[family]
        ends = ((places.world, "outside"), (places.outside, "eth0"))
        for place, device in ends:
            place.ip("link", "set", device, "mtu", str(NARROW))
        try:
            assert told_mtu(places[NEAR], outside, family, NARROW + 1) == NARROW
            assert told_mtu(places[NEAR], outside, family, NARROW) == 0
            for pod in (NEAR, FAR):
                places[pod].ip(f"-{family}", "route", "flush", "cache")
                transfer(places[pod], places.outside, family, 8 << 20)
        finally:
            for place, device in ends:
                place.ip("link", "set", device, "mtu", "1500")
            for pod in (NEAR, FAR):
                places[pod].ip(f"-{family}", "route", "flush", "cache")

    @families
    def test_hundreds_of_flows_with_the_same_ports_stay_apart(self, places: Places, family: int) -> None:
        outside = places.outside.addresses[family]
        node = places["node-1"].addresses[family]
        with Echo(places.outside, PORT) as echo, contextlib.ExitStack() as stack:
            made = [
                stack.enter_context(connect(places[pod], outside, PORT, kind, source_port=port))
                # Half of them want a port of the range, which the other pod has.
                for port in (*range(30000, 30125), *range(62100, 62225))
                for kind in KINDS
                for pod in (WEB, NEAR)
            ]
            for round_ in range(2):
                for number, each in enumerate(made):
                    each.sendall(b"%d %7d" % (round_, number))
                assert [each.recv(9) for each in made] == [b"%d %7d" % (round_, n) for n in range(len(made))]
        assert len(echo.received) == 500 and len(set(echo.datagrams)) == 500
        assert {address for address, _ in [*echo.received, *echo.datagrams]} == {node}
        assert all(port in RANGE for _, port in [*echo.received, *echo.datagrams])

    @families
    def test_curl_reads_many_files_at_once(self, places: Places, family: int) -> None:
        outside = places.outside
        address = outside.addresses[family]
        host = f"[{address}]" if family == 6 else address
        with outside.running(
            "python3", "-m", "http.server", "8080", "--bind", address, "--directory", "/proc/sys/net"
        ):
            outside.await_listener("tcp", 8080)
            url = f"http://{host}:8080/core/somaxconn?[1-200]"
            told = places[NEAR].run(
                *(
                    "curl",
                    "-Z",
                    "--no-progress-meter",
                    "--parallel-max",
                    "50",
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{http_code}\n",
                    url,
                )
            )
        assert told.split() == ["200"] * 200

    def test_a_flow_outlives_its_loader(self, places: Places) -> None:
        with Echo(places.outside, PORT), contextlib.ExitStack() as stack:
            made = [
                stack.enter_context(connect(places[NEAR], places.outside.addresses[family], PORT, kind))
                for family in FAMILIES
                for kind in KINDS
            ]
            for each in made:
                assert exchange(each, b"before") == b"before"
            victim = places.lab.process("node-1")
            os.kill(victim.pid, signal.SIGKILL)
            poll(lambda: not victim.alive, "the loader ends")
            for each in made:
                assert exchange(each, b"without") == b"without"
            places.lab.up()
            for each in made:
                assert exchange(each, b"after") == b"after"

    @families
    def test_a_policy_cuts_a_masqueraded_flow_and_lets_it_go_on(self, places: Places, family: int) -> None:
        outside = places.outside.addresses[family]
        with Echo(places.outside, PORT) as echo, connect(places[NEAR], outside, PORT) as made:
            assert exchange(made, b"one") == b"one"
            apply(places.lab, NO_WORLD)
            try:
                made.sendall(b"two")
                made.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    made.recv(3)
                assert [bytes(data) for data in echo.received.values()] == [b"one"]
            finally:
                remove_all(places.lab)
            made.settimeout(20)
            assert made.recv(3) == b"two"
