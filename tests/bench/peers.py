"""The peers of the traffic benchmarks: namespaces joined by the kernel's own means, without policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.namespaces import namespaces, netns_path, run, sysctl

# What fits into VXLAN over an underlay of 1500 bytes, as in the pods' routes.
_OVERLAY_MTU = "1450"


@dataclass(frozen=True)
class Path:
    """Two ends that can talk: namespace paths and the server's address."""

    server: str
    client: str
    address: str


@contextlib.contextmanager
def direct_veth() -> Iterator[Path]:
    """client ── veth ── server: nothing in between, the least that TCP between two namespaces takes."""
    with namespaces("direct-server", "direct-client") as (server, client):
        _pair(server, "eth0", client, "eth0")
        for end, address in ((server, "10.97.0.1/24"), (client, "10.97.0.2/24")):
            _configure(end, "eth0", address)
        yield Path(netns_path(server), netns_path(client), "10.97.0.1")


@contextlib.contextmanager
def routed_veth() -> Iterator[Path]:
    """client ── veth ── router ── veth ── server: two hops through the IP stack of the middle namespace."""
    with namespaces("server", "client", "router") as (server, client, router):
        sysctl(router, net__ipv4__ip_forward=1)
        for end, network in ((server, "10.99.1"), (client, "10.99.2")):
            _attach(router, end, network)
        yield Path(netns_path(server), netns_path(client), "10.99.1.2")


@contextlib.contextmanager
def routed_vxlan() -> Iterator[Path]:
    """client ── veth ── node ── VXLAN ── node ── veth ── server; a bridge joins the nodes, as in the lab."""
    suffixes = ("vxlan-server", "vxlan-client", "switch", "node-1", "node-2")
    with namespaces(*suffixes) as (server, client, switch, *nodes):
        run("ip", "-n", switch, "link", "add", "bridge", "up", "type", "bridge")
        for number, (node, end) in enumerate(zip(nodes, (server, client), strict=True), start=1):
            other = 3 - number
            _pair(node, "under", switch, f"port-{number}")
            run("ip", "-n", switch, "link", "set", f"port-{number}", "master", "bridge", "up")
            sysctl(node, net__ipv4__ip_forward=1)
            _configure(node, "under", f"172.30.0.{number}/24")
            run(
                *("ip", "-n", node, "link", "add", "overlay", "type", "vxlan", "id", "7", "dstport", "4789"),
                *("local", f"172.30.0.{number}", "remote", f"172.30.0.{other}", "dev", "under"),
            )
            _configure(node, "overlay", f"10.96.0.{number}/24", mtu=_OVERLAY_MTU)
            _attach(node, end, f"10.96.{number}", mtu=_OVERLAY_MTU)
            run("ip", "-n", node, "route", "add", f"10.96.{other}.0/24", "via", f"10.96.0.{other}")
        yield Path(netns_path(server), netns_path(client), "10.96.1.2")


def _attach(router: str, end: str, network: str, *, mtu: str = "1500") -> None:
    """Gives an end the second address of a /24, the router the first, and the end its default route."""
    device = f"to-{network.replace('.', '-')}"
    _pair(router, device, end, "eth0")
    _configure(router, device, f"{network}.1/24", mtu=mtu)
    _configure(end, "eth0", f"{network}.2/24", mtu=mtu)
    run("ip", "-n", end, "route", "add", "default", "via", f"{network}.1")


def _pair(one: str, device: str, other: str, peer: str) -> None:
    command = ["ip", "link", "add", device, "netns", one, "type", "veth"]
    run(*command, "peer", "name", peer, "netns", other)


def _configure(netns: str, device: str, address: str, *, mtu: str = "1500") -> None:
    run("ip", "-n", netns, "addr", "add", address, "dev", device)
    run("ip", "-n", netns, "link", "set", device, "mtu", mtu, "up")
