# SPDX-License-Identifier: Apache-2.0
"""Every published network-policy case through parser, engine and verdict, and some of our own in the same
form about what the published ones leave out.

Where Kubernetes and Cilium differ, in an ipBlock that selects pods, the manifest's own kind decides: all
published cases of that are NetworkPolicies, so that `expect` is right and `cilium` is not.
"""

from __future__ import annotations

from typing import Any

import pytest

from services.chassis.labels import pod_labels
from services.policy.engine import IdentityDelete, IdentityPut
from services.policy.rules import PolicyRef
from services.policy.selector import Labels
from tests.policy_model.cases import (
    CASES,
    POD_CIDR,
    Addresses,
    act,
    cluster_of,
    connection_of,
    declared,
    reserved_addresses,
    rounds,
)
from tests.policy_model.cluster import Cluster, Pod
from tests.policy_model.harness import Deployment


def wrong_verdicts(case: dict[str, Any]) -> list[str]:
    """What of a case comes out otherwise than expected."""
    addresses = Addresses()
    cluster = cluster_of(case, addresses)
    deployment = Deployment(cluster)
    wrong = []
    for where, actions, probes in rounds(case):
        deletes = []
        for action in actions:
            if "policy" in action:
                deployment.apply([addresses.fill(action["policy"])])
            elif action["action"] == "delete_policy":
                named = action["namespace"], action["name"]
                deletes = [ref for ref in deployment.policies if (ref.namespace, ref.name) == named]
                assert deletes, f"{where}: there is no policy {named}"
                deployment.apply((), deletes)
            else:
                act(cluster, action, addresses)
                deployment.settle_pods()
        for probe in probes:
            if deployment.allowed(connection_of(probe)) != (probe["expect"] == "allow"):
                wrong.append(f"{where}: {connection_of(probe)}: expected {probe['expect']}")
    return wrong


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_published_case_gives_the_published_verdicts(case: dict[str, Any]) -> None:
    assert wrong_verdicts(case) == []


def test_all_cases_are_there() -> None:
    assert len(CASES) == 90
    ends = {probe[side] for case in CASES for probe in case["probes"] for side in ("from", "to")}
    assert {"@host", "@remote-node", "192.0.2.3"} <= ends


def probe(source: str, destination: str, what: str, expect: str) -> dict[str, Any]:
    """`what` is PROTOCOL/PORT."""
    protocol, _, port = what.partition("/")
    return {"from": source, "to": destination, "proto": protocol, "port": int(port), "expect": expect}


def pod(name: str, labels: dict[str, str], account: str = "", ports: tuple[Any, ...] = ()) -> dict[str, Any]:
    namespace, _, own = name.partition("/")
    return {"ns": namespace, "name": own, "labels": labels, "serviceAccount": account, "ports": list(ports)}


