"""Fimbria in a list of plugins, with those that Debian ships before and after it, against a real loader."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel.cni.chain import ChainError, Network, fimbria
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import DUAL_POOL, Rig
from tests.kernel.netlink.namespaces import Namespace, Namespaces

pytestmark = pytest.mark.kernel

VERSIONS = ("0.3.1", "0.4.0", "1.0.0")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    # What leaves without the node's stack passes by the rules that portmap makes there.
    with Namespaces() as namespaces:
        made = Rig(
            tmp_path_factory.mktemp("chains"),
            namespaces,
            nodes=1,
            cidrs=DUAL_POOL,
            flags=["--host-routing=false"],
        )
        try:
            made.start()
            yield made
        finally:
            made.close()


def shown(namespace: Namespace, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(namespace.command(*arguments) or "[]")
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_tuning_after_it_gets_and_passes_on_the_result(rig: Rig, pod: Namespace, version: str) -> None:
    (node,) = rig.nodes
    tuning = {"type": "tuning", "sysctl": {"net.core.somaxconn": "515"}, "mtu": 1300}
    network = Network(node, [fimbria(node), tuning], version=version)
    result = network.add("tuned", pod)
    (eth0,) = shown(pod, "ip", "-j", "addr", "show", "dev", "eth0")
    assert (result["cniVersion"], eth0["mtu"]) == (version, 1300)
    assert {ip["address"].split("/")[0] for ip in result["ips"]} <= {a["local"] for a in eth0["addr_info"]}
    assert pod.command("sysctl", "-n", "net.core.somaxconn").strip() == "515"
    network.delete("tuned", pod)
    assert "eth0" not in pod.command("ip", "link")


@pytest.mark.parametrize("version", VERSIONS)
def test_what_came_before_it_is_passed_on(rig: Rig, pod: Namespace, version: str) -> None:
    (node,) = rig.nodes
    own = {"nameservers": ["10.96.0.10"], "search": ["shop.svc"]}
    plugins = [{"type": "loopback"}, fimbria(node, dns=own), {"type": "tuning"}]
    network = Network(node, plugins, version=version)
    result = network.add("second", pod)
    assert result["interfaces"][0]["name"] == "lo"
    by_name = {each["name"]: index for index, each in enumerate(result["interfaces"])}
    of_interface = [(ip["interface"], ip["address"].split("/")[0]) for ip in result["ips"]]
    assert (by_name["lo"], "127.0.0.1") in of_interface
    (eth0,) = shown(pod, "ip", "-j", "addr", "show", "dev", "eth0")
    held = {each["local"] for each in eth0["addr_info"] if each["scope"] == "global"}
    assert {address for index, address in of_interface if index == by_name["eth0"]} == held
    assert result["dns"] == own
    if version != "0.3.1":
        network.check("second", pod)
    network.delete("second", pod)


def test_an_interface_that_is_there_is_a_clear_refusal(rig: Rig, pod: Namespace) -> None:
    (node,) = rig.nodes
    ipam = {"type": "static", "addresses": [{"address": "192.0.2.7/24"}]}
    bridge = {"type": "bridge", "bridge": "chained", "ipam": ipam}
    network = Network(node, [bridge, fimbria(node)])
    with pytest.raises(ChainError) as caught:
        network.add("taken", pod)
    assert (caught.value.plugin, caught.value.code) == ("fimbria-cni", 4)
    assert "CNI_IFNAME eth0: prevResult.interfaces[2]" in caught.value.msg
    assert not [each for each in node.endpoints() if each.container_id == "taken"]
    network.delete("taken", pod)
    pod.command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    with pytest.raises(ChainError) as caught:
        Network(node, [fimbria(node)]).add("taken", pod)
    assert (caught.value.code, "CNI_IFNAME eth0" in caught.value.msg) == (4, True)
    assert "taken/eth0" not in rig.owners()


def test_bandwidth_after_it_limits_what_a_pod_receives(rig: Rig, pod: Namespace) -> None:
    (node,) = rig.nodes
    plugins = [fimbria(node), {"type": "bandwidth", "capabilities": {"bandwidth": True}}]
    network = Network(node, plugins)
    limits = {"ingressRate": 8_000_000, "ingressBurst": 8_000_000}
    network.add("slow", pod, bandwidth=limits)
    (endpoint,) = [each for each in node.endpoints() if each.container_id == "slow"]
    kinds = [
        each["kind"]
        for each in shown(node.namespace, "tc", "-j", "qdisc", "show", "dev", endpoint.host_device)
    ]
    assert "tbf" in kinds
    network.check("slow", pod, bandwidth=limits)
    other = rig.pod(node, "fast", app="client")
    other.add()
    with echo_server(pod, 80):
        assert echoes(other.namespace, endpoint.ipv4, 80)
    other.delete()
    network.delete("slow", pod, bandwidth=limits)


def test_source_routing_after_it_keeps_a_pod_reachable(rig: Rig, pod: Namespace) -> None:
    (node,) = rig.nodes
    network = Network(node, [fimbria(node), {"type": "sbr"}])
    result = network.add("sourced", pod)
    assert [rule["src"] for rule in shown(pod, "ip", "-j", "rule") if rule["src"] != "all"]
    other = rig.pod(node, "asks", app="client")
    other.add()
    with echo_server(pod, 80):
        for ip in result["ips"]:
            assert echoes(other.namespace, ip["address"].split("/")[0], 80)
    other.delete()
    network.delete("sourced", pod)


def test_portmap_after_it_opens_a_port_of_the_node(rig: Rig, pod: Namespace, namespaces: Namespaces) -> None:
    (node,) = rig.nodes
    plugins = [fimbria(node), {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}]
    network = Network(node, plugins)
    mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    network.add("mapped", pod, portMappings=mappings)
    assert "8080" in node.namespace.command("iptables-save", "-t", "nat")
    # No CHECK: portmap 1.1.1 looks for the IPv4 rules among those of IPv6 where a pod has both.
    with echo_server(pod, 80):
        assert echoes(node.namespace, node.ipv4, 8080)
        assert echoes(outsider(rig, namespaces), node.ipv4, 8080)
    network.delete("mapped", pod, portMappings=mappings)
    assert "8080" not in node.namespace.command("iptables-save", "-t", "nat")


def outsider(rig: Rig, namespaces: Namespaces) -> Namespace:
    """A machine beside the node that is none of the cluster's."""
    made = namespaces.make()
    rig._underlay.command(
        *("ip", "link", "add", "outsider", "type", "veth"), *("peer", "name", "eth0", "netns", made.name)
    )
    rig._underlay.command("ip", "link", "set", "outsider", "master", "underlay", "up")
    for command in ("link set lo up", "link set eth0 up", "address add 172.31.9.9/16 dev eth0"):
        made.command("ip", *command.split())
    return made


def echoes(source: Namespace, address: str, port: int) -> bool:
    def ask() -> bool:
        with socket.create_connection((address, port), timeout=3) as connection:
            connection.sendall(b"ping")
            return connection.recv(16) == b"ping"

    # The machine may be so busy that a connection and its first repetition time out.
    for _ in range(3):
        try:
            return source.run(ask)
        except TimeoutError:
            continue
        except OSError:
            return False
    return False
