"""Links of pods with IPv6, in the kernel."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from services.chassis.errors import FailedPrecondition, InvalidArgument
from services.loader.netlink import sysctl
from services.loader.netlink.links import (
    LinkSpec,
    check_endpoint_link,
    create_endpoint_link,
    endpoint_device,
    link_local,
    set_endpoint_link_up,
)
from tests.kernel.netlink.namespaces import Namespace

pytestmark = pytest.mark.kernel

ADDRESS, ROUTER = IPv6Address("fd00:10:244::7"), IPv6Address("fd00:10:244::1")


def spec_for(pod: Namespace, *, ipv4: bool = True) -> LinkSpec:
    return LinkSpec(
        host_name=endpoint_device("c1", "eth0"),
        netns_fd=pod.fd,
        ifname="eth0",
        address=IPv4Address("10.1.0.7") if ipv4 else None,
        router=IPv4Address("10.1.0.1") if ipv4 else None,
        mtu=1400,
        route_mtu=1350,
        address6=ADDRESS,
        router6=ROUTER,
    )


def shown(namespace: Namespace, *arguments: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = json.loads(namespace.command("ip", "-json", *arguments) or "[]")
    return result


def held(pod: Namespace) -> dict[str, dict[str, Any]]:
    (device,) = shown(pod, "addr", "show", "dev", "eth0")
    return {f"{each['local']}/{each['prefixlen']}": each for each in device["addr_info"]}


def setting(namespace: Namespace, name: str) -> str:
    return namespace.command("sysctl", "-n", name).strip()


@pytest.mark.parametrize("ipv4", [True, False])
def test_a_pod_gets_its_families(node: Namespace, pod: Namespace, ipv4: bool) -> None:
    spec = spec_for(pod, ipv4=ipv4)
    link = node.run(lambda: create_endpoint_link(spec))
    expected = {f"{ADDRESS}/128", f"{link_local(link.pod_mac)}/64"} | ({"10.1.0.7/32"} if ipv4 else set())
    assert held(pod).keys() == expected
    (default,) = [route for route in shown(pod, "-6", "route") if route["dst"] == "default"]
    assert (default["gateway"], default["dev"]) == (str(ROUTER), "eth0")
    assert default["metrics"] == [{"mtu": 1350}]
    assert "onlink" in default["flags"]
    assert [route["dst"] for route in shown(pod, "route")] == (["default", "10.1.0.1"] if ipv4 else [])
    assert node.run(lambda: check_endpoint_link(spec)) == []


def test_its_addresses_are_usable_at_once(node: Namespace, pod: Namespace) -> None:
    spec = spec_for(pod)
    node.run(lambda: create_endpoint_link(spec))
    for address in (str(ADDRESS), link_local(shown(pod, "link", "show", "dev", "eth0")[0]["address"])):
        found = next(each for each in held(pod).values() if each["local"] == address)
        assert found.get("nodad") is True
        assert "tentative" not in found
    with pod.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as sending:
        sending.connect(("2001:db8::1", 9))
        assert sending.getsockname()[0] == str(ADDRESS)


def test_no_router_is_asked_or_believed(node: Namespace, pod: Namespace) -> None:
    spec = spec_for(pod)
    pod.command("sysctl", "-q", "-w", "net.ipv6.conf.default.accept_ra=2")
    node.run(lambda: create_endpoint_link(spec, up=False))
    # ICMPv6 of every kind: router solicitations would be 133.
    listening = node.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD)))
    sending = pod.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    with listening, sending:
        listening.bind((spec.host_name, 0))
        listening.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        listening.settimeout(5)
        node.run(lambda: set_endpoint_link_up(spec.host_name))
        sending.sendto(b"x", (str(ROUTER), 9))
        types = set()
        while 135 not in types:
            frame = listening.recv(2048)
            # Listener reports have a hop-by-hop header before.
            types.add(frame[54] if frame[20] == 58 else frame[62])
    assert 133 not in types
    assert setting(pod, "net.ipv6.conf.eth0.accept_ra") == "0"
    assert setting(node, f"net.ipv6.conf.{spec.host_name}.accept_ra") == "0"


def test_a_system_that_turns_ipv6_off_is_overruled_for_the_pod(node: Namespace, pod: Namespace) -> None:
    for namespace in (node, pod):
        namespace.command("sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1")
    spec = spec_for(pod)
    node.run(lambda: create_endpoint_link(spec))
    assert node.run(lambda: check_endpoint_link(spec)) == []
    assert setting(node, f"net.ipv6.conf.{spec.host_name}.disable_ipv6") == "0"


def test_a_kernel_without_ipv6_is_told_and_nothing_is_left(
    node: Namespace, pod: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysctl, "IPV6_SETTINGS", "/proc/sys/net/none")
    with pytest.raises(FailedPrecondition, match="no IPv6") as caught:
        node.run(lambda: create_endpoint_link(spec_for(pod)))
    assert (caught.value.reason, caught.value.metadata["feature"]) == ("KERNEL_FEATURE_MISSING", "ipv6")
    assert "lxc" not in node.command("ip", "link")


def test_a_default_route_that_is_there_is_refused_and_nothing_is_left(
    node: Namespace, pod: Namespace
) -> None:
    pod.command("ip", "link", "add", "net0", "type", "veth", "peer", "name", "other")
    pod.command("ip", "link", "set", "net0", "up")
    pod.command("ip", "-6", "route", "add", "default", "dev", "net0")
    with pytest.raises(FailedPrecondition, match="an IPv6 default") as caught:
        node.run(lambda: create_endpoint_link(replace(spec_for(pod), default_route=True)))
    assert caught.value.reason == "ROUTE_TAKEN"
    assert "lxc" not in node.command("ip", "link")


def test_the_router_is_on_the_link_whatever_the_pod_has_besides(node: Namespace, pod: Namespace) -> None:
    pod.command("ip", "link", "add", "net0", "type", "veth", "peer", "name", "other")
    pod.command("ip", "link", "set", "net0", "up")
    pod.command("ip", "-6", "route", "add", "fd00:10:244::/64", "dev", "net0")
    spec = spec_for(pod)
    node.run(lambda: create_endpoint_link(spec))
    assert node.run(lambda: check_endpoint_link(spec)) == []
    (found,) = shown(pod, "-6", "route", "get", "2001:db8::1")
    assert found["dev"] == "eth0"


@pytest.mark.parametrize(
    ("where", "command", "told"),
    [
        ("pod", "ip address del fd00:10:244::7/128 dev eth0", "does not have the address fd00:10:244::7/128"),
        ("pod", "ip -6 route del default", "no IPv6 default route via fd00:10:244::1"),
        (
            "pod",
            "ip -6 route change default via fd00:10:244::1 dev eth0 onlink mtu 1290",
            "IPv6 default route has mtu 1290; expected 1350",
        ),
        ("pod", "sysctl -q -w net.ipv6.conf.eth0.disable_ipv6=1", "does not have the address fd00"),
    ],
)
def test_check_tells_what_is_different(
    node: Namespace, pod: Namespace, where: str, command: str, told: str
) -> None:
    spec = spec_for(pod)
    node.run(lambda: create_endpoint_link(spec))
    (node if where == "node" else pod).command(*command.split())
    problems = node.run(lambda: check_endpoint_link(spec))
    assert any(told in problem for problem in problems), problems


@pytest.mark.parametrize(
    "change",
    [
        {"router6": None},
        {"router": None},
        {"mtu": 1279, "route_mtu": 1270},
        {"route_mtu": 1279},
        {"address": None, "router": None, "address6": None, "router6": None},
    ],
)
def test_a_senseless_spec_is_refused(node: Namespace, pod: Namespace, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        node.run(lambda: create_endpoint_link(replace(spec_for(pod), **change)))
    assert caught.value.reason == "LINK_SPEC_INVALID"


def test_a_link_local_address_is_the_one_that_the_kernel_would_make() -> None:
    assert link_local("02:42:ac:11:00:02") == "fe80::42:acff:fe11:2"
