"""Packets that are too large for their way: whoever sent them is told the size that fits, and uses it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass

import pytest

from tests.cluster.traffic.places import FAMILIES, Place, Places, default_route, make_pod
from tests.cluster.traffic.sockets import transfer

# The devices of these pods carry more than any device between the nodes.
JUMBO = 9000
NODE_MTU = 1500
LARGE_PODS = {"traffic/here": "node-1", "traffic/there": "node-2"}
# IP and ICMP headers of a ping.
OVERHEAD = {4: 28, 6: 48}
families = pytest.mark.parametrize("family", FAMILIES)


@dataclass(frozen=True)
class Large:
    """Two pods on two nodes that do not know how much fits between them."""

    here: Place
    there: Place


def make_large(places: Places) -> Large:
    """Run the two pods, and take what limits them to the nodes' MTU from their devices and routes."""
    lab = places.lab
    here, there = (make_pod(lab, pod, node) for pod, node in LARGE_PODS.items())
    for node in places.nodes:
        for endpoint in lab.runtime.endpoints(node):
            for pod in (here, there):
                if pod.name == f"{endpoint.pod_namespace}/{endpoint.pod_name}":
                    places[node].ip("link", "set", endpoint.host_device, "mtu", str(JUMBO))
                    pod.ip("link", "set", "eth0", "mtu", str(JUMBO))
                    forget_mtu(pod)
    return Large(here, there)


def forget_mtu(pod: Place) -> None:
    """Take the MTU out of a pod's default routes: nothing in the pod limits packets then but its device."""
    for family in FAMILIES:
        gateway = str(default_route(pod, family)["gateway"])
        pod.ip(f"-{family}", "route", "replace", "default", "via", gateway, "dev", "eth0", "onlink")


def forget_learned(pod: Place) -> None:
    """Drop what a pod has learned of the ways out of it."""
    for family in FAMILIES:
        pod.ip(f"-{family}", "route", "flush", "cache")


def told_mtu(pod: Place, address: str, family: int, size: int) -> int:
    """The MTU in the ICMP error that an unfragmented packet of `size` bytes brings about; 0 for no error."""
    forget_learned(pod)
    payload = str(size - OVERHEAD[family])
    told = pod.run(
        *("ping", f"-{family}", "-M", "do", "-c", "1", "-W", "5", "-s", payload, address), code=None
    )
    match = re.search(r"(?:Frag needed and DF set \(mtu = |Packet too big: mtu=)(\d+)", told)
    if match is None:
        assert "1 received" in told, told
        return 0
    return int(match[1])


def learned_mtu(pod: Place, address: str) -> int:
    """What a pod believes to be the MTU of the way to an address."""
    (route,) = json.loads(pod.ip("-j", "route", "get", address))
    return int(next((metric["mtu"] for metric in route.get("metrics", []) if "mtu" in metric), JUMBO))


class Segments:
    """The largest packet that a device was seen to send, segments counted one by one. A context manager.

    Packet sockets tell of segmentation that is still to be done in a header of virtio's (packet(7)).
    """

    _PACKET_VNET_HDR, _SOL_PACKET, _PACKET_OUTGOING = 15, 263, 4
    _VNET_HEADER = struct.Struct("=BBHHHH")

    def __init__(self, place: Place, device: str) -> None:
        self.largest = 0
        self._place, self._device = place, device

    def __enter__(self) -> Segments:
        def work() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            made.setsockopt(self._SOL_PACKET, self._PACKET_VNET_HDR, 1)
            made.bind((self._device, 3))
            made.settimeout(0.1)
            return made

        self._socket = self._place.inside(work)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _work(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                data, (_, _, kind, *_) = self._socket.recvfrom(1 << 17)
                if kind == self._PACKET_OUTGOING:
                    _, gso_type, headers, size, _, _ = self._VNET_HEADER.unpack_from(data)
                    whole = len(data) - self._VNET_HEADER.size
                    # Without the Ethernet header.
                    self.largest = max(self.largest, (headers + size if gso_type else whole) - 14)


class PathMtu:
    """`ROUTE_MTU` is what fits between pods of two nodes."""

    ROUTE_MTU: int

    @families
    @pytest.mark.parametrize("size", [1501, 2000, JUMBO])
    def test_a_packet_that_is_too_large_brings_back_the_size_that_fits(
        self, large: Large, size: int, family: int
    ) -> None:
        address = large.there.addresses[family]
        assert told_mtu(large.here, address, family, size) == self.ROUTE_MTU
        # Now it is known.
        assert learned_mtu(large.here, address) == self.ROUTE_MTU

    @families
    def test_one_byte_more_is_too_much_and_the_size_that_fits_passes(self, large: Large, family: int) -> None:
        address = large.there.addresses[family]
        assert told_mtu(large.here, address, family, self.ROUTE_MTU) == 0
        assert told_mtu(large.here, address, family, self.ROUTE_MTU + 1) == self.ROUTE_MTU

    def test_what_may_be_fragmented_is_fragmented_on_the_way(self, large: Large) -> None:
        forget_learned(large.here)
        told = large.here.run(
            *("ping", "-4", "-M", "dont", "-c", "3", "-i", "0.01", "-W", "5", "-s", "3000"),
            large.there.addresses[4],
        )
        assert "3 received" in told

    @families
    def test_a_transfer_learns_what_fits_and_arrives(self, places: Places, large: Large, family: int) -> None:
        for pod in (large.here, large.there):
            forget_learned(pod)
        with Segments(places["node-1"], "eth0") as segments:
            transfer(large.here, large.there, family, 32 << 20)
        assert learned_mtu(large.here, large.there.addresses[family]) == self.ROUTE_MTU
        # Also not in one piece of many segments that somebody else would have to cut.
        assert 0 < segments.largest <= NODE_MTU

    @families
    def test_tracepath_finds_what_fits(self, large: Large, family: int) -> None:
        for pod in (large.here, large.there):
            forget_learned(pod)
        told = large.here.run("tracepath", f"-{family}", "-n", "-l", "4000", large.there.addresses[family])
        assert f"Resume: pmtu {self.ROUTE_MTU} " in told and "reached" in told


class NativePathMtu(PathMtu):
    """Where the node's routes, not only its devices, say what fits."""

    ROUTE_MTU = NODE_MTU

    @families
    def test_a_narrower_way_behind_the_node_is_told_too(
        self, places: Places, large: Large, family: int
    ) -> None:
        node, address = places["node-1"], large.there.addresses[family]
        (route,) = json.loads(node.ip("-j", "route", "get", address))
        way = [address, "via", route["gateway"], "dev", route["dev"]]
        node.ip(f"-{family}", "route", "add", *way, "mtu", "lock", "1300")
        try:
            assert told_mtu(large.here, address, family, 1400) == 1300
            assert told_mtu(large.here, address, family, 1300) == 0
        finally:
            node.ip(f"-{family}", "route", "del", address)