def case(
    name: str,
    pods: list[dict[str, Any]],
    policies: list[dict[str, Any]],
    probes: list[dict[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    namespaces: dict[str, Any] = {item["ns"]: {"labels": {}} for item in pods}
    return {
        "id": name,
        "namespaces": namespaces,
        "pods": pods,
        "policies": policies,
        "probes": probes,
        **more,
    }


def clusterwide(spec: dict[str, Any], name: str = "one") -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def namespaced(spec: dict[str, Any], name: str = "one", namespace: str = "shop") -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def kubernetes(spec: dict[str, Any], name: str = "one", namespace: str = "shop") -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


WEB, DB, FAR = pod("shop/web", {"app": "web"}), pod("shop/db", {"app": "db"}), pod("bank/web", {"app": "web"})
EVERY_POD: dict[str, Any] = {"endpointSelector": {}}
MORE = [
    case(
        "health-is-an-entity-of-its-own",
        [WEB, DB],
        [clusterwide({**EVERY_POD, "ingress": [{"fromEntities": ["health"]}]})],
        [
            probe("@health", "shop/web", "TCP/4240", "allow"),
            probe("@remote-node", "shop/web", "TCP/4240", "deny"),
            probe("shop/db", "shop/web", "TCP/4240", "deny"),
            probe("192.0.2.3", "shop/web", "TCP/4240", "deny"),
            probe("@host", "shop/web", "TCP/4240", "allow"),
        ],
    ),
    case(
        "remote-node-is-not-the-host",
        [WEB],
        [clusterwide({**EVERY_POD, "egress": [{"toEntities": ["remote-node"]}]})],
        [
            probe("shop/web", "@remote-node", "TCP/80", "allow"),
            probe("shop/web", "@host", "TCP/80", "deny"),
            probe("shop/web", "@health", "TCP/80", "deny"),
            probe("shop/web", "192.0.2.3", "TCP/80", "deny"),
        ],
    ),
    case(
        "cluster-label",
        [WEB, DB],
        [
            namespaced(
                {
                    "endpointSelector": {"matchLabels": {"io.cilium.k8s.policy.cluster": "default"}},
                    "ingress": [
                        {
                            "fromEndpoints": [
                                {"matchLabels": {"k8s:io.cilium.k8s.policy.cluster": "default", "app": "db"}},
                                {"matchLabels": {"io.cilium.k8s.policy.cluster": "elsewhere"}},
                            ]
                        }
                    ],
                }
            )
        ],
        [
            probe("shop/db", "shop/web", "TCP/80", "allow"),
            probe("shop/web", "shop/db", "TCP/80", "deny"),
            probe("192.0.2.3", "shop/web", "TCP/80", "deny"),
        ],
    ),
    case(
        "service-account-across-namespaces",
        [
            pod("shop/db", {"app": "db"}),
            pod("bank/teller", {"app": "x"}, "teller"),
            pod("bank/guard", {"app": "x"}),
        ],
        [
            namespaced(
                {
                    **EVERY_POD,
                    "ingress": [
                        {
                            "fromEndpoints": [
                                {
                                    "matchLabels": {
                                        "k8s:io.kubernetes.pod.namespace": "bank",
                                        "k8s:io.cilium.k8s.policy.serviceaccount": "teller",
                                    }
                                }
                            ]
                        }
                    ],
                }
            )
        ],
        [
            probe("bank/teller", "shop/db", "TCP/80", "allow"),
            probe("bank/guard", "shop/db", "TCP/80", "deny"),
        ],
    ),
    case(
        "icmp-in-both-directions",
        [WEB, DB],
        [
            namespaced(
                {
                    "endpointSelector": {"matchLabels": {"app": "web"}},
                    "ingressDeny": [{"icmps": [{"fields": [{"type": "EchoRequest"}]}]}],
                    "ingress": [{"fromEntities": ["cluster"]}],
                    "egress": [{"toEntities": ["cluster"], "icmps": [{"fields": [{"type": 8}]}]}],
                }
            )
        ],
        [
            probe("shop/db", "shop/web", "ICMP/8", "deny"),
            probe("shop/db", "shop/web", "ICMP/13", "allow"),
            probe("shop/db", "shop/web", "TCP/8", "allow"),
            probe("shop/web", "shop/db", "ICMP/8", "allow"),
            probe("shop/web", "shop/db", "ICMP/0", "deny"),
            probe("shop/web", "shop/db", "UDP/8", "deny"),
            probe("shop/web", "192.0.2.3", "ICMP/8", "deny"),
        ],
    ),
    case(
        "host-firewall-with-addresses",
        [WEB],
        [
            clusterwide(
                {
                    "nodeSelector": {"matchLabels": {"role": "edge"}},
                    "ingress": [
                        {"fromCIDRSet": [{"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}]},
                        {"fromEntities": ["cluster"], "toPorts": [{"ports": [{"port": "9100"}]}]},
                    ],
                    "egressDeny": [{"toCIDR": ["198.51.100.7/32"]}],
                    "enableDefaultDeny": {"egress": False},
                }
            )
        ],
        [
            probe("192.0.2.3", "@host", "TCP/22", "allow"),
            probe("192.0.2.130", "@host", "TCP/22", "deny"),
            probe("198.51.100.7", "@host", "TCP/22", "deny"),
            probe("shop/web", "@host", "TCP/9100", "allow"),
            probe("shop/web", "@host", "TCP/22", "deny"),
            probe("@host", "198.51.100.7", "TCP/443", "deny"),
            probe("@host", "198.51.100.8", "TCP/443", "allow"),
            probe("@host", "shop/web", "TCP/443", "allow"),
        ],
        nodeLabels={"role": "edge"},
    ),
    case(
        "node-that-no-policy-selects",
        [WEB],
        [
            clusterwide(
                {
                    "nodeSelector": {"matchLabels": {"role": "edge"}},
                    "ingressDeny": [{"fromEntities": ["all"]}],
                }
            )
        ],
        [probe("192.0.2.3", "@host", "TCP/22", "allow"), probe("shop/web", "@host", "TCP/22", "allow")],
        nodeLabels={"role": "core"},
    ),
    case(
        "cilium-cidr-leaves-pods-and-nodes-out",
        [WEB, DB],
        [namespaced({**EVERY_POD, "egress": [{"toCIDR": ["0.0.0.0/0"]}, {"toCIDR": ["{{ip:shop/db}}/32"]}]})],
        [
            probe("shop/web", "192.0.2.3", "TCP/80", "allow"),
            probe("shop/web", "shop/db", "TCP/80", "deny"),
            probe("shop/web", "@remote-node", "TCP/80", "deny"),
            probe("shop/web", "@host", "TCP/80", "deny"),
        ],
    ),
    case(
        "ip-block-takes-pods-and-nodes-in",
        [WEB, DB],
        [
            kubernetes(
                {
                    "policyTypes": ["Egress"],
                    "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["{{ip:shop/db}}/32"]}}]}],
                }
            )
        ],
        [
            probe("shop/web", "192.0.2.3", "TCP/80", "allow"),
            probe("shop/web", "shop/db", "TCP/80", "deny"),
            probe("shop/db", "shop/web", "TCP/80", "allow"),
            probe("shop/web", "@remote-node", "TCP/80", "allow"),
            probe("shop/web", "@host", "TCP/80", "allow"),
        ],
    ),
    case(
        "both-kinds-of-addresses-at-once",
        [WEB, DB, FAR],
        [
            namespaced({**EVERY_POD, "egressDeny": [{"toCIDR": [POD_CIDR, "192.0.2.0/28"]}], "egress": [{}]}),
            kubernetes(
                {
                    "policyTypes": ["Egress"],
                    "egress": [
                        {"to": [{"ipBlock": {"cidr": POD_CIDR}}, {"ipBlock": {"cidr": "192.0.2.0/24"}}]}
                    ],
                }
            ),
        ],
        [
            probe("shop/web", "bank/web", "TCP/80", "allow"),
            probe("shop/web", "192.0.2.3", "TCP/80", "deny"),
            probe("shop/web", "192.0.2.77", "TCP/80", "allow"),
            probe("shop/web", "198.51.100.7", "TCP/80", "deny"),
        ],
    ),
    case(
        "deny-without-default-deny",
        [WEB, DB],
        [
            clusterwide(
                {
                    **EVERY_POD,
                    "enableDefaultDeny": {"ingress": False},
                    "ingressDeny": [{"toPorts": [{"ports": [{"port": "22", "protocol": "TCP"}]}]}],
                }
            )
        ],
        [
            probe("shop/db", "shop/web", "TCP/22", "deny"),
            probe("shop/db", "shop/web", "TCP/80", "allow"),
            probe("192.0.2.3", "shop/web", "UDP/22", "allow"),
        ],
    ),
]


@pytest.mark.parametrize("case", MORE, ids=lambda case: case["id"])
def test_case_of_our_own_gives_its_verdicts(case: dict[str, Any]) -> None:
    assert wrong_verdicts(case) == []


def test_unused_identity_leaves_no_trace() -> None:
    cluster = Cluster({"shop": {}}, addresses=reserved_addresses())
    cluster.put(Pod("shop", "web", {"app": "web"}, declared([]), ("10.40.0.1",)))
    deployment = Deployment(cluster)
    deployment.apply([kubernetes({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]})])
    before = deployment.state("shop/web")
    labels = Labels(pod_labels("shop", {"app": "guest"}, {}))
    (change,) = deployment.engine.apply([IdentityPut(900, labels)])
    assert [key.identity for key, _ in change.upserts] == [900]
    assert change.deletes == ()
    (change,) = deployment.engine.apply([IdentityDelete(900)])
    assert [key.identity for key in change.deletes] == [900]
    assert deployment.state("shop/web") == before


def test_policy_that_is_gone_leaves_no_trace() -> None:
    cluster = Cluster({"shop": {}}, addresses=reserved_addresses())
    cluster.put(Pod("shop", "web", {"app": "web"}, declared([]), ("10.40.0.1",)))
    deployment = Deployment(cluster)
    before = deployment.state("shop/web")
    blocks = [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.40.0.0/16"]}}]}]
    deployment.apply([kubernetes({"podSelector": {}, "egress": blocks})])
    assert deployment.state("shop/web") != before
    deployment.apply((), [PolicyRef("NetworkPolicy", "shop", "one")])
    assert deployment.state("shop/web") == before
    assert dict(deployment.engine.prefixes) == {}
