"""A node of two families, and its routing modes, in the kernel."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from services.chassis.errors import FailedPrecondition, InvalidArgument
from services.loader.netlink import sysctl
from services.loader.netlink.node import NodeDevices, NodeNetwork, NodeNetworkSettings, RemoteNode
from tests.kernel.netlink.namespaces import Namespace

pytestmark = pytest.mark.kernel

BOTH = NodeNetworkSettings(
    node_ipv4=IPv4Address("192.0.2.1"),
    router=IPv4Address("10.244.0.1"),
    pod_cidrs=(IPv4Network("10.244.0.0/24"), IPv6Network("fd00:10:244::/112")),
    node_ipv6=IPv6Address("2001:db8::1"),
    router6=IPv6Address("fd00:10:244::1"),
)
NATIVE = replace(BOTH, routing_mode="native")
IPV6_ONLY = replace(BOTH, router=None, pod_cidrs=BOTH.pod_cidrs[1:])


def remote(number: int, *, ipv6: bool = True) -> RemoteNode:
    return RemoteNode(
        name=f"node-{number}",
        ipv4=IPv4Address(f"192.0.2.{number}"),
        ipv6=IPv6Address(f"2001:db8::{number}") if ipv6 else None,
        pod_cidrs=(IPv4Network(f"10.244.{number}.0/24"), IPv6Network(f"fd00:10:244::{number}:0/112")),
    )


@pytest.fixture
def node(node: Namespace) -> Namespace:
    node.command("ip", "address", "add", "2001:db8::1/64", "dev", "underlay", "nodad")
    return node


def shown(namespace: Namespace, *arguments: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = json.loads(namespace.command("ip", "-json", "-d", *arguments) or "[]")
    return result


def held(node: Namespace, device: str) -> set[str]:
    (found,) = shown(node, "addr", "show", "dev", device)
    return {f"{each['local']}/{each['prefixlen']}" for each in found["addr_info"]}


def ours(node: Namespace) -> dict[str, dict[str, Any]]:
    """Fimbria's routes of both families, by destination."""
    found = shown(node, "-4", "route", "show", "proto", "211")
    found += shown(node, "-6", "route", "show", "proto", "211")
    return {route["dst"]: route for route in found}


def setting(namespace: Namespace, name: str) -> str:
    return namespace.command("sysctl", "-n", f"net.ipv6.{name}").strip()


def ensure(node: Namespace, settings: NodeNetworkSettings) -> NodeDevices:
    return node.run(NodeNetwork(settings).ensure)


def network(node: Namespace, settings: NodeNetworkSettings, *remotes: RemoteNode) -> NodeNetwork:
    made = NodeNetwork(settings)
    node.run(made.ensure)
    node.run(lambda: made.set_remote_nodes(remotes))
    return made


def test_a_node_of_both_families_gets_its_addresses_routes_and_settings(node: Namespace) -> None:
    devices = ensure(node, BOTH)
    assert held(node, "fimbria_host") == {"10.244.0.1/32", "fd00:10:244::1/128"}
    assert ours(node).keys() == {"10.244.0.1", "10.244.0.0/24", "fd00:10:244::/112"}
    route = ours(node)["fd00:10:244::/112"]
    assert (route["dev"], route["prefsrc"], "gateway" in route) == ("fimbria_host", "fd00:10:244::1", False)
    assert setting(node, "conf.all.forwarding") == "1"
    assert setting(node, "conf.fimbria_host.accept_ra") == "0"
    index = shown(node, "link", "show", "dev", "underlay")[0]["ifindex"]
    assert devices.nics == (("underlay", index),)
    state = node.command("ip", "-d", "addr"), node.command("ip", "route"), node.command("ip", "-6", "route")
    assert ensure(node, BOTH) == devices
    assert state == (
        node.command("ip", "-d", "addr"),
        node.command("ip", "route"),
        node.command("ip", "-6", "route"),
    )


def test_a_node_of_ipv6_alone_has_nothing_of_ipv4(node: Namespace) -> None:
    devices = ensure(node, IPV6_ONLY)
    assert held(node, "fimbria_host") == {"fd00:10:244::1/128"}
    assert ours(node).keys() == {"fd00:10:244::/112"}
    assert devices.host_mac != devices.net_mac


def test_a_family_that_a_node_loses_goes(node: Namespace) -> None:
    network(node, BOTH, remote(2))
    ipv4 = replace(BOTH, router6=None, node_ipv6=None, pod_cidrs=BOTH.pod_cidrs[:1])
    network(node, ipv4, remote(2))
    assert held(node, "fimbria_host") == {"10.244.0.1/32"}
    assert ours(node).keys() == {"10.244.0.1", "10.244.0.0/24", "10.244.2.0/24"}


