"""The network under the nodes: a bridge, the nodes on it, and a host outside.

    node-1 ═╗
    node-2 ═╬═ bridge (gateway) ═══ outside
    …      ═╝

The bridge's namespace is the nodes' way out, knows the way to every pod, and so plays a world that reaches
pods by their own addresses. The host outside is one hop further away and has a route to the nodes only:
whoever it answers has come with a node's address. All addresses are inside the lab's own namespaces: two labs
may use the same ones.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from cli.errors import CliError
from cli.lab import netns
from cli.lab.paths import LabPaths, netns_path

DEVICE = "eth0"
BRIDGE = "underlay"
OUTSIDE_LINK = "outside"
MOST_NODES = 64
CARRIER_TIMEOUT = 5.0
FAMILIES = (4, 6)
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# By IP version: of the nodes' network, and of the one that the host outside is on.
_NETWORK: dict[int, Network] = {
    4: ipaddress.ip_network("172.31.0.0/16"),
    6: ipaddress.ip_network("fd00:ac1f::/64"),
}
_OUTSIDE: dict[int, Network] = {
    4: ipaddress.ip_network("172.30.0.0/24"),
    6: ipaddress.ip_network("fd00:ac1e::/64"),
}
GATEWAY = {family: str(network[1]) for family, network in _NETWORK.items()}
OUTSIDE_GATEWAY = {family: str(network[1]) for family, network in _OUTSIDE.items()}
OUTSIDE_HOST = {family: str(network[2]) for family, network in _OUTSIDE.items()}


def node_name(number: int) -> str:
    """Name of the `number`th node, from 1."""
    return f"node-{number}"


def node_number(name: str) -> int:
    return int(name.removeprefix("node-"))


def node_address(name: str, family: int = 4) -> str:
    """Underlay address of a node."""
    number = node_number(name)
    return f"172.31.1.{number}" if family == 4 else f"fd00:ac1f::1:{number:x}"


def _node_mac(name: str) -> str:
    return f"02:00:ac:1f:01:{node_number(name):02x}"


def ensure(paths: LabPaths, nodes: list[str], families: Sequence[int] = FAMILIES) -> None:
    """Make the namespaces and links of `nodes` that are not there yet; what is whole is left alone."""
    if not netns.exists(paths.underlay_netns):
        netns.delete(paths.underlay_netns)
        netns.create(paths.underlay_netns)
    if not _has_address(paths.underlay_netns, BRIDGE):
        _rebuild_bridge(paths, families)
    for name, link in [
        (paths.outside_netns, OUTSIDE_LINK),
        *((paths.node_netns(node), node) for node in nodes),
    ]:
        # The IPv4 address is given last: without one it was made by a lab that was interrupted.
        if netns.exists(name) and _has_address(name, DEVICE):
            continue
        netns.delete(name)
        netns.create(name)
        if link == OUTSIDE_LINK:
            _connect_outside(paths, families)
        else:
            _connect_node(paths, link, families)


def _rebuild_bridge(paths: LabPaths, families: Sequence[int]) -> None:
    name = paths.underlay_netns
    if BRIDGE in _links(name):
        netns.ip("link", "delete", BRIDGE, netns=name)
    netns.run_in(netns_path(name), lambda: _forward(families))
    # No querier tells the bridge who listens to neighbour solicitations: it is not to look for one.
    netns.ip(netns=name, batch=[f"link add {BRIDGE} type bridge mcast_snooping 0"])
    _prepare(name, BRIDGE, families)
    netns.ip(netns=name, batch=[f"link set {BRIDGE} up", *_addresses(BRIDGE, GATEWAY, _NETWORK, families)])


def _forward(families: Sequence[int]) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    if 6 in families:
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")


def _connect_node(paths: LabPaths, node: str, families: Sequence[int]) -> None:
    # The same MAC whenever the node is made anew: its neighbours remember it.
    _make_link(paths, node, paths.node_netns(node), f"address {_node_mac(node)}")
    netns.ip(netns=paths.underlay_netns, batch=[f"link set {node} master {BRIDGE} up"])
    _prepare(paths.node_netns(node), DEVICE, families)
    own = {family: node_address(node, family) for family in families}
    netns.ip(
        netns=paths.node_netns(node),
        batch=[
            f"link set {DEVICE} up",
            *_addresses(DEVICE, own, _NETWORK, families),
            *(f"route add default via {GATEWAY[family]}" for family in families),
        ],
    )
    _await_carrier(paths.node_netns(node), DEVICE)
    _await_carrier(paths.underlay_netns, node)


def _connect_outside(paths: LabPaths, families: Sequence[int]) -> None:
    _make_link(paths, OUTSIDE_LINK, paths.outside_netns)
    for name, device, own in (
        (paths.underlay_netns, OUTSIDE_LINK, OUTSIDE_GATEWAY),
        (paths.outside_netns, DEVICE, OUTSIDE_HOST),
    ):
        _prepare(name, device, families)
        netns.ip(netns=name, batch=[f"link set {device} up", *_addresses(device, own, _OUTSIDE, families)])
    netns.ip(
        netns=paths.outside_netns,
        batch=[f"route add {_NETWORK[family]} via {OUTSIDE_GATEWAY[family]}" for family in families],
    )
    _await_carrier(paths.outside_netns, DEVICE)
    _await_carrier(paths.underlay_netns, OUTSIDE_LINK)


def _make_link(paths: LabPaths, link: str, peer_netns: str, options: str = "") -> None:
    """A veth pair: `link` in the bridge's namespace, the other end, `DEVICE`, in `peer_netns`."""
    if link in _links(paths.underlay_netns):
        netns.ip("link", "delete", link, netns=paths.underlay_netns)
    command = f"link add {link} type veth peer name {DEVICE} {options} netns {peer_netns}"
    netns.ip(netns=paths.underlay_netns, batch=[command])


# Otherwise an IPv6 address cannot be bound to until the kernel has come to it, duplicates looked for or not.
_AT_ONCE = {4: "", 6: " nodad"}


def _addresses(
    device: str, own: dict[int, str], networks: dict[int, Network], families: Sequence[int]
) -> list[str]:
    """Commands that give a device its addresses, IPv4's last."""
    return [
        f"addr add {own[family]}/{networks[family].prefixlen} dev {device}{_AT_ONCE[family]}"
        for family in sorted(families, reverse=True)
    ]


def _prepare(name: str, device: str, families: Sequence[int]) -> None:
    """Let a device that is still down have IPv6 addresses, and at once: nobody else can have them."""
    if 6 not in families:
        return

    def write() -> None:
        for setting in ("disable_ipv6", "accept_dad"):
            Path(f"/proc/sys/net/ipv6/conf/{device}/{setting}").write_text("0")

    netns.run_in(netns_path(name), write)


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
            f"route replace {cidr} via {node_address(node, ipaddress.ip_network(cidr).version)}"
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
