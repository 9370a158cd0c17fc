"""What the programs are told of the node, as the constants of bpf/lib/config.h."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.loader.bpf.layout import ipv4_bytes, ipv6_bytes, seconds_to_ticks

# Outer IPv4, UDP, VXLAN and the inner Ethernet header.
OVERLAY_OVERHEAD = 50


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """A node. Interface indexes are of its network namespace; ``vxlan_ifindex`` 0: it has no overlay.

    ``node_ipv4`` is its address on the underlay, ``router_ipv4`` the one on ``fimbria_host``; their IPv6
    counterparts are "" where there are none. ``mtu`` is the underlay's in bytes, ``route_mtu`` what fits into
    the overlay (0: 50 bytes less). ``endpoint_routes``: the stack routes to endpoints. ``host_routing``: what
    leaves the node passes the stack by. ``masquerade``: pods reach the world with the node's address, by one
    of ``masquerade_ports`` (first, last). Lifetimes of idle flows are in seconds. ``map_sizes`` overrides
    max_entries by map name.
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
    node_ipv6: str = ""
    router_ipv6: str = ""
    route_mtu: int = 0
    vxlan_port: int = 8472
    endpoint_routes: bool = False
    host_routing: bool = False
    masquerade: bool = False
    masquerade_ports: tuple[int, int] = (61000, 65535)

    def constants(self) -> dict[str, bytes]:
        """The constants' bytes by name. Raises ValueError for an address that is none."""
        return {
            "node_ipv4": ipv4_bytes(self.node_ipv4 or "0.0.0.0"),
            "router_ipv4": ipv4_bytes(self.router_ipv4 or "0.0.0.0"),
            "node_ipv6": ipv6_bytes(self.node_ipv6 or "::"),
            "router_ipv6": ipv6_bytes(self.router_ipv6 or "::"),
            "host_ifindex": _u32(self.host_ifindex),
            "net_ifindex": _u32(self.net_ifindex),
            "vxlan_ifindex": _u32(self.vxlan_ifindex),
            "vxlan_port": _u32(self.vxlan_port),
            "mtu": _u32(self.mtu),
            "route_mtu": _u32(self.route_mtu or self.mtu - OVERLAY_OVERHEAD),
            "endpoint_routes": _u32(self.endpoint_routes),
            "host_routing": _u32(self.host_routing),
            "masquerade": _u32(self.masquerade),
            "nat_port_min": _u32(self.masquerade_ports[0]),
            "nat_port_max": _u32(self.masquerade_ports[1]),
            "ct_tcp_syn": _u32(seconds_to_ticks(self.tcp_syn_seconds)),
            "ct_tcp_established": _u32(seconds_to_ticks(self.tcp_established_seconds)),
            "ct_tcp_closing": _u32(seconds_to_ticks(self.tcp_closing_seconds)),
            "ct_any": _u32(seconds_to_ticks(self.any_seconds)),
        }


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)
