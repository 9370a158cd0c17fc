"""Endpoints by netkit devices, through the plugin, loader and kernel: what holds by veth holds by them."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address

import pytest
from fimbria.loader.v1 import loader_pb2

from services.loader.bpf.netkit import is_netkit, peer_program
from services.loader.netlink.links import LinkSpec, create_endpoint_link, delete_endpoint_link
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import Node, Pod, Rig
from tests.kernel.loader.traffic import connect, datagrams, reaches, talks
from tests.kernel.netlink.namespaces import Namespace, Namespaces
from tests.patience import patient

pytestmark = pytest.mark.kernel

ONLY_CLIENT = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 80, protocol: TCP}]
"""

# near may speak with the node; the node with others' addresses not at all.
HOST_POLICY = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: host}
spec:
  nodeSelector: {matchLabels: {kubernetes.io/hostname: node-1}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
  - fromEntities: [remote-node]
  egress:
  - toEntities: [cluster]
"""

Eventually = Callable[[Callable[[], bool]], None]


def devices(node: Node | Pod) -> dict[str, str]:
    """Kinds of the devices in a namespace, by name; "" for those that have none."""
    found = json.loads(node.namespace.command("ip", "-d", "-j", "link"))
    return {link["ifname"]: link.get("linkinfo", {}).get("info_kind", "") for link in found}


def program_of(node: Node, device: str) -> int | None:
    """The program that sees what the device's pod sends."""
    return node.namespace.run(lambda: peer_program(socket.if_nametoindex(device)))


def pings(source: Namespace, address: str) -> bool:
    command = ["nsenter", f"--net={source.path}", "ping", "-c", "1", "-W", str(int(patient(1))), address]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_both_ends_are_netkit_devices_with_a_program(rig: Rig, pods: dict[str, Pod]) -> None:
    for node in rig.nodes:
        kinds = {kind for name, kind in devices(node).items() if name.startswith("lxc")}
        assert kinds == {"netkit"}
        assert all(program_of(node, name) for name in node.links())
    assert devices(pods["web"])["eth0"] == "netkit"
    code, problem = pods["web"].call("CHECK", prevResult=pods["web"].add())
    assert code == 0, problem


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_pods_reach_each_other_within_a_node_and_across(
    pods: dict[str, Pod], eventually: Eventually, ipv6: bool
) -> None:
    for source, target in (("near", "web"), ("client", "web"), ("web", "client"), ("stranger", "client")):
        eventually(partial(reaches, pods[source], pods[target], 80, ipv6=ipv6))


def test_the_node_and_its_pods_reach_each_other(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    node, web = rig.nodes[0], pods["web"]
    for ipv6 in (False, True):
        eventually(partial(reaches, node, web, 80, ipv6=ipv6))
    assert pings(web.namespace, node.ipv4)
    assert pings(node.namespace, web.ipv4)
    assert pings(web.namespace, rig.nodes[1].ipv4), "another node, by the network"


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_a_policy_decides_within_a_node_and_across(rig: Rig, pods: dict[str, Pod], ipv6: bool) -> None:
    web = pods["web"]
    outsider = rig.pod(rig.nodes[0], "outsider", app="outsider")
    outsider.add()
    with connect(pods["stranger"], web, 80, ipv6=ipv6) as before:
        assert talks(before)
        rig.apply(ONLY_CLIENT)
        try:
            assert reaches(pods["near"], web, 80, ipv6=ipv6)
            assert reaches(pods["client"], web, 80, ipv6=ipv6)
            assert not reaches(outsider, web, 80, ipv6=ipv6)
            assert not reaches(pods["stranger"], web, 80, ipv6=ipv6)
            assert not talks(before)
            # The node is not of the cluster's pods: its probes pass.
            assert reaches(rig.nodes[0], web, 80, ipv6=ipv6)
        finally:
            rig.remove_policy(ONLY_CLIENT)
    outsider.delete()


def test_what_comes_from_the_world_is_not_taken_for_the_nodes_own(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    node, web = rig.nodes[0], pods["web"]
    outside = rig.namespaces.make()
    node.namespace.command("ip", "link", "add", "wan", "type", "veth", "peer", "eth0", "netns", outside.name)
    node.namespace.command("ip", "address", "add", "198.51.100.1/24", "dev", "wan")
    node.namespace.command("ip", "link", "set", "wan", "up")
    node.namespace.command("sysctl", "-qw", "net.ipv4.conf.wan.rp_filter=0", "net.ipv4.ip_forward=1")
    outside.command("ip", "address", "add", "198.51.100.7/24", "dev", "eth0")
    outside.command("ip", "link", "set", "eth0", "up")
    outside.command("ip", "route", "add", "default", "via", "198.51.100.1")
    eventually(lambda: pings(outside, web.ipv4))
    rig.apply(ONLY_CLIENT)
    try:
        assert not pings(outside, web.ipv4)
        assert pings(node.namespace, web.ipv4)
    finally:
        rig.remove_policy(ONLY_CLIENT)
    assert pings(outside, web.ipv4)


def test_the_nodes_own_policy_judges_its_pods_by_who_they_are(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    node, other = rig.nodes
    assert pings(pods["web"].namespace, node.ipv4)
    rig.apply(HOST_POLICY)
    try:
        eventually(lambda: not pings(pods["web"].namespace, node.ipv4))
        assert pings(pods["near"].namespace, node.ipv4)
        # What pods send to others by the node's devices is none of its policy.
        assert pings(pods["web"].namespace, other.ipv4)
        assert reaches(pods["web"], pods["client"], 80)
    finally:
        rig.remove_policy(HOST_POLICY)
    eventually(lambda: pings(pods["web"].namespace, node.ipv4))


def test_killing_and_starting_a_loader_loses_no_packet(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    web, client, stranger = pods["web"], pods["client"], pods["stranger"]
    node = web.node
    rig.apply(ONLY_CLIENT)
    try:
        with connect(client, web, 80) as connection, datagrams(web, client, 9000) as stream:
            node.loader.kill()
            assert talks(connection)
            assert reaches(client, web, 80)
            assert not reaches(stranger, web, 80)
            node.loader.start()
            eventually(lambda: {e.state for e in node.endpoints()} == {loader_pb2.ENDPOINT_STATE_READY})
            assert talks(connection)
            assert reaches(client, web, 80)
            assert not reaches(stranger, web, 80)
            eventually(lambda: stream.sent > 50)
        assert stream.lost == 0
    finally:
        rig.remove_policy(ONLY_CLIENT)
    assert all(program_of(node, name) for name in node.links())
    (program,) = [each for each in node.status().programs if each.name == "from_container"]
    assert {program_of(node, name) for name in node.links()} == {program.id}


def test_a_deleted_pod_leaves_nothing(rig: Rig) -> None:
    node = rig.nodes[0]
    before = devices(node)
    pod = rig.pod(node, "short", app="short")
    pod.add()
    assert len(devices(node)) == len(before) + 1
    pod.delete()
    assert devices(node) == before
    assert "eth0" not in devices(pod)


def test_a_pod_by_veth_and_one_by_netkit_reach_each_other(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    node = rig.nodes[0]
    node.loader.kill()
    node.loader.arguments.remove("--endpoint-device=netkit")
    node.loader.start()
    old = rig.pod(node, "old", app="old")
    old.add()
    try:
        assert devices(old)["eth0"] == "veth"
        assert devices(pods["web"])["eth0"] == "netkit", "what is there stays what it is"
        with echo_server(old.namespace, 80):
            for ipv6 in (False, True):
                eventually(partial(reaches, pods["web"], old, 80, ipv6=ipv6))
                eventually(partial(reaches, old, pods["web"], 80, ipv6=ipv6))
            rig.apply(ONLY_CLIENT)
            try:
                assert not reaches(old, pods["web"], 80)
                assert reaches(pods["web"], old, 80)
            finally:
                rig.remove_policy(ONLY_CLIENT)
    finally:
        old.delete()


def test_a_pair_passes_nothing_of_the_pods_before_it_has_a_program() -> None:
    with Namespaces() as namespaces:
        node, pod = namespaces.make(), namespaces.make()
        spec = LinkSpec(
            "lxc0123456789ab", pod.fd, "eth0", IPv4Address("10.9.0.2"), IPv4Address("10.9.0.1"), 1450, 1450,
            kind="netkit",
        )  # fmt: skip

        def work() -> int:
            link = create_endpoint_link(spec)
            assert is_netkit(link.ifindex)
            assert peer_program(link.ifindex) == 0
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as seen:
                seen.bind((link.host_name, 3))
                seen.settimeout(patient(0.3))
                # The device tells that it has dropped it.
                with pytest.raises(OSError, match="No buffer space"):
                    pod.run(lambda: _send_frame(b"\xff" * 6 + b"\x02" * 6 + b"\x08\x00" + bytes(46)))
                with pytest.raises(TimeoutError):
                    seen.recv(2048)
            assert delete_endpoint_link(link.host_name)
            return link.ifindex

        ifindex = node.run(work)
        assert not node.run(lambda: is_netkit(ifindex))


def _send_frame(frame: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("eth0", 0))
        sender.send(frame)
