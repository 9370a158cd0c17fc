"""What every pair of pods can do: connections, datagrams, echoes, fragments, large transfers."""

from __future__ import annotations

import os
import socket

import pytest

from cli.lab import underlay
from tests.cluster.traffic.places import ASKERS, FAMILIES, FAR, NEAR, WEB, Places
from tests.cluster.traffic.sockets import Echo, connect, exchange, transfer

PORT = 7000
askers = pytest.mark.parametrize("asker", ASKERS.values(), ids=ASKERS)
families = pytest.mark.parametrize("family", FAMILIES)


class Transport:
    """Traffic between pods of one node and of two, and between pods and nodes."""

    @families
    @pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
    def test_all_ends_reach_each_other(self, places: Places, protocol: str, family: int) -> None:
        nodes = [underlay.node_address(node, family) for node in places.nodes]
        pairs = [(source, target) for source in (WEB, NEAR, FAR) for target in (WEB, NEAR, FAR, *nodes)]
        pairs += [("@host", WEB), (nodes[1], WEB)]
        results = places.lab.probe_many(
            [(source, target, 80, protocol) for source, target in pairs], family=family, timeout=2
        )
        assert [(each.source, each.target, each.how) for each in results if not each.allowed] == []

    @families
    @askers
    def test_a_pod_is_seen_with_its_own_address(self, places: Places, asker: str, family: int) -> None:
        source, target = places[asker], places[WEB]
        with Echo(target, PORT) as echo:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with connect(source, target.addresses[family], PORT, kind) as made:
                    assert exchange(made, b"who am I?") == b"who am I?"
        seen = {address for address, _ in [*echo.received, *echo.datagrams]}
        assert seen == {source.addresses[family]}

    @families
    @askers
    # With 1,400 bytes a packet is whole in every mode, with 4,000 it has three parts, with 20,000 fourteen.
    @pytest.mark.parametrize("size", [56, 1400, 4000, 20000])
    def test_an_echo_comes_back(self, places: Places, asker: str, size: int, family: int) -> None:
        told = places[asker].run(
            *("ping", f"-{family}", "-c", "3", "-i", "0.01", "-W", "5", "-s", str(size)),
            places[WEB].addresses[family],
        )
        assert "3 received" in told and "DUP" not in told

    @families
    @askers
    @pytest.mark.parametrize("size", [0, 1, 1200, 4000, 65000])
    def test_a_datagram_comes_back_whole(self, places: Places, asker: str, size: int, family: int) -> None:
        data = os.urandom(size)
        with Echo(places[WEB], PORT) as _:
            with connect(places[asker], places[WEB].addresses[family], PORT, socket.SOCK_DGRAM) as made:
                assert exchange(made, data) == data

    @families
    @askers
    def test_a_large_transfer_arrives_whole_both_ways(self, places: Places, asker: str, family: int) -> None:
        transfer(places[asker], places[WEB], family, 64 << 20)

    @families
    @askers
    def test_hundreds_of_connections_at_once(self, places: Places, asker: str, family: int) -> None:
        address = places[WEB].addresses[family]
        with Echo(places[WEB], PORT) as echo:
            made = [
                connect(places[asker], address, PORT, kind)
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
                for _ in range(200)
            ]
            try:
                for number, each in enumerate(made):
                    each.sendall(b"%08d" % number)
                answers = [each.recv(8) for each in made]
            finally:
                for each in made:
                    each.close()
        assert answers == [b"%08d" % number for number in range(len(made))]
        assert len(echo.received) == 200 and len(set(echo.datagrams)) == 200

    @families
    @askers
    def test_a_closed_port_is_told(self, places: Places, asker: str, family: int) -> None:
        address = places[WEB].addresses[family]
        with pytest.raises(ConnectionRefusedError):
            connect(places[asker], address, 7099)
        # The ICMP error belongs to the datagram's flow.
        with connect(places[asker], address, 7099, socket.SOCK_DGRAM) as made:
            with pytest.raises(ConnectionRefusedError):
                exchange(made, b"anybody?")
