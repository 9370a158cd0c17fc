"""The host firewall as the CLI's user has it: a cluster-wide policy with a nodeSelector."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.lab import underlay
from cli.lab.lab import Lab
from cli.lab.probing import OUTSIDE_HOST
from tests.cluster.conftest import CLIENT, WEB
from tests.cluster.test_policy import Cli

pytestmark = pytest.mark.cluster

PROTECT_NODE_1 = """\
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: protect-node-1}
spec:
  description: Who may speak to node-1 itself.
  nodeSelector: {matchLabels: {kubernetes.io/hostname: node-1}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
"""
NODES = {name: underlay.node_address(name) for name in ("node-1", "node-2")}


@pytest.fixture
def fimbria(shop: Lab, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(shop, capsys, tmp_path)
    yield cli
    for policy in cli.json("policy", "list"):
        cli("policy", "delete", f"{policy['kind']}/{policy['name']}")


def allowed(lab: Lab, source: str, target: str, *ports: int, family: int = 4) -> list[bool]:
    probes = [(source, target, port, "TCP") for port in ports]
    return [result.allowed for result in lab.probe_many(probes, family=family)]


def test_a_policy_closes_the_node_that_it_selects_until_it_is_deleted(shop: Lab, fimbria: Cli) -> None:
    assert allowed(shop, OUTSIDE_HOST, NODES["node-1"], 8080, 8081) == [True, True]
    applied = fimbria.apply(PROTECT_NODE_1)
    assert [node["node"] for node in applied["enforced"]] == ["node-1", "node-2"]
    assert allowed(shop, OUTSIDE_HOST, NODES["node-1"], 8080, 8081, 22) == [False, False, True]
    assert allowed(shop, WEB, "@host", 8080, 8081, 22) == [True, False, True]
    assert allowed(shop, "@host", WEB, 8080) == [True]
    # What it forwards, and whom it is not about.
    assert allowed(shop, CLIENT, WEB, 80) == [True]
    assert allowed(shop, OUTSIDE_HOST, NODES["node-2"], 8081) == [True]
    assert allowed(shop, CLIENT, "@host", 8081) == [True]
    if 6 in shop.network.families:
        ipv6 = underlay.node_address("node-1", 6)
        assert allowed(shop, OUTSIDE_HOST, ipv6, 8080, 22, family=6) == [False, True]
        assert allowed(shop, WEB, "@host", 8080, 8081, family=6) == [True, False]

    told = fimbria("policy", "delete", "ccnp/protect-node-1")
    assert "CiliumClusterwideNetworkPolicy protect-node-1 deleted" in told
    assert allowed(shop, OUTSIDE_HOST, NODES["node-1"], 8080, 8081) == [True, True]
    assert allowed(shop, WEB, "@host", 8081) == [True]


def test_it_says_whom_it_selects_and_why_it_denies(shop: Lab, fimbria: Cli) -> None:
    fimbria.apply(PROTECT_NODE_1)
    assert "nodes with kubernetes.io/hostname=node-1" in fimbria("policy", "list")
    denied = fimbria.json("lab", "probe", OUTSIDE_HOST, NODES["node-1"], "8081/TCP", code=4)
    assert (denied["node"], denied["direction"]) == ("node-1", "ingress")
    assert "protect-node-1" in denied["rule"]
    assert denied["notes"] == []
    why = denied["explain"]["ingress"]
    assert why["enforced_by"] == ["CiliumClusterwideNetworkPolicy protect-node-1"]
    assert "failsafe" in why["reason"]
    node = "reserved:host,kubernetes.io/hostname=node-{}"
    assert fimbria.json("policy", "explain", WEB, node.format(1), "8080/TCP")["allowed"]
    assert not fimbria.json("policy", "explain", WEB, node.format(1), "8081/TCP", code=4)["allowed"]
    assert fimbria.json("policy", "explain", WEB, node.format(2), "8081/TCP")["allowed"]


def test_only_a_cluster_wide_policy_selects_nodes(shop: Lab, fimbria: Cli) -> None:
    namespaced = PROTECT_NODE_1.replace("Clusterwide", "").replace(
        "name: protect", "namespace: shop, name: protect"
    )
    told = fimbria.apply(namespaced, code=2)
    assert "spec.nodeSelector" in told and "CiliumClusterwideNetworkPolicy" in told
    assert fimbria.json("policy", "list") == []
    assert allowed(shop, OUTSIDE_HOST, NODES["node-1"], 8081) == [True]
