"""The peer of the traffic benchmarks: two namespaces joined by routed veth pairs, as ptp makes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.namespaces import namespaces, netns_path, run, sysctl


@dataclass(frozen=True)
class Path:
    """Two ends that can talk: namespace paths and the server's address."""

    server: str
    client: str
    address: str


@contextlib.contextmanager
def routed_veth() -> Iterator[Path]:
    """client ── veth ── router ── veth ── server: two hops through the IP stack of the middle namespace."""
    with namespaces("server", "client", "router") as (server, client, router):
        sysctl(router, net__ipv4__ip_forward=1)
        for end, network in ((server, "10.99.1"), (client, "10.99.2")):
            device = "to-server" if end == server else "to-client"
            run(
                "ip",
                "link",
                "add",
                device,
                "netns",
                router,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                end,
            )
            run("ip", "-n", router, "addr", "add", f"{network}.1/24", "dev", device)
            run("ip", "-n", router, "link", "set", device, "up")
            run("ip", "-n", end, "addr", "add", f"{network}.2/24", "dev", "eth0")
            run("ip", "-n", end, "link", "set", "eth0", "up")
            run("ip", "-n", end, "route", "add", "default", "via", f"{network}.1")
        yield Path(netns_path(server), netns_path(client), "10.99.1.2")
