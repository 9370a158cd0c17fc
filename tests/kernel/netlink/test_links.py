"""Links of pods, in the kernel."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from services.chassis.errors import AlreadyExists, FailedPrecondition, FimbriaError, InvalidArgument
from services.loader.netlink.links import (
    LinkSpec,
    check_endpoint_link,
    create_endpoint_link,
    delete_endpoint_link,
    endpoint_device,
    list_endpoint_links,
    local_mac,
    set_endpoint_link_up,
)
from tests.kernel.netlink.namespaces import Namespace, Namespaces

pytestmark = pytest.mark.kernel

ROUTER = IPv4Address("10.1.0.1")


def spec_for(pod: Namespace, container: str = "c1", address: str = "10.1.0.7") -> LinkSpec:
    return LinkSpec(
        host_name=endpoint_device(container, "eth0"),
        netns_fd=pod.fd,
        ifname="eth0",
        address=IPv4Address(address),
        router=ROUTER,
        mtu=1400,
        route_mtu=1350,
    )


def shown(namespace: Namespace, *arguments: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = json.loads(namespace.command("ip", "-json", *arguments) or "[]")
    return result


def device_names(namespace: Namespace) -> set[str]:
    return {link["ifname"] for link in shown(namespace, "link")}


def test_a_link_is_as_its_spec_says(node: Namespace, pod: Namespace) -> None:
    spec = spec_for(pod)
    link = node.run(lambda: create_endpoint_link(spec))
    (host,) = shown(node, "-d", "addr", "show", "dev", spec.host_name)
    (inside,) = shown(pod, "-d", "addr", "show", "dev", "eth0")
    assert (host["ifindex"], host["address"], host["mtu"]) == (link.ifindex, link.host_mac, 1400)
    assert (inside["ifindex"], inside["address"], inside["mtu"]) == (link.pod_ifindex, link.pod_mac, 1400)
    assert [(a["local"], a["prefixlen"]) for a in inside["addr_info"]] == [("10.1.0.7", 32)]
    assert host["addr_info"] == []
    assert {host["operstate"], inside["operstate"]} == {"UP"}
    routes = {route["dst"]: route for route in shown(pod, "route")}
    assert routes["10.1.0.1"]["scope"] == "link"
    assert routes["default"]["gateway"] == "10.1.0.1"
    assert routes["default"]["metrics"] == [{"mtu": 1350}]
    assert "UP" in shown(pod, "link", "show", "dev", "lo")[0]["flags"]
    setting = f"net.ipv4.conf.{spec.host_name}.rp_filter"
    assert node.command("sysctl", "-n", setting).strip() == "0"
    assert node.run(lambda: check_endpoint_link(spec)) == []


def test_addresses_of_devices_depend_on_their_names_alone(node: Namespace, pod: Namespace) -> None:
    spec = spec_for(pod)
    first = node.run(lambda: create_endpoint_link(spec))
    node.run(lambda: delete_endpoint_link(spec.host_name))
    second = node.run(lambda: create_endpoint_link(spec))
    assert (first.host_mac, first.pod_mac) == (second.host_mac, second.pod_mac)
    assert first.host_mac != first.pod_mac
    for mac in (first.host_mac, first.pod_mac, local_mac("x")):
        assert int(mac[:2], 16) & 0x03 == 0x02


def test_a_mac_address_can_be_chosen(node: Namespace, pod: Namespace) -> None:
    spec = replace(spec_for(pod), pod_mac="02:11:22:33:44:55")
    assert node.run(lambda: create_endpoint_link(spec)).pod_mac == "02:11:22:33:44:55"
    assert shown(pod, "link", "show", "dev", "eth0")[0]["address"] == "02:11:22:33:44:55"
    assert node.run(lambda: check_endpoint_link(spec)) == []


def test_an_mtu_too_small_for_ipv6_is_fine(node: Namespace, pod: Namespace) -> None:
    spec = replace(spec_for(pod), mtu=1000, route_mtu=950)
    node.run(lambda: create_endpoint_link(spec))
    assert node.run(lambda: check_endpoint_link(spec)) == []


def test_nothing_passes_before_the_nodes_side_is_up(node: Namespace, pod: Namespace) -> None:
    spec = spec_for(pod)
    node.run(lambda: create_endpoint_link(spec, up=False))
    assert "UP" not in shown(node, "link", "show", "dev", spec.host_name)[0]["flags"]
    assert node.run(lambda: check_endpoint_link(spec)) == [f"{spec.host_name} is down"]
    node.run(lambda: set_endpoint_link_up(spec.host_name))
    assert node.run(lambda: check_endpoint_link(spec)) == []


def test_the_first_packet_of_a_pod_arrives(node: Namespace, namespaces: Namespaces) -> None:
    """A packet sent the moment after the link is up must not meet a device that is not ready for it yet."""
    for number in range(8):
        pod = namespaces.make()
        spec = spec_for(pod, f"c{number}", f"10.1.0.{number + 2}")
        node.run(lambda spec=spec: create_endpoint_link(spec, up=False))  # type: ignore[misc]
        # ARP only: the pod's IPv6 stack announces itself at any time.
        listening = node.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)))
        sending = pod.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with listening, sending:
            listening.bind((spec.host_name, 0))
            # Binding to a device that is down leaves ENETDOWN as the first thing to be read.
            listening.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            # A lost packet shows as the resolver's next try, a second later.
            listening.settimeout(0.8)
            node.run(lambda spec=spec: set_endpoint_link_up(spec.host_name))  # type: ignore[misc]
            sending.sendto(b"first", ("198.51.100.1", 9))
            assert listening.recv(2048)[12:14] == b"\x08\x06"


def test_packets_cross_a_link_both_ways(node: Namespace, pod: Namespace) -> None:
    spec = spec_for(pod)
    node.command("ip", "address", "add", f"{ROUTER}/32", "dev", "lo")
    node.run(lambda: create_endpoint_link(spec))
    node.command("ip", "route", "add", "10.1.0.7/32", "dev", spec.host_name, "src", str(ROUTER))
    server = node.run(lambda: socket.create_server((str(ROUTER), 0)))
    client = pod.run(lambda: socket.create_connection(server.getsockname(), timeout=5))
    with server, client:
        connection, peer = server.accept()
        with connection:
            assert peer[0] == "10.1.0.7"
            connection.sendall(b"hello")
            assert client.recv(5) == b"hello"


def test_a_taken_interface_name_is_refused_and_nothing_is_made(node: Namespace, pod: Namespace) -> None:
    pod.command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    before = device_names(node)
    with pytest.raises(AlreadyExists, match="CNI_IFNAME eth0") as caught:
        node.run(lambda: create_endpoint_link(spec_for(pod)))
    assert caught.value.reason == "INTERFACE_NAME_TAKEN"
    assert device_names(node) == before
    assert device_names(pod) == {"lo", "eth0", "other"}


def test_a_default_route_that_is_there_is_refused_and_nothing_is_left(
    node: Namespace, pod: Namespace
) -> None:
    pod.command("ip", "link", "add", "net0", "type", "veth", "peer", "name", "other")
    pod.command("ip", "link", "set", "net0", "up")
    pod.command("ip", "route", "add", "default", "dev", "net0")
    before = device_names(node)
    with pytest.raises(FailedPrecondition, match="default route") as caught:
        node.run(lambda: create_endpoint_link(replace(spec_for(pod), default_route=True)))
    assert caught.value.reason == "ROUTE_TAKEN"
    assert device_names(node) == before
    assert "eth0" not in device_names(pod)


def test_what_an_interrupted_call_left_is_replaced(
    node: Namespace, pod: Namespace, namespaces: Namespaces
) -> None:
    spec = spec_for(pod)
    first = node.run(lambda: create_endpoint_link(spec, up=False))
    second = node.run(lambda: create_endpoint_link(spec))
    assert second.ifindex != first.ifindex
    assert node.run(lambda: check_endpoint_link(spec)) == []
    # … also when the container has got another namespace meanwhile.
    other = spec_for(namespaces.make())
    node.run(lambda: create_endpoint_link(other))
    assert node.run(lambda: check_endpoint_link(other)) == []
    assert "eth0" not in device_names(pod)


def test_deleting_is_repeatable_and_takes_both_sides(node: Namespace, pod: Namespace) -> None:
    spec = spec_for(pod)
    node.run(lambda: create_endpoint_link(spec))
    assert node.run(lambda: delete_endpoint_link(spec.host_name)) is True
    assert node.run(lambda: delete_endpoint_link(spec.host_name)) is False
    assert device_names(pod) == {"lo"}


def test_links_are_listed_and_other_devices_are_not(node: Namespace, namespaces: Namespaces) -> None:
    specs = [spec_for(namespaces.make(), name) for name in ("a", "b")]
    made = [node.run(lambda spec=spec: create_endpoint_link(spec)) for spec in specs]  # type: ignore[misc]
    node.command("ip", "link", "add", "lxcbr0", "type", "bridge")
    node.run(lambda: set_endpoint_link_up(specs[0].host_name))
    listed = node.run(list_endpoint_links)
    assert [link.name for link in listed] == sorted(spec.host_name for spec in specs)
    assert {link.ifindex for link in listed} == {link.ifindex for link in made}
    assert all(link.up and link.mtu == 1400 for link in listed)


@pytest.mark.parametrize(
    ("where", "command", "told"),
    [
        ("pod", "ip address del 10.1.0.7/32 dev eth0", "does not have the address 10.1.0.7/32"),
        ("pod", "ip route del default", "no default route via 10.1.0.1"),
        ("pod", "ip route change default via 10.1.0.1 dev eth0 mtu 1200", "default route has mtu 1200"),
        ("pod", "ip link set eth0 mtu 1300", "mtu 1300; expected 1400"),
        ("pod", "ip link set eth0 down", "eth0 is down"),
        ("pod", "ip link set eth0 address 02:00:00:00:00:01", "MAC address 02:00:00:00:00:01"),
        ("pod", "ip link del eth0", "the pod has no interface eth0"),
        ("node", "ip link set {host} down", "is down"),
        ("node", "ip link del {host}", "the node has no device"),
    ],
)
def test_check_tells_what_is_different(
    node: Namespace, pod: Namespace, where: str, command: str, told: str
) -> None:
    spec = spec_for(pod)
    node.run(lambda: create_endpoint_link(spec))
    (node if where == "node" else pod).command(*command.format(host=spec.host_name).split())
    problems = node.run(lambda: check_endpoint_link(spec))
    assert any(told in problem for problem in problems), problems


def test_check_tells_ends_of_different_links(node: Namespace, pod: Namespace, namespaces: Namespaces) -> None:
    spec, other = spec_for(pod), spec_for(namespaces.make(), "c2")
    node.run(lambda: create_endpoint_link(spec))
    node.run(lambda: create_endpoint_link(other))
    mixed = replace(spec, host_name=other.host_name)
    assert any("not the two ends" in problem for problem in node.run(lambda: check_endpoint_link(mixed)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mtu": 1000}, "LINK_SPEC_INVALID"),
        ({"mtu": 70000}, "LINK_SPEC_INVALID"),
        ({"route_mtu": 100}, "LINK_SPEC_INVALID"),
        ({"host_name": "eth0"}, "LINK_SPEC_INVALID"),
    ],
)
def test_a_senseless_spec_is_refused(
    node: Namespace, pod: Namespace, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        node.run(lambda: create_endpoint_link(replace(spec_for(pod), **change)))
    assert caught.value.reason == reason
    assert device_names(pod) == {"lo"}


def test_a_descriptor_of_something_else_is_refused(node: Namespace, pod: Namespace) -> None:
    with open("/dev/null", "rb") as file:
        spec = replace(spec_for(pod), netns_fd=file.fileno())
        with pytest.raises(InvalidArgument) as caught:
            node.run(lambda: create_endpoint_link(spec))
    assert caught.value.reason == "NETNS_INVALID"
    # The thread that enters namespaces still does.
    node.run(lambda: create_endpoint_link(spec_for(pod)))


def test_bringing_up_what_is_gone_is_a_clear_error(node: Namespace) -> None:
    with pytest.raises(FailedPrecondition, match="lxc000000000000 is gone"):
        node.run(lambda: set_endpoint_link_up("lxc000000000000"))


def test_no_thread_is_left_in_a_pods_namespace(node: Namespace, pod: Namespace) -> None:
    node.run(lambda: create_endpoint_link(spec_for(pod)))
    inode = os.fstat(pod.fd).st_ino
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            assert os.stat(f"/proc/self/task/{task}/ns/net").st_ino != inode


def test_many_threads_may_make_links_at_once(node: Namespace, namespaces: Namespaces) -> None:
    specs = [spec_for(namespaces.make(), f"c{n}", f"10.1.0.{n + 2}") for n in range(10)]
    failures: list[BaseException] = []

    def make(spec: LinkSpec) -> Callable[[], None]:
        def work() -> None:
            try:
                node.run(lambda: create_endpoint_link(spec))
            except FimbriaError as exc:
                failures.append(exc)

        return work

    threads = [threading.Thread(target=make(spec)) for spec in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for spec in specs:
        assert node.run(lambda spec=spec: check_endpoint_link(spec)) == []  # type: ignore[misc]
