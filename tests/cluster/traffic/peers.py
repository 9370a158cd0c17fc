"""Programs that nobody here wrote, at both ends: what they see is what a user sees."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.traffic.places import ASKERS, FAMILIES, FAR, WEB, Place, Places
from tests.cluster.traffic.sockets import Echo

IPERF_PORT, SOCKPERF_PORT, HTTP_PORT, ECHO_PORT = 5201, 11111, 8080, 7000
CRAFTED = Path(__file__).with_name("crafted.py")
SYSTEM_PYTHON = "/usr/bin/python3"
askers = pytest.mark.parametrize("asker", ASKERS.values(), ids=ASKERS)
families = pytest.mark.parametrize("family", FAMILIES)
# What goes wrong on purpose, or says nothing about traffic: Cilium's numbers of drop reasons.
HARMLESS = {132, 146, 224}


@contextmanager
def nothing_dropped(places: Places) -> Iterator[None]:
    """The datapaths of all nodes drop nothing of what is sent in the block."""
    before = _drops(places)
    yield
    dropped = {key: count - before.get(key, 0) for key, count in _drops(places).items()}
    assert {key: count for key, count in dropped.items() if count and key[1] not in HARMLESS} == {}


def _drops(places: Places) -> dict[tuple[str, int, str], int]:
    """Packets dropped, by node, reason's number and reason."""
    from fimbria.loader.v1 import loader_pb2

    found: dict[tuple[str, int, str], int] = {}
    for node in places.nodes:
        status = places.lab.cluster.datapath(node).GetStatus(loader_pb2.GetStatusRequest(), timeout=10)
        for metric in status.metrics:
            if metric.reason_code:
                key = (node, metric.reason_code, metric.reason)
                found[key] = found.get(key, 0) + metric.packets
    return found