def test_what_the_node_sends_to_an_ipv6_pod_leaves_by_fimbria_host(node: Namespace) -> None:
    devices = ensure(node, BOTH)
    listening = node.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD)))
    sending = node.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    with listening, sending:
        listening.bind(("fimbria_net", 0))
        listening.settimeout(2)
        sending.sendto(b"x", ("fd00:10:244::99", 9))
        frame = listening.recv(2048)
        while frame[20] != 17:
            frame = listening.recv(2048)
    assert frame[6:12].hex(":") == devices.host_mac
    assert socket.inet_ntop(socket.AF_INET6, frame[22:38]) == "fd00:10:244::1"
    assert socket.inet_ntop(socket.AF_INET6, frame[38:54]) == "fd00:10:244::99"


@pytest.mark.parametrize(
    "damage",
    [
        "ip address del fd00:10:244::1/128 dev fimbria_host",
        "ip address add fd99::1/64 dev fimbria_host",
        "ip -6 route del fd00:10:244::/112",
        "ip -6 route change fd00:10:244::/112 dev fimbria_host src 2001:db8::1 proto 211",
        "sysctl -q -w net.ipv6.conf.all.forwarding=0",
        "sysctl -q -w net.ipv6.conf.fimbria_host.disable_ipv6=1",
        "sysctl -q -w net.ipv6.conf.fimbria_host.accept_ra=1",
        "ip link del fimbria_host",
    ],
)
def test_a_damaged_node_is_repaired(node: Namespace, damage: str) -> None:
    ensure(node, BOTH)

    def state() -> list[object]:
        names = ("all.forwarding", "fimbria_host.disable_ipv6", "fimbria_host.accept_ra")
        routes = sorted((r["dst"], r["dev"], r.get("prefsrc")) for r in ours(node).values())
        return [held(node, "fimbria_host"), routes, *(setting(node, f"conf.{name}") for name in names)]

    sound = state()
    node.command(*damage.split())
    ensure(node, BOTH)
    assert state() == sound


def test_a_default_route_learned_from_a_router_stays(node: Namespace) -> None:
    node.command("sysctl", "-q", "-w", "net.ipv6.conf.underlay.accept_ra=1")
    ensure(node, BOTH)
    assert setting(node, "conf.underlay.accept_ra") == "2"


def test_an_mtu_without_room_for_ipv6_is_refused(node: Namespace) -> None:
    for settings, least in ((BOTH, 1330), (NATIVE, 1280)):
        with pytest.raises(InvalidArgument, match=f"expected {least}"):
            ensure(node, replace(settings, mtu=least - 1))


def test_a_kernel_without_ipv6_is_told(node: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl, "IPV6_SETTINGS", "/proc/sys/net/none")
    with pytest.raises(FailedPrecondition, match="no IPv6") as caught:
        ensure(node, BOTH)
    assert (caught.value.reason, caught.value.metadata["feature"]) == ("KERNEL_FEATURE_MISSING", "ipv6")


@pytest.mark.parametrize("address", ["2001:db8::9", "fe80::9"])
def test_an_ipv6_address_that_no_device_has_is_named(node: Namespace, address: str) -> None:
    with pytest.raises(FailedPrecondition, match=address) as caught:
        ensure(node, replace(BOTH, node_ipv6=IPv6Address(address)))
    assert caught.value.reason == "NODE_ADDRESS_MISSING"


def test_the_nodes_devices_can_be_named(node: Namespace) -> None:
    index = shown(node, "link", "show", "dev", "wire")[0]["ifindex"]
    assert ensure(node, replace(BOTH, devices=("wire",))).nics == (("wire", index),)
    with pytest.raises(FailedPrecondition, match="FIMBRIA_DEVICES names eth7") as caught:
        ensure(node, replace(BOTH, devices=("wire", "eth7")))
    assert caught.value.reason == "DEVICE_MISSING"


def test_each_familys_address_may_be_on_a_device_of_its_own(node: Namespace) -> None:
    node.command("ip", "address", "del", "2001:db8::1/64", "dev", "underlay")
    node.command("ip", "address", "add", "2001:db8::1/64", "dev", "wire", "nodad")
    assert [name for name, _ in ensure(node, BOTH).nics] == ["underlay", "wire"]
    made = network(node, NATIVE, remote(2))
    assert ours(node)["fd00:10:244::2:0/112"]["dev"] == "wire"
    node.run(made.remove)
    assert ours(node) == {}


