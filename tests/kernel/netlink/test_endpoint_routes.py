"""Endpoint routes in the kernel, and packets that take them: two nodes, natively routed, no datapath."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from services.chassis.errors import FailedPrecondition
from services.loader.netlink.endpoint_routes import (
    EndpointRoutes,
    add_endpoint_routes,
    endpoint_route_problems,
    sync_endpoint_routes,
)
from services.loader.netlink.links import (
    LinkSpec,
    create_endpoint_link,
    delete_endpoint_link,
    endpoint_device,
)
from services.loader.netlink.node import NodeNetwork, NodeNetworkSettings, RemoteNode
from tests.kernel.netlink.namespaces import Namespace, Namespaces

pytestmark = pytest.mark.kernel


@dataclass
class Endpoint:
    """A pod of both families on a node."""

    pod: Namespace
    spec: LinkSpec
    routes: EndpointRoutes


def settings(number: int) -> NodeNetworkSettings:
    return NodeNetworkSettings(
        node_ipv4=IPv4Address(f"192.0.2.{number}"),
        router=IPv4Address(f"10.244.{number}.1"),
        pod_cidrs=(IPv4Network(f"10.244.{number}.0/24"), IPv6Network(f"fd00:10:244::{number}:0/112")),
        node_ipv6=IPv6Address(f"2001:db8::{number}"),
        router6=IPv6Address(f"fd00:10:244::{number}:1"),
        routing_mode="native",
    )


def endpoint(node: Namespace, pod: Namespace, number: int, name: str = "c", last: int = 7) -> Endpoint:
    """Makes a pod with its link, not its routes; the node answers for the router, as the datapath would."""
    router, router6 = IPv4Address(f"10.244.{number}.1"), IPv6Address(f"fd00:10:244::{number}:1")
    spec = LinkSpec(
        host_name=endpoint_device(f"{name}{number}", "eth0"),
        netns_fd=pod.fd,
        ifname="eth0",
        address=IPv4Address(f"10.244.{number}.{last}"),
        router=router,
        mtu=1400,
        route_mtu=1400,
        address6=IPv6Address(f"fd00:10:244::{number}:{last}"),
        router6=router6,
    )
    link = node.run(lambda: create_endpoint_link(spec))
    node.command("sysctl", "-q", "-w", f"net.ipv6.conf.{spec.host_name}.proxy_ndp=1")
    node.command("sysctl", "-q", "-w", f"net.ipv6.neigh.{spec.host_name}.proxy_delay=0")
    node.command("ip", "neigh", "add", "proxy", str(router6), "dev", spec.host_name)
    pairs = ((str(spec.address), str(router)), (str(spec.address6), str(router6)))
    return Endpoint(pod, spec, EndpointRoutes(spec.host_name, link.pod_mac, pairs))


@pytest.fixture
def node(node: Namespace) -> Namespace:
    node.command("ip", "address", "add", "2001:db8::1/64", "dev", "underlay", "nodad")
    node.run(NodeNetwork(settings(1)).ensure)
    return node


def shown(namespace: Namespace, *arguments: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = json.loads(namespace.command("ip", "-json", *arguments) or "[]")
    return result


def routes(node: Namespace, device: str) -> dict[str, str]:
    found = [*shown(node, "-4", "route", "show", "proto", "211"), *shown(node, "-6", "route")]
    return {r["dst"]: r.get("prefsrc", "") for r in found if r["dev"] == device}


def neighbours(node: Namespace, device: str) -> dict[str, str]:
    found = shown(node, "neigh", "show", "dev", device, "nud", "permanent")
    return {each["dst"]: each["lladdr"] for each in found if "lladdr" in each}


def test_an_endpoint_gets_routes_and_neighbours(node: Namespace, pod: Namespace) -> None:
    made = endpoint(node, pod, 1)
    device = made.spec.host_name
    assert len(node.run(lambda: endpoint_route_problems(made.routes))) == 4
    for _ in range(2):
        node.run(lambda: add_endpoint_routes(made.routes))
        assert routes(node, device) == {"10.244.1.7": "10.244.1.1", "fd00:10:244::1:7": "fd00:10:244::1:1"}
        mac = made.routes.pod_mac
        assert neighbours(node, device) == {"10.244.1.7": mac, "fd00:10:244::1:7": mac}
        assert node.run(lambda: endpoint_route_problems(made.routes)) == []


def test_they_go_with_the_device(node: Namespace, pod: Namespace) -> None:
    made = endpoint(node, pod, 1)
    before = node.command("ip", "-4", "route", "show", "proto", "211")
    node.run(lambda: add_endpoint_routes(made.routes))
    node.run(lambda: delete_endpoint_link(made.spec.host_name))
    assert node.command("ip", "-4", "route", "show", "proto", "211") == before
    assert "fd00:10:244::1:7" not in node.command("ip", "-6", "route")
    assert node.run(lambda: sync_endpoint_routes([made.routes])) == (0, 0)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("ip route del 10.244.1.7", "no route to 10.244.1.7"),
        ("ip -6 route del fd00:10:244::1:7", "no route to fd00:10:244::1:7"),
        ("ip neigh del 10.244.1.7 dev {}", "no MAC address"),
        ("ip neigh replace fd00:10:244::1:7 lladdr 02:00:00:00:00:09 dev {}", "02:00:00:00:00:09; expected"),
    ],
)
def test_what_is_missing_is_told_and_restored(
    node: Namespace, pod: Namespace, damage: str, told: str
) -> None:
    made = endpoint(node, pod, 1)
    node.run(lambda: add_endpoint_routes(made.routes))
    node.command(*damage.format(made.spec.host_name).split())
    problems = node.run(lambda: endpoint_route_problems(made.routes))
    assert any(told in problem for problem in problems), problems
    assert node.run(lambda: sync_endpoint_routes([made.routes])) == (1, 0)
    assert node.run(lambda: endpoint_route_problems(made.routes)) == []
    assert node.run(lambda: sync_endpoint_routes([made.routes])) == (0, 0)


def test_what_nobody_wants_goes_and_the_nodes_own_stays(node: Namespace, namespaces: Namespaces) -> None:
    first, second = (endpoint(node, namespaces.make(), 1, name, last) for name, last in (("a", 7), ("b", 8)))
    for each in (first, second):
        node.run(lambda each=each: add_endpoint_routes(each.routes))  # type: ignore[misc]
    assert node.run(lambda: sync_endpoint_routes([second.routes])) == (0, 2)
    assert (routes(node, first.spec.host_name), neighbours(node, first.spec.host_name)) == ({}, {})
    assert node.run(lambda: endpoint_route_problems(second.routes)) == []
    assert node.run(lambda: sync_endpoint_routes([])) == (0, 2)
    assert routes(node, "fimbria_host").keys() >= {"10.244.1.0/24", "fd00:10:244::1:0/112"}


def test_many_endpoints_are_restored_at_once(node: Namespace, namespaces: Namespaces) -> None:
    node.command("ip", "link", "add", "lxc000000000001", "type", "veth", "peer", "name", "other")
    node.command("ip", "link", "set", "lxc000000000001", "up")
    pairs = tuple((f"10.244.1.{n}", "") for n in range(2, 250))
    pairs += tuple((f"fd00:10:244::1:{n:x}", "") for n in range(2, 250))
    wanted = EndpointRoutes("lxc000000000001", "02:00:00:00:00:02", pairs)
    assert node.run(lambda: sync_endpoint_routes([wanted])) == (496, 0)
    assert node.run(lambda: endpoint_route_problems(wanted)) == []
    assert node.run(lambda: sync_endpoint_routes([])) == (0, 496)


def test_the_nodes_routes_leave_those_of_endpoints_alone(node: Namespace, pod: Namespace) -> None:
    made = endpoint(node, pod, 1)
    node.run(lambda: add_endpoint_routes(made.routes))
    for mode in ("tunnel", "native"):
        network = NodeNetwork(replace(settings(1), routing_mode=mode))
        node.run(network.ensure)
        node.run(lambda network=network: network.set_remote_nodes([]))  # type: ignore[misc]
        assert node.run(lambda: endpoint_route_problems(made.routes)) == []


def test_a_device_that_is_gone_is_a_clear_error(node: Namespace) -> None:
    with pytest.raises(FailedPrecondition, match="lxc000000000000 is gone") as caught:
        node.run(lambda: add_endpoint_routes(EndpointRoutes("lxc000000000000", "02:00:00:00:00:02", ())))
    assert caught.value.reason == "LINK_GONE"


def test_pods_of_two_nodes_reach_each_other_natively(namespaces: Namespaces) -> None:
    """Native routes, endpoint routes and pods' links carry TCP of both families, through nothing but the
    kernel's own forwarding.
    """
    first, second = namespaces.make(), namespaces.make()
    first.command(
        *("ip", "link", "add", "underlay", "mtu", "1400", "type", "veth"),
        *("peer", "name", "underlay", "mtu", "1400", "netns", second.name),
    )
    pods = []
    for number, node in ((1, first), (2, second)):
        node.command("ip", "link", "set", "underlay", "up")
        node.command("ip", "address", "add", f"192.0.2.{number}/24", "dev", "underlay")
        node.command("ip", "address", "add", f"2001:db8::{number}/64", "dev", "underlay", "nodad")
        network = NodeNetwork(settings(number))
        node.run(network.ensure)
        other = settings(3 - number)
        peer = RemoteNode("other", other.node_ipv4, other.node_ipv6, other.pod_cidrs)
        node.run(lambda network=network, peer=peer: network.set_remote_nodes([peer]))  # type: ignore[misc]
        made = endpoint(node, namespaces.make(), number)
        node.run(lambda made=made: add_endpoint_routes(made.routes))  # type: ignore[misc]
        pods.append(made)
    client, server = pods
    for family, here, there in (
        (socket.AF_INET, "10.244.1.7", "10.244.2.7"),
        (socket.AF_INET6, "fd00:10:244::1:7", "fd00:10:244::2:7"),
    ):
        listening = server.pod.run(lambda a=there, f=family: socket.create_server((a, 0), family=f))  # type: ignore[misc]
        address = (there, listening.getsockname()[1])
        sending = client.pod.run(lambda a=address: socket.create_connection(a, timeout=5))  # type: ignore[misc]
        with listening, sending:
            connection, peer_address = listening.accept()
            with connection:
                assert peer_address[0] == here
                connection.sendall(b"hello")
                assert sending.recv(5) == b"hello"
    # The node itself reaches its pod as its router address.
    listening = client.pod.run(lambda: socket.create_server(("fd00:10:244::1:7", 0), family=socket.AF_INET6))
    address = listening.getsockname()[:2]
    sending = first.run(lambda: socket.create_connection(address, timeout=5))
    with listening, sending:
        connection, peer_address = listening.accept()
        connection.close()
        assert peer_address[0] == "fd00:10:244::1:1"