class Peers:
    """From near and far to web."""

    # -- iperf3

    @families
    @askers
    @pytest.mark.parametrize(
        "options",
        [["-n", "64M"], ["-n", "64M", "-R"], ["-n", "64M", "-P", "4"], ["-n", "16M", "-M", "536"]],
        ids=["forward", "back", "parallel", "small-segments"],
    )
    def test_iperf3_streams(self, places: Places, asker: str, options: list[str], family: int) -> None:
        told = self._iperf(places, asker, family, *options)
        sent, received = told["end"]["sum_sent"], told["end"]["sum_received"]
        # What is under way when the sender has sent all does not count.
        assert sent["bytes"] >= 16 << 20 and received["bytes"] >= 8 << 20

    @families
    @askers
    @pytest.mark.parametrize("size", [64, 1300, 4000])
    def test_iperf3_datagrams(self, places: Places, asker: str, size: int, family: int) -> None:
        with nothing_dropped(places):
            # Slow enough that a busy machine's receiver keeps up; how fast is for the benchmarks.
            told = self._iperf(
                *(places, asker, family, "-u", "-b", "4M", "-l", str(size), "-k", "100", "-w", "1M")
            )
        assert told["end"]["sum"]["packets"] >= 100

    def _iperf(self, places: Places, asker: str, family: int, *options: str) -> dict[str, Any]:
        with places[WEB].running("iperf3", "-s", "-1"):
            places[WEB].await_listener("tcp", IPERF_PORT)
            address = places[WEB].addresses[family]
            told = places[asker].run("iperf3", f"-{family}", "-J", "-c", address, *options)
            # A warning may follow.
            return dict(json.JSONDecoder().raw_decode(told)[0])

    # -- sockperf (3.7, which Debian has, knows IPv4 only)

    @askers
    @pytest.mark.parametrize("options", [[], ["--tcp"]], ids=["udp", "tcp"])
    def test_sockperf_loses_nothing(self, places: Places, asker: str, options: list[str]) -> None:
        where = ["-i", places[WEB].addresses[4], "-p", str(SOCKPERF_PORT), *options]
        with places[WEB].running("sockperf", "server", *where):
            places[WEB].await_listener("tcp" if options else "udp", SOCKPERF_PORT)
            told = places[asker].run("sockperf", "ping-pong", *where, "-t", "1", "--msg-size", "200")
        assert "dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0" in told
        observed = re.search(r"Total (\d+)\S* observations", told)
        assert observed is not None and int(observed[1]) > 100

    # -- curl

    @families
    @askers
    def test_curl_reads_a_file(self, places: Places, asker: str, family: int, tmp_path: Path) -> None:
        content = os.urandom(8 << 20)
        (tmp_path / "file").write_bytes(content)
        web = places[WEB]
        address = web.addresses[family]
        host = f"[{address}]" if family == 6 else address
        server = [
            "python3",
            "-m",
            "http.server",
            str(HTTP_PORT),
            "--bind",
            address,
            "--directory",
            str(tmp_path),
        ]
        with web.running(*server):
            web.await_listener("tcp", HTTP_PORT)
            got = tmp_path / "got"
            places[asker].run("curl", "-sSf", "-o", str(got), f"http://{host}:{HTTP_PORT}/file")
            status = places[asker].run(
                *("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{host}:{HTTP_PORT}/none")
            )
        assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(content).digest()
        assert status == "404"

    # -- ping, traceroute, mtr

    @families
    @askers
    def test_ping_floods(self, places: Places, asker: str, family: int) -> None:
        address = places[WEB].addresses[family]
        with nothing_dropped(places):
            told = places[asker].run("ping", f"-{family}", "-f", "-c", "500", "-w", "20", address)
        assert "500 received" in told

    @families
    @askers
    @pytest.mark.parametrize("option", [[], ["-I"], ["-T", "-p", "80"]], ids=["udp", "icmp", "tcp"])
    def test_traceroute_shows_every_hop(
        self, places: Places, asker: str, option: list[str], family: int
    ) -> None:
        address = places[WEB].addresses[family]
        told = places[asker].run("traceroute", f"-{family}", "-n", "-q", "1", "-w", "5", *option, address)
        assert _hops(told) == self.hops(places, asker, family)

    @families
    @askers
    def test_mtr_shows_every_hop(self, places: Places, asker: str, family: int) -> None:
        address = places[WEB].addresses[family]
        told = places[asker].run("mtr", f"-{family}", "-n", "-j", "-c", "3", "-i", "0.1", "-G", "1", address)
        hubs = json.loads(told)["report"]["hubs"]
        assert [hub["host"] for hub in hubs] == self.hops(places, asker, family)
        assert all(hub["Loss%"] == 0 for hub in hubs)

    def hops(self, places: Places, asker: str, family: int) -> list[str]:
        """Addresses of the hops from a pod to web, web's own the last."""
        raise NotImplementedError

    # -- crafted packets

    @askers
    @pytest.mark.parametrize(
        ("options", "answer"),
        [
            (["-S", "-p", "7000"], "flags=SA"),
            (["-S", "-p", "7001"], "flags=RA"),
            (["-A", "-p", "7000"], "flags=R "),
            (["--udp", "-p", "7000", "-d", "100"], "len=128"),
            (["--udp", "-p", "7001"], "Port Unreachable"),
            (["--udp", "-p", "7000", "-d", "100", "-f"], "len=128"),
            (["-S", "-p", "7000", "-d", "100", "-f", "-m", "24"], "flags=SA"),
            (["-S", "-p", "7000", "--rroute"], "flags=SA"),
            (["-1"], "icmp_seq=2"),
            (["-1", "-d", "1000"], "len=1028"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_hping3_is_answered(self, places: Places, asker: str, options: list[str], answer: str) -> None:
        with Echo(places[WEB], ECHO_PORT):
            told = self._hping(places, asker, options)
        assert "3 packets received" in told and answer in told, told

    @askers
    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            # Not even the ports would have been judged, or the flags could be changed by the next fragment.
            (["-S", "-p", "7000", "-f"], "CT: Truncated or invalid header"),
            (["-S", "-p", "7000", "-a", "10.99.0.1"], "Invalid source ip"),
            (["-1", "--icmp-ts"], "Unknown ICMPv4 type"),
        ],
        ids=["tiny-fragments", "foreign-source", "timestamp"],
    )
    def test_hping3_is_refused(self, places: Places, asker: str, options: list[str], reason: str) -> None:
        node = places.node_of(asker).name
        before = _reasons(places, node)
        with Echo(places[WEB], ECHO_PORT):
            told = self._hping(places, asker, options)
        assert " 0 packets received" in told
        after = _reasons(places, node)
        assert after.get(reason, 0) - before.get(reason, 0) == 3

    def _hping(self, places: Places, asker: str, options: list[str]) -> str:
        # It ends with 1 when it got no answer.
        command = ["hping3", "-n", "-c", "3", "-i", "u10000", *options, places[WEB].addresses[4]]
        return places[asker].run(*command, code=None)

    @families
    @askers
    def test_scapys_packets_are_answered_and_refused(self, places: Places, asker: str, family: int) -> None:
        address = places[WEB].addresses[family]
        with Echo(places[WEB], ECHO_PORT):
            told = places[asker].run(SYSTEM_PYTHON, str(CRAFTED), str(family), address, str(ECHO_PORT))
        answers = json.loads(told.splitlines()[-1])
        refused = {
            4: ["timestamp", "foreign source", "no version", "bad length"],
            6: ["source route", "foreign source", "too many headers", "bad length"],
        }[family]
        unreachable = {4: [3, 3], 6: [1, 4]}[family]
        assert answers == {
            "syn": "SA",
            "closed": [unreachable, ECHO_PORT + 1],
            **dict.fromkeys(["options", "all options", "fragments", "tiny fragments"], True),
            **dict.fromkeys(refused, False),
        }


class TunnelPeers(Peers):
    """Through the overlay pods of another node are as near as those of one's own."""

    def hops(self, places: Places, asker: str, family: int) -> list[str]:
        return [router(places[WEB], family), places[WEB].addresses[family]]


class NativePeers(Peers):
    """Every node is a hop."""

    def hops(self, places: Places, asker: str, family: int) -> list[str]:
        between = [places["node-1"].addresses[family]] if asker == FAR else []
        return [router(places[asker], family), *between, places[WEB].addresses[family]]


def router(pod: Place, family: int) -> str:
    """Where a pod's default route leads to."""
    (route,) = json.loads(pod.ip("-j", f"-{family}", "route", "show", "default"))
    return str(route["gateway"])


def _hops(told: str) -> list[str]:
    """The addresses in traceroute's report, one for each hop."""
    return re.findall(r"^ *\d+ +(\S+)", told, re.MULTILINE)


def _reasons(places: Places, node: str) -> dict[str, int]:
    return {reason: count for (where, _, reason), count in _drops(places).items() if where == node}
