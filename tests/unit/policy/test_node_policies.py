# SPDX-License-Identifier: Apache-2.0
"""Policies for nodes: what a manifest says, whom it selects, what it makes of a connection."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.chassis.errors import InvalidArgument
from services.policy.convert import read_node_labels
from services.policy.entries import EntryKey
from services.policy.explain import End, explain
from services.policy.manifest import ManifestError, parse_manifests
from services.policy.resolve import BoundPolicy, resolve
from services.policy.rules import Direction, Policy, Protocol
from services.policy.selector import Labels

NODE_1 = Labels(["k8s:kubernetes.io/hostname=node-1", "reserved:host"])
NODE_2 = Labels(["k8s:kubernetes.io/hostname=node-2", "reserved:host"])
POD = Labels(["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop", "k8s:kubernetes.io/hostname=node-1"])
WORLD, REMOTE_NODE = Labels(["reserved:world"]), Labels(["reserved:remote-node"])
IDENTITIES = {1: Labels(["reserved:host"]), 2: WORLD, 6: REMOTE_NODE, 300: POD}
ON_NODE_1 = {"matchLabels": {"kubernetes.io/hostname": "node-1"}}


def policy(
    spec: dict[str, Any] | list[dict[str, Any]], kind: str = "CiliumClusterwideNetworkPolicy"
) -> Policy:
    manifest: dict[str, Any] = {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {"name": "nodes"}}
    manifest["spec" if isinstance(spec, dict) else "specs"] = spec
    (read,) = parse_manifests(json.dumps(manifest))
    return read.policy


def bound(read: Policy) -> BoundPolicy:
    return BoundPolicy(read, {rule.path: cookie for cookie, rule in enumerate(read.rules(), 1)})


def refused(spec: dict[str, Any], kind: str = "CiliumClusterwideNetworkPolicy") -> dict[str, str]:
    with pytest.raises(ManifestError) as caught:
        policy(spec, kind)
    assert not caught.value.unsupported_only
    return {violation.field: violation.description for violation in caught.value.violations}


def port(number: str) -> list[dict[str, Any]]:
    return [{"ports": [{"port": number, "protocol": "TCP"}]}]


def test_a_node_gets_the_entries_of_policies_for_nodes_alone() -> None:
    on_nodes = policy({"nodeSelector": ON_NODE_1, "ingress": [{"fromEntities": ["remote-node"]}]})
    on_pods = policy({"endpointSelector": ON_NODE_1, "egress": [{"toEntities": ["world"]}]})
    everything = [bound(on_nodes), bound(on_pods)]
    first = resolve(everything, IDENTITIES, NODE_1)
    assert first.enforced == (True, False)
    assert list(first.entries) == [EntryKey(Direction.INGRESS, 6, 0, 0, 0)]
    assert resolve(everything, IDENTITIES, NODE_2).entries == {}
    assert [key.direction for key in resolve(everything, IDENTITIES, POD).entries] == [Direction.EGRESS]


@pytest.mark.parametrize(
    ("entity", "numbers"),
    [
        ("all", {0}),
        ("world", {2}),
        ("cluster", {1, 6, 300}),
        ("host", {1}),
        ("remote-node", {6}),
        ("none", set()),
    ],
)
def test_peers_are_those_of_other_policies(entity: str, numbers: set[int]) -> None:
    read = policy({"nodeSelector": {}, "egress": [{"toEntities": [entity]}]})
    found = resolve([bound(read)], IDENTITIES, NODE_1)
    assert {key.identity for key in found.entries} == numbers
    assert found.enforced == (False, True)


def test_peers_may_be_pods_anywhere() -> None:
    read = policy({"nodeSelector": {}, "ingress": [{"fromEndpoints": [{}], "toPorts": port("10250")}]})
    (key,) = resolve([bound(read)], IDENTITIES, NODE_1).entries
    assert key == EntryKey(Direction.INGRESS, 300, Protocol.TCP, 10250, 16)


def test_one_policy_may_be_for_nodes_and_for_pods() -> None:
    read = policy([{"nodeSelector": {}, "ingress": [{}]}, {"endpointSelector": {}, "egress": [{}]}])
    assert resolve([bound(read)], IDENTITIES, NODE_1).enforced == (True, False)
    assert resolve([bound(read)], IDENTITIES, POD).enforced == (False, True)


@pytest.mark.parametrize(
    ("spec", "kind", "field", "said"),
    [
        (
            {"nodeSelector": ON_NODE_1, "ingress": [{}]},
            "CiliumNetworkPolicy",
            "spec.nodeSelector",
            "only a CiliumClusterwideNetworkPolicy selects nodes",
        ),
        (
            {"nodeSelector": {}, "endpointSelector": {}},
            "CiliumClusterwideNetworkPolicy",
            "spec.nodeSelector",
            "use two specs",
        ),
        (
            {"nodeSelector": {"matchLabels": {"a b": "c"}}},
            "CiliumClusterwideNetworkPolicy",
            'spec.nodeSelector.matchLabels["a b"]',
            "a label key",
        ),
        (
            {"nodeSelector": {}, "ingress": [{"toPorts": port("ssh")}]},
            "CiliumClusterwideNetworkPolicy",
            "spec.ingress[0].toPorts[0].ports[0].port",
            "nodes declare no port names",
        ),
        ({"ingress": [{}]}, "CiliumClusterwideNetworkPolicy", "spec.endpointSelector", "or nodeSelector"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(spec: dict[str, Any], kind: str, field: str, said: str) -> None:
    found = refused(spec, kind)
    assert list(found) == [field]
    assert said in found[field]


def test_egress_may_name_the_ports_of_pods() -> None:
    read = policy({"nodeSelector": {}, "egress": [{"toPorts": port("http")}]})
    assert read.specs[0].rules[0].ports


def test_explain_judges_both_ends_and_tells_of_failsafe_ports() -> None:
    spec = {"nodeSelector": ON_NODE_1, "ingress": [{"fromEntities": ["cluster"], "toPorts": port("443")}]}
    known = [bound(policy(spec))]
    node, pod, world = End(1 << 24, NODE_1), End(300, POD), End(2, WORLD)
    _, ingress = explain(known, pod, node, Protocol.TCP, 443)
    assert ingress.allowed
    assert ingress.reason == "allowed by CiliumClusterwideNetworkPolicy nodes spec.ingress[0]"
    _, ingress = explain(known, world, node, Protocol.TCP, 443)
    assert not ingress.allowed
    assert ingress.enforced_by == (known[0].ref,)
    assert ingress.reason.endswith("; the node's failsafe ports pass all the same")
    egress, ingress = explain(known, node, pod, Protocol.TCP, 80)
    assert egress.allowed
    assert ingress.reason == "allowed: a node always reaches its own pods"
    _, ingress = explain(known, world, End(1, Labels(["reserved:host"])), Protocol.TCP, 80)
    assert ingress.reason == "allowed: no policy restricts the receiver's ingress"


def test_only_the_host_has_labels() -> None:
    assert read_node_labels(1, ["k8s:b=2", "k8s:a=1", "k8s:b=2"], "watch.labels") == ("k8s:a=1", "k8s:b=2")
    assert read_node_labels(300, [], "watch.labels") == ()
    with pytest.raises(InvalidArgument, match="none with another identity than 1"):
        read_node_labels(300, ["k8s:a=1"], "watch.labels")
    with pytest.raises(InvalidArgument, match=r"watch\.labels: label 'a=1'"):
        read_node_labels(1, ["a=1"], "watch.labels")
