"""Somebody outside of the cluster, with several addresses."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from tests.kernel.loader.rig import Pod, Rig
from tests.kernel.loader.traffic import CONNECT_SECONDS, talks
from tests.kernel.netlink.namespaces import Namespace

NEAR, FAR, OTHER = "203.0.113.7", "203.0.113.200", "198.51.100.9"
NEAR6, FAR6 = "2001:db8:f::7", "2001:db8:f:1::7"


@dataclass(frozen=True)
class Outside:
    """A namespace on the underlay of the first node, which is no node."""

    namespace: Namespace

    def dial(self, source: str, pod: Pod, port: int = 80) -> socket.socket:
        """A connection from one of its addresses to a pod. Raises OSError."""
        target = pod.ipv6 if ":" in source else pod.ipv4
        return self.namespace.run(
            lambda: socket.create_connection(
                (target, port), timeout=CONNECT_SECONDS, source_address=(source, 0)
            )
        )

    def enters(self, source: str, pod: Pod) -> bool:
        """Whether a pod answers on port 80."""
        try:
            with self.dial(source, pod) as connection:
                return talks(connection)
        except OSError:
            return False

    def is_reached(self, destination: str, pod: Pod) -> bool:
        """Whether a pod is answered by one of the addresses on port 80."""
        try:
            with pod.namespace.run(
                lambda: socket.create_connection((destination, 80), timeout=CONNECT_SECONDS)
            ) as connection:
                return talks(connection)
        except OSError:
            return False


def somebody_outside(rig: Rig) -> Outside:
    """Somebody on the underlay who is no node; the node's routes lead to him and his to the pods."""
    made = rig.namespaces.make()
    rig._underlay.command(
        "ip", "link", "add", "outside", "type", "veth", "peer", "name", "eth0", "netns", made.name
    )
    rig._underlay.command("ip", "link", "set", "outside", "master", "underlay", "up")
    node = rig.nodes[0]
    for command in (
        "link set lo up",
        "link set eth0 up",
        "address add 172.31.9.9/16 dev eth0",
        "address add 2001:db8::9:9/64 dev eth0 nodad",
        *(f"address add {address}/32 dev eth0" for address in (NEAR, FAR, OTHER)),
        *(f"address add {address}/128 dev eth0 nodad" for address in (NEAR6, FAR6)),
        f"route add 10.244.0.0/16 via {node.ipv4}",
        f"-6 route add fd00:10:244::/96 via {node.ipv6}",
    ):
        made.command("ip", *command.split())
    for command in (
        "route add 203.0.113.0/24 dev eth0",
        "route add 198.51.100.0/24 dev eth0",
        "-6 route add 2001:db8:f::/48 dev eth0",
    ):
        node.namespace.command("ip", *command.split())
    return Outside(made)
