"""What the programs are told of the node, as the constants of bpf/lib/config.h."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.loader.bpf.layout import ipv4_bytes


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """A node. Interface indexes are of its network namespace; ``vxlan_ifindex`` 0: it has no overlay.

    ``node_ipv4`` is its address on the underlay, ``router_ipv4`` the one on ``fimbria_host``; ``mtu`` the
    underlay's, in bytes. Lifetimes of idle flows are in seconds. ``map_sizes`` overrides max_entries by map
    name.
    """

    node_name: str
    node_ipv4: str
    router_ipv4: str
    pod_cidrs: tuple[str, ...]
    host_ifindex: int
    net_ifindex: int
    vxlan_ifindex: int
    mtu: int = 1500
    tcp_syn_seconds: int = 60
    tcp_established_seconds: int = 8000
    tcp_closing_seconds: int = 10
    any_seconds: int = 60
    map_sizes: Mapping[str, int] = field(default_factory=dict)

    def constants(self) -> dict[str, bytes]:
        """The constants' bytes by name. Raises ValueError for an address that is none."""
        return {
            "node_ipv4": ipv4_bytes(self.node_ipv4),
            "router_ipv4": ipv4_bytes(self.router_ipv4),
            "host_ifindex": _u32(self.host_ifindex),
            "net_ifindex": _u32(self.net_ifindex),
            "vxlan_ifindex": _u32(self.vxlan_ifindex),
            "mtu": _u32(self.mtu),
            "ct_tcp_syn": _u32(self.tcp_syn_seconds),
            "ct_tcp_established": _u32(self.tcp_established_seconds),
            "ct_tcp_closing": _u32(self.tcp_closing_seconds),
            "ct_any": _u32(self.any_seconds),
        }


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)