def test_through_the_tunnel_both_families_of_others_go_to_the_datapath(node: Namespace) -> None:
    made = NodeNetwork(BOTH)
    assert node.run(made.ensure).route_mtu == 1350
    assert node.run(lambda: made.set_remote_nodes([remote(2), remote(3, ipv6=False)])) == (4, 0)
    assert node.run(lambda: made.set_remote_nodes([remote(2), remote(3, ipv6=False)])) == (0, 0)
    for dst in ("10.244.2.0/24", "fd00:10:244::2:0/112", "fd00:10:244::3:0/112"):
        assert (ours(node)[dst]["dev"], ours(node)[dst]["metrics"]) == ("fimbria_host", [{"mtu": 1350}])
    assert node.run(lambda: made.set_remote_nodes([remote(3)])) == (0, 2)
    assert "10.244.2.0/24" not in ours(node) and "fd00:10:244::2:0/112" not in ours(node)


def test_natively_both_families_go_by_the_others_own_addresses(node: Namespace) -> None:
    made = NodeNetwork(NATIVE)
    devices = node.run(made.ensure)
    assert (devices.vxlan_ifindex, devices.vxlan_mac, devices.route_mtu) == (0, "", devices.mtu)
    assert "fimbria_vxlan" not in node.command("ip", "link")
    assert node.run(lambda: made.set_remote_nodes([remote(2), remote(3)])) == (4, 0)
    assert node.run(lambda: made.set_remote_nodes([remote(2), remote(3)])) == (0, 0)
    route4, route6 = ours(node)["10.244.2.0/24"], ours(node)["fd00:10:244::2:0/112"]
    assert (route4["dev"], route4["gateway"], route4["prefsrc"]) == ("underlay", "192.0.2.2", "192.0.2.1")
    assert (route6["dev"], route6["gateway"], route6["prefsrc"]) == (
        "underlay",
        "2001:db8::2",
        "2001:db8::1",
    )
    moved = replace(remote(2), ipv4=IPv4Address("192.0.2.22"), ipv6=IPv6Address("2001:db8::22"))
    assert node.run(lambda: made.set_remote_nodes([moved])) == (2, 2)
    assert ours(node)["10.244.2.0/24"]["gateway"] == "192.0.2.22"
    assert ours(node)["fd00:10:244::2:0/112"]["gateway"] == "2001:db8::22"


def test_a_restart_keeps_native_routes(node: Namespace) -> None:
    network(node, NATIVE, remote(2), remote(3))
    before = ours(node)
    second = NodeNetwork(NATIVE)
    node.run(second.ensure)
    assert ours(node) == before
    assert node.run(lambda: second.set_remote_nodes([remote(2)])) == (0, 2)


def test_native_routes_need_neighbours_and_the_others_are_made(node: Namespace) -> None:
    made = NodeNetwork(NATIVE)
    node.run(made.ensure)
    far = replace(remote(2), ipv4=IPv4Address("198.51.100.2"), ipv6=IPv6Address("2001:db8:9::2"))
    with pytest.raises(FailedPrecondition) as caught:
        node.run(lambda: made.set_remote_nodes([far, remote(3), remote(4, ipv6=False)]))
    assert caught.value.reason == "NODE_NOT_ON_LINK"
    for told in ("198.51.100.2", "2001:db8:9::2", "node-4 has no IPv6 underlay address"):
        assert told in caught.value.message
    assert ours(node).keys() >= {"10.244.3.0/24", "fd00:10:244::3:0/112", "10.244.4.0/24"}
    assert "10.244.2.0/24" not in ours(node)


def test_native_ipv6_needs_an_ipv6_address_of_the_node(node: Namespace) -> None:
    with pytest.raises(InvalidArgument, match="FIMBRIA_NODE_IPV6"):
        ensure(node, replace(NATIVE, node_ipv6=None))


def test_the_other_modes_leavings_go_at_start(node: Namespace) -> None:
    local = {"10.244.0.1", "10.244.0.0/24", "fd00:10:244::/112"}
    network(node, BOTH, remote(2))
    devices = ensure(node, NATIVE)
    assert devices.vxlan_ifindex == 0
    assert "fimbria_vxlan" not in node.command("ip", "link")
    assert ours(node).keys() == local
    network(node, NATIVE, remote(2))
    assert ensure(node, BOTH).vxlan_ifindex
    assert ours(node).keys() == local


def test_somebody_elses_ipv6_route_is_not_overwritten(node: Namespace) -> None:
    made = NodeNetwork(BOTH)
    node.run(made.ensure)
    node.command("ip", "-6", "route", "add", "fd00:10:244::2:0/112", "dev", "underlay")
    with pytest.raises(FailedPrecondition, match="fd00:10:244::2:0/112") as caught:
        node.run(lambda: made.set_remote_nodes([remote(2)]))
    assert caught.value.reason == "ROUTE_CONFLICT"


def test_removal_leaves_nothing(node: Namespace) -> None:
    links = node.command("ip", "-br", "link")
    for settings in (BOTH, NATIVE):
        node.run(network(node, settings, remote(2)).remove)
        assert (ours(node), node.command("ip", "-br", "link")) == ({}, links)
