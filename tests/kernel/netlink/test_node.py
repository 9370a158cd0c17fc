"""The node's own devices and routes, in the kernel."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from services.chassis.errors import FailedPrecondition, InvalidArgument
from services.loader.netlink.node import NodeDevices, NodeNetwork, NodeNetworkSettings, RemoteNode
from tests.kernel.netlink.namespaces import Namespace

pytestmark = pytest.mark.kernel

SETTINGS = NodeNetworkSettings(
    node_ipv4=IPv4Address("192.0.2.1"),
    router=IPv4Address("10.244.0.1"),
    pod_cidrs=(IPv4Network("10.244.0.0/24"),),
)
REMOTE = [
    RemoteNode(f"node-{n}", IPv4Address(f"192.0.2.{n}"), None, (IPv4Network(f"10.244.{n}.0/24"),))
    for n in (1, 2)
]


def shown(namespace: Namespace, *arguments: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = json.loads(namespace.command("ip", "-json", "-d", *arguments) or "[]")
    return result


def device(namespace: Namespace, name: str) -> dict[str, Any]:
    return shown(namespace, "addr", "show", "dev", name)[0]


def routes(namespace: Namespace) -> dict[str, dict[str, Any]]:
    return {route["dst"]: route for route in shown(namespace, "route", "show", "dev", "fimbria_host")}


def ensure(node: Namespace, settings: NodeNetworkSettings = SETTINGS) -> NodeDevices:
    return node.run(NodeNetwork(settings).ensure)


def test_a_node_gets_its_devices_and_routes(node: Namespace) -> None:
    devices = ensure(node)
    assert (devices.mtu, devices.route_mtu) == (1400, 1350)
    host, net, vxlan = (device(node, name) for name in ("fimbria_host", "fimbria_net", "fimbria_vxlan"))
    assert (host["ifindex"], net["ifindex"], vxlan["ifindex"]) == (
        devices.host_ifindex,
        devices.net_ifindex,
        devices.vxlan_ifindex,
    )
    assert (host["address"], net["address"], vxlan["address"]) == (
        devices.host_mac,
        devices.net_mac,
        devices.vxlan_mac,
    )
    assert {host["mtu"], net["mtu"], vxlan["mtu"]} == {1400}
    for made in (host, net, vxlan):
        assert "UP" in made["flags"]
        assert all(address["family"] != "inet6" for address in made["addr_info"])
    assert "NOARP" in host["flags"] and "NOARP" in net["flags"]
    assert [(a["local"], a["prefixlen"]) for a in host["addr_info"]] == [("10.244.0.1", 32)]
    data = vxlan["linkinfo"]["info_data"]
    assert (data["external"], data["port"], data["learning"]) == (True, 8472, False)
    assert routes(node)["10.244.0.0/24"]["gateway"] == "10.244.0.1"
    assert routes(node)["10.244.0.0/24"]["prefsrc"] == "10.244.0.1"
    for setting, value in (
        ("ip_forward", "1"),
        ("conf.all.rp_filter", "0"),
        ("conf.fimbria_host.rp_filter", "0"),
    ):
        assert node.command("sysctl", "-n", f"net.ipv4.{setting}").strip() == value


def test_once_more_changes_nothing(node: Namespace) -> None:
    before = ensure(node)
    state = node.command("ip", "-d", "addr"), node.command("ip", "route")
    assert ensure(node) == before
    assert (node.command("ip", "-d", "addr"), node.command("ip", "route")) == state


def test_what_the_node_sends_to_a_pod_leaves_by_fimbria_host(node: Namespace) -> None:
    devices = ensure(node)
    listening = node.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)))
    sending = node.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with listening, sending:
        listening.bind(("fimbria_net", 0))
        listening.settimeout(2)
        sending.sendto(b"x", ("10.244.0.99", 9))
        frame = listening.recv(2048)
    assert frame[6:12].hex(":") == devices.host_mac
    assert socket.inet_ntoa(frame[26:30]) == "10.244.0.1"
    assert socket.inet_ntoa(frame[30:34]) == "10.244.0.99"


@pytest.mark.parametrize(
    "damage",
    [
        "ip link del fimbria_host",
        "ip link del fimbria_vxlan",
        "ip link set fimbria_host down",
        "ip link set fimbria_net down",
        "ip link set fimbria_vxlan down",
        "ip link set fimbria_host arp on",
        "ip link set fimbria_vxlan mtu 1000",
        "ip link set fimbria_net address 02:00:00:00:00:01",
        "ip address del 10.244.0.1/32 dev fimbria_host",
        "ip address add 10.99.0.1/24 dev fimbria_host",
        "ip route del 10.244.0.0/24",
        "sysctl -q -w net.ipv4.ip_forward=0",
        "sysctl -q -w net.ipv4.conf.fimbria_vxlan.rp_filter=1",
    ],
)
def test_a_damaged_node_is_repaired(node: Namespace, damage: str) -> None:
    ensure(node)

    def state() -> list[object]:
        found: list[object] = []
        for name in ("fimbria_host", "fimbria_net", "fimbria_vxlan"):
            made = device(node, name)
            addresses = sorted((a["local"], a["prefixlen"]) for a in made["addr_info"])
            found.append((name, made["address"], made["mtu"], sorted(made["flags"]), addresses))
            found.append(node.command("sysctl", "-n", f"net.ipv4.conf.{name}.rp_filter"))
        found.append(sorted((r["dst"], r.get("gateway"), r.get("prefsrc")) for r in routes(node).values()))
        found.append(node.command("sysctl", "-n", "net.ipv4.ip_forward"))
        return found

    sound = state()
    node.command(*damage.split())
    ensure(node)
    assert state() == sound


def test_devices_of_the_right_name_and_the_wrong_kind_are_replaced(node: Namespace) -> None:
    node.command("ip", "link", "add", "fimbria_net", "type", "veth", "peer", "name", "stray")
    node.command("ip", "link", "add", "fimbria_vxlan", "type", "vxlan", "id", "7", "dstport", "8472")
    ensure(node)
    assert device(node, "fimbria_net")["link"] == "fimbria_host"
    assert device(node, "fimbria_vxlan")["linkinfo"]["info_data"]["external"] is True
    assert "stray" not in node.command("ip", "link")


def test_another_port_makes_another_overlay_device(node: Namespace) -> None:
    first = ensure(node)
    second = ensure(node, replace(SETTINGS, vxlan_port=4789))
    assert first.vxlan_ifindex != second.vxlan_ifindex
    assert first.host_ifindex == second.host_ifindex
    assert device(node, "fimbria_vxlan")["linkinfo"]["info_data"]["port"] == 4789


def test_a_port_in_use_is_named(node: Namespace) -> None:
    taken = node.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with taken:
        taken.bind(("0.0.0.0", 8472))
        with pytest.raises(FailedPrecondition, match="UDP port 8472") as caught:
            ensure(node)
    assert caught.value.reason == "VXLAN_PORT_IN_USE"
    ensure(node)


def test_a_node_address_that_no_device_has_is_named(node: Namespace) -> None:
    with pytest.raises(FailedPrecondition, match=r"192\.0\.2\.9") as caught:
        ensure(node, replace(SETTINGS, node_ipv4=IPv4Address("192.0.2.9")))
    assert caught.value.reason == "NODE_ADDRESS_MISSING"


def test_a_senseless_mtu_is_refused(node: Namespace) -> None:
    with pytest.raises(InvalidArgument, match="mtu 500"):
        ensure(node, replace(SETTINGS, mtu=500))


def test_an_mtu_too_small_for_ipv6_is_fine(node: Namespace) -> None:
    devices = ensure(node, replace(SETTINGS, mtu=1000))
    assert (devices.mtu, devices.route_mtu) == (1000, 950)
    assert device(node, "fimbria_vxlan")["mtu"] == 1000


def test_remote_cidrs_are_routed_exactly(node: Namespace) -> None:
    network = NodeNetwork(SETTINGS)
    node.run(network.ensure)
    assert node.run(lambda: network.set_remote_nodes(REMOTE)) == (2, 0)
    assert node.run(lambda: network.set_remote_nodes(REMOTE)) == (0, 0)
    remote = routes(node)["10.244.1.0/24"]
    assert (remote["gateway"], remote["metrics"]) == ("10.244.0.1", [{"mtu": 1350}])
    assert node.run(lambda: network.set_remote_nodes(REMOTE[1:])) == (0, 1)
    assert set(routes(node)) == {"10.244.0.1", "10.244.0.0/24", "10.244.2.0/24"}


def test_the_nodes_own_cidr_is_never_a_remote_one(node: Namespace) -> None:
    network = NodeNetwork(SETTINGS)
    node.run(network.ensure)
    assert node.run(
        lambda: network.set_remote_nodes(
            [*REMOTE, replace(REMOTE[0], name="odd", pod_cidrs=SETTINGS.pod_cidrs)]
        )
    ) == (2, 0)
    assert "metrics" not in routes(node)["10.244.0.0/24"]


def test_a_restart_keeps_remote_routes(node: Namespace) -> None:
    first = NodeNetwork(SETTINGS)
    node.run(first.ensure)
    node.run(lambda: first.set_remote_nodes(REMOTE))
    second = NodeNetwork(SETTINGS)
    node.run(second.ensure)
    assert {"10.244.1.0/24", "10.244.2.0/24"} <= set(routes(node))
    assert node.run(lambda: second.set_remote_nodes(REMOTE[:1])) == (0, 1)


def test_somebody_elses_route_is_not_overwritten(node: Namespace) -> None:
    network = NodeNetwork(SETTINGS)
    node.run(network.ensure)
    node.command("ip", "route", "add", "10.244.1.0/24", "dev", "underlay")
    with pytest.raises(FailedPrecondition, match=r"10\.244\.1\.0/24") as caught:
        node.run(lambda: network.set_remote_nodes(REMOTE))
    assert caught.value.reason == "ROUTE_CONFLICT"
    assert "10.244.1.0/24 dev underlay" in node.command("ip", "route")


def test_remote_routes_need_the_devices(node: Namespace) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        node.run(lambda: NodeNetwork(SETTINGS).set_remote_nodes(REMOTE))
    assert caught.value.reason == "NODE_NETWORK_MISSING"


def test_removal_leaves_nothing_and_is_repeatable(node: Namespace) -> None:
    before = node.command("ip", "-br", "link"), node.command("ip", "route")
    network = NodeNetwork(SETTINGS)
    node.run(network.ensure)
    node.run(network.remove)
    node.run(network.remove)
    assert (node.command("ip", "-br", "link"), node.command("ip", "route")) == before
