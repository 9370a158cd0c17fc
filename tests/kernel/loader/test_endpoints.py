"""Endpoints through the real plugin, loader, services and kernel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from fimbria.loader.v1 import loader_pb2

from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import Node, Pod, Rig
from tests.kernel.loader.traffic import connect, reaches, talks

pytestmark = pytest.mark.kernel

ONLY_CLIENT = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""

Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def pods(rig: Rig) -> Iterator[dict[str, Pod]]:
    """web on the first node; near on the first, client and stranger on the second."""
    made = rig.four_pods()
    with echo_server(made["web"].namespace, 80), echo_server(made["web"].namespace, 81):
        yield made


def _knows(node: Node, prefixes: list[str]) -> bool:
    return node.ipcache().keys() >= set(prefixes)


def _knows_not(node: Node, prefix: str) -> bool:
    return prefix not in node.ipcache()


def endpoint(pod: Pod) -> loader_pb2.Endpoint:
    (found,) = [each for each in pod.node.endpoints() if each.pod_name == pod.name]
    return found


def test_an_endpoint_is_what_the_plugin_says(rig: Rig, pods: dict[str, Pod], eventually: Eventually) -> None:
    web = pods["web"]
    found = endpoint(web)
    assert found.state == loader_pb2.ENDPOINT_STATE_READY
    assert (found.ipv4, found.host_device, found.ifname) == (web.ipv4, found.host_device, "eth0")
    assert "k8s:app=web" in found.labels
    assert f"{web.container_id}/eth0" in rig.owners()
    eventually(lambda: f"{web.ipv4}/32" in rig.published())
    published = rig.published()[f"{web.ipv4}/32"]
    assert (published.identity, published.owner, published.node) == (found.identity, "shop/web", "node-1")
    code, answer = web.call("ADD")
    assert code == 0
    assert answer["ips"][0]["address"] == f"{web.ipv4}/32"
    code, problem = web.call("CHECK", prevResult=answer)
    assert code == 0, problem


def test_every_node_knows_every_pod(rig: Rig, pods: dict[str, Pod], eventually: Eventually) -> None:
    for node in rig.nodes:
        eventually(partial(_knows, node, [f"{pod.ipv4}/32" for pod in pods.values()]))
        known = node.ipcache()
        for pod in pods.values():
            tunnel = "" if pod.node is node else pod.node.ipv4
            assert known[f"{pod.ipv4}/32"].tunnel_endpoint == tunnel
        assert known[f"{node.ipv4}/32"].identity == 1
        other = next(each for each in rig.nodes if each is not node)
        assert known[f"{other.ipv4}/32"].identity == 6


def test_without_policy_everybody_reaches_everybody(pods: dict[str, Pod], eventually: Eventually) -> None:
    for name in ("near", "client", "stranger"):
        eventually(partial(reaches, pods[name], pods["web"], 80))


def test_a_policy_decides_here_and_across_nodes_and_says_so(rig: Rig, pods: dict[str, Pod]) -> None:
    web = pods["web"]
    with connect(pods["stranger"], web, 80) as before:
        assert talks(before)
        revision = rig.apply(ONLY_CLIENT)
        try:
            assert not talks(before), "an established connection is judged again"
            assert reaches(pods["client"], web, 80)
            assert reaches(pods["near"], web, 80)
            assert not reaches(pods["client"], web, 81)
            assert not reaches(pods["stranger"], web, 80)
            found = web.node.policy(endpoint(web).id)
            assert found.ingress_enforced
            assert not found.egress_enforced
            assert found.revision == revision
            assert {entry.rule for entry in found.entries} == {"CiliumNetworkPolicy shop/web spec.ingress[0]"}
            assert endpoint(web).policy_revision == revision
            drops = [
                flow
                for flow in web.node.flows()
                if flow.verdict == loader_pb2.FLOW_VERDICT_DROPPED and flow.source.pod == "shop/stranger"
            ]
            assert drops
            assert drops[-1].rule == "default deny: CiliumNetworkPolicy shop/web"
            assert drops[-1].destination.pod == "shop/web"
            assert drops[-1].reason
        finally:
            rig.remove_policy(ONLY_CLIENT)
    assert reaches(pods["stranger"], web, 80)


def test_other_labels_take_effect_when_the_call_returns(rig: Rig, pods: dict[str, Pod]) -> None:
    stranger, web = pods["stranger"], pods["web"]
    before = endpoint(stranger)
    rig.apply(ONLY_CLIENT)
    try:
        assert not reaches(stranger, web, 80)
        labels = [label.replace("k8s:app=stranger", "k8s:app=client") for label in before.labels]
        changed = stranger.node.update_labels(before.id, labels)
        assert changed.identity == endpoint(pods["client"]).identity
        assert reaches(stranger, web, 80)
        again = stranger.node.update_labels(before.id, list(before.labels))
        assert again.identity == before.identity
        assert not reaches(stranger, web, 80)
    finally:
        rig.remove_policy(ONLY_CLIENT)


def test_a_deleted_pod_leaves_nothing(rig: Rig, eventually: Eventually) -> None:
    node = rig.nodes[0]
    links, subjects = node.links(), len(node.endpoints())
    pod = rig.pod(node, "short", app="short")
    pod.add()
    prefix = f"{pod.ipv4}/32"
    assert len(node.links()) == len(links) + 1
    pod.delete()
    pod.delete()
    assert node.links() == links
    assert len(node.endpoints()) == subjects
    eventually(lambda: prefix not in rig.published())
    assert f"{pod.container_id}/eth0" not in rig.owners()
    for each in rig.nodes:
        eventually(partial(_knows_not, each, prefix))


def test_a_second_attachment_of_a_container_elsewhere_is_refused(rig: Rig, pods: dict[str, Pod]) -> None:
    other = rig.namespaces.make()
    code, answer = pods["web"].call("ADD", netns=other.path)
    assert code != 0
    assert answer["code"] == 103
    assert reaches(pods["near"], pods["web"], 80)


def test_the_node_shows_its_programs_maps_and_watches(rig: Rig, pods: dict[str, Pod]) -> None:
    status = rig.nodes[0].status()
    assert {"from_container", "to_container", "from_overlay", "from_host"} <= {
        each.name for each in status.programs
    }
    assert {"policy", "subject", "ipcache4", "ct4"} <= {each.name for each in status.maps}
    assert all(watch.connected and not watch.error for watch in status.watches)
    assert status.pod_cidrs == ["10.244.0.0/24"] or status.pod_cidrs == ["10.244.1.0/24"]
    device = endpoint(pods["web"]).host_device
    (from_container,) = [each for each in status.programs if each.name == "from_container"]
    assert device in from_container.devices


def test_the_trace_of_an_add_tells_every_step(rig: Rig, eventually: Eventually) -> None:
    node = rig.nodes[0]
    pod = rig.pod(node, "traced", app="traced")
    pod.add()
    found: dict[str, str] = {}

    def complete() -> bool:
        spans = [json.loads(line) for line in (node.directory / "trace.jsonl").read_text().splitlines()]
        (root,) = [
            each
            for each in spans
            if each["name"] == "cni.add" and each["attributes"].get("pod") == "shop/traced"
        ] or [None]
        if root is None:
            return False
        names = {each["span_id"]: each["name"] for each in spans}
        found.update(
            (each["name"], names.get(each["parent_id"], ""))
            for each in spans
            if each["trace_id"] == root["trace_id"] and each["span_id"] != root["span_id"]
        )
        return "identity.Publish" in found

    eventually(complete)
    assert {name: found.get(name) for name in ("ipam.Allocate", "identity.Resolve", "policy.Subscribe")} == {
        "ipam.Allocate": "cni.add",
        "identity.Resolve": "cni.add",
        "policy.Subscribe": "cni.add",
    }
    assert found["endpoint.regenerate"] == "cni.add"
    assert found["bpf.attach"] == found["endpoint.realized"] == "endpoint.regenerate"
    pod.delete()
