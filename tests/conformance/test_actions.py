"""Actions and ends that cases may have and the published ones do not all use."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance import probing
from tests.conformance.cases import read_case
from tests.conformance.conftest import Labs
from tests.conformance.probing import Tally, Uncarried

pytestmark = pytest.mark.cluster


def _probe(source: str, target: str, expect: str, protocol: str = "TCP", port: int = 80) -> dict[str, Any]:
    return {"from": source, "to": target, "proto": protocol, "port": port, "expect": expect}


def _policy(namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}


def _from(**labels: str) -> dict[str, Any]:
    peers = {f"k8s:{key.replace('_', '.')}": value for key, value in labels.items()}
    return {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{"matchLabels": peers}]}]}


CASE = {
    "id": "own",
    "kind": "cilium",
    "description": "everything that may happen to a cluster",
    "namespaces": {"shop": {"labels": {}}},
    "pods": [
        {"ns": "shop", "name": "web", "labels": {"app": "web"}, "ports": [{"port": 80, "proto": "TCP"}]},
        {"ns": "shop", "name": "client", "labels": {"app": "client"}, "ports": []},
    ],
    "policies": [_policy("shop", "web", _from(app="client"))],
    "probes": [
        _probe("shop/client", "shop/web", "allow"),
        {**_probe("shop/web", "shop/client", "allow"), "cilium": "deny"},
        _probe("@health", "shop/web", "deny"),
        _probe("@host", "shop/web", "allow"),
        _probe("@remote-node", "shop/web", "deny"),
    ],
    "steps": [
        {
            "actions": [
                {"action": "create_namespace", "namespace": "guests", "labels": {"team": "guests"}},
                {
                    "action": "create_pod",
                    "namespace": "guests",
                    "pod": "visitor",
                    "labels": {"app": "client"},
                    "ports": [{"name": "http", "port": 80, "proto": "TCP"}],
                },
                {"action": "create_policy", "policy": _policy("guests", "closed", _from(app="nobody"))},
            ],
            "probes": [
                _probe("guests/visitor", "shop/web", "deny"),
                _probe("shop/client", "guests/visitor", "deny"),
                _probe("guests/visitor", "guests/visitor", "allow"),
            ],
        },
        {
            "actions": [
                {"action": "delete_policy", "namespace": "guests", "name": "closed"},
                {
                    "action": "create_policy",
                    "policy": _policy(
                        "shop", "web", _from(io_kubernetes_pod_namespace="guests", app="client")
                    ),
                },
            ],
            "probes": [
                _probe("guests/visitor", "shop/web", "allow"),
                _probe("shop/client", "shop/web", "deny"),
                _probe("shop/client", "guests/visitor", "allow"),
            ],
        },
        {
            "actions": [
                {"action": "set_pod_labels", "namespace": "guests", "pod": "visitor", "labels": {"app": "x"}},
                {"action": "delete_pod", "namespace": "shop", "pod": "client"},
            ],
            "probes": [_probe("guests/visitor", "shop/web", "deny")],
        },
        {
            "actions": [
                {"action": "delete_namespace", "namespace": "guests"},
                {"action": "delete_policy", "namespace": "shop", "name": "web"},
                {"action": "create_pod", "namespace": "shop", "pod": "client", "labels": {}, "ports": []},
            ],
            "probes": [_probe("shop/client", "shop/web", "allow", "ICMP", 8)],
        },
    ],
}


def test_everything_that_may_happen_to_a_cluster(labs: Labs) -> None:
    case = read_case(CASE)
    cluster = labs.cluster({})
    cluster.settle(case)
    tally = Tally()
    for number, stage in enumerate(case.stages):
        cluster.act(stage.actions)
        assert not probing.run(cluster, case, stage.probes, tally), f"stage {number}"
    assert tally.probes == 13
    # Not the one of @health, and the ping over IPv4 alone.
    assert tally.packets == {4: 12, 6: 11}
    # Not the one that stays in its pod, and the ping as above.
    assert tally.explained == {4: 12, 6: 11}
    assert tally.uncarried == {Uncarried.HEALTH: 1}
    assert {f"{row['namespace']}/{row['name']}" for row in cluster.lab.pods()} == {"shop/web", "shop/client"}


def test_what_does_not_come_out_as_expected_is_told(labs: Labs) -> None:
    case = read_case(
        {
            **CASE,
            "probes": [_probe("shop/client", "shop/web", "deny"), _probe("shop/web", "shop/client", "allow")],
        }
    )
    cluster = labs.cluster({})
    cluster.settle(case)
    cluster.act(case.stages[0].actions)
    told = probing.run(cluster, case, case.stages[0].probes, Tally())
    # Both probes as packets and by the policy service's word, over both IP versions.
    assert len(told) == 8
    assert any("expected denied, was allowed (connected)" in line for line in told)
    assert any("expected allowed, Explain says denied" in line for line in told)
