"""The network under the nodes: one namespace with a bridge, one namespace for each node.

The bridge's namespace is also the nodes' way out, and so plays the world outside the cluster. All
addresses are in 172.31.0.0/16, inside the lab's own namespaces: two labs may use the same ones.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from cli.errors import CliError
from cli.lab import netns
from cli.lab.paths import LabPaths, netns_path

GATEWAY = "172.31.0.1"
PREFIX_LENGTH = 16
DEVICE = "eth0"
BRIDGE = "underlay"
MOST_NODES = 64
CARRIER_TIMEOUT = 5.0


def node_name(number: int) -> str:
    """Name of the `number`th node, from 1."""
    return f"node-{number}"


def node_number(name: str) -> int:
    return int(name.removeprefix("node-"))


def node_address(name: str) -> str:
    """Underlay address of a node."""
    return f"172.31.1.{node_number(name)}"


def _node_mac(name: str) -> str:
    return f"02:00:ac:1f:01:{node_number(name):02x}"


def ensure(paths: LabPaths, nodes: list[str]) -> None:
    """Make the namespaces and links of `nodes` that are not there yet; what is whole is left alone."""
    if not netns.exists(paths.underlay_netns):
        netns.delete(paths.underlay_netns)
        netns.create(paths.underlay_netns)
    if not _has_address(paths.underlay_netns, BRIDGE):
        _rebuild_bridge(paths)
    for node in nodes:
        name = paths.node_netns(node)
        if netns.exists(name) and _has_address(name, DEVICE):
            continue
        # The address is given last: a node without one was made by a lab that was interrupted.
        netns.delete(name)
        netns.create(name)
        _connect(paths, node)


def _rebuild_bridge(paths: LabPaths) -> None:
    if BRIDGE in _links(paths.underlay_netns):
        netns.ip("link", "delete", BRIDGE, netns=paths.underlay_netns)
    netns.run_in(netns_path(paths.underlay_netns), _forward)
    netns.ip(
        netns=paths.underlay_netns,
        batch=[
            f"link add {BRIDGE} type bridge",
            f"link set {BRIDGE} up",
            f"addr add {GATEWAY}/{PREFIX_LENGTH} dev {BRIDGE}",
        ],
    )


def _forward() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _connect(paths: LabPaths, node: str) -> None:
    if node in _links(paths.underlay_netns):
        netns.ip("link", "delete", node, netns=paths.underlay_netns)
    netns.ip(
        netns=paths.underlay_netns,
        batch=[
            # The same MAC whenever the node is made anew: its neighbours remember it.
            f"link add {node} type veth "
            f"peer name {DEVICE} address {_node_mac(node)} netns {paths.node_netns(node)}",
            f"link set {node} master {BRIDGE} up",
        ],
    )
    netns.ip(
        netns=paths.node_netns(node),
        batch=[
            f"link set {DEVICE} up",
            f"addr add {node_address(node)}/{PREFIX_LENGTH} dev {DEVICE}",
            f"route add default via {GATEWAY}",
        ],
    )
    _await_carrier(paths.node_netns(node), DEVICE)
    _await_carrier(paths.underlay_netns, node)


def _await_carrier(name: str, device: str) -> None:
    """Wait until the kernel has seen that the link is up: it looks once a second at most, and until then the
    device's queue, or the bridge's port, swallows what is sent."""
    deadline = time.monotonic() + CARRIER_TIMEOUT
    while True:
        (link,) = json.loads(netns.ip("-j", "-d", "link", "show", "dev", device, netns=name))
        port = link.get("linkinfo", {}).get("info_slave_data", {})
        if (
            link["operstate"] == "UP"
            and link["qdisc"] != "noop"
            and port.get("state", "forwarding") == "forwarding"
        ):
            return
        if time.monotonic() > deadline:
            raise CliError(
                f"the link {device} in {name} does not come up within {CARRIER_TIMEOUT:g} s: "
                f"state {link['operstate']}, queue {link['qdisc']}",
                reason="NETWORK_SETUP_FAILED",
            )
        time.sleep(0.01)


def route(paths: LabPaths, cidrs: dict[str, list[str]]) -> None:
    """Tell the world outside (the bridge's namespace) behind which node each pod CIDR is."""
    netns.ip(
        netns=paths.underlay_netns,
        batch=[
            f"route replace {cidr} via {node_address(node)}"
            for node, ranges in cidrs.items()
            for cidr in ranges
        ],
    )


def _links(name: str) -> set[str]:
    return {str(link["ifname"]) for link in json.loads(netns.ip("-j", "link", netns=name) or "[]")}


def _has_address(name: str, device: str) -> bool:
    for link in json.loads(netns.ip("-j", "-4", "addr", netns=name) or "[]"):
        if link.get("ifname") == device and link.get("addr_info"):
            return True
    return False
