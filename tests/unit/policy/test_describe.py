# SPDX-License-Identifier: Apache-2.0
"""Rules and subjects in words."""

from __future__ import annotations

import pytest

from services.policy.describe import describe_rule, describe_subject
from services.policy.manifest import parse_manifests

HEAD = """
apiVersion: cilium.io/v2
kind: {kind}
metadata: {{name: web}}
spec: {{endpointSelector: {on}, {rule}}}
"""
TO_PORT_80 = 'toPorts: [{ports: [{port: "80", protocol: TCP}]}]'


@pytest.mark.parametrize(
    ("clusterwide", "on", "rule", "subject", "description"),
    [
        (
            False,
            "{matchLabels: {app: web}}",
            f"ingress: [{{fromEndpoints: [{{matchLabels: {{app: a}}}}], {TO_PORT_80}}}]",
            "app=web in namespace default",
            "from app=a in namespace default to port 80/TCP",
        ),
        (False, "{}", "ingress: [{}]", "every pod in namespace default", "from nobody"),
        (True, "{}", "ingressDeny: [{fromEntities: [world]}]", "every pod", "from the world"),
        (True, "{}", "egress: [{toEntities: [cluster]}]", "every pod", "to the cluster"),
        (True, "{}", "egress: [{toEntities: [all, host]}]", "every pod", "to everyone or reserved:host"),
        (True, "{}", "ingress: [{fromEndpoints: [{}]}]", "every pod", "from every pod"),
        (
            True,
            "{matchExpressions: [{key: app, operator: NotIn, values: [a, b]}, "
            "{key: x, operator: DoesNotExist}]}",
            'egress: [{toPorts: [{ports: [{port: "80", endPort: 90, protocol: UDP}, {port: http}]}]}]',
            "app not a or b, no x",
            "to everyone on port 80-90/UDP, http/any protocol",
        ),
        (
            False,
            "{}",
            "egress: [{toEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.team: x}}]}]",
            "every pod in namespace default",
            "to every pod in namespaces with team=x",
        ),
    ],
)  # fmt: skip
def test_descriptions(clusterwide: bool, on: str, rule: str, subject: str, description: str) -> None:
    kind = "CiliumClusterwideNetworkPolicy" if clusterwide else "CiliumNetworkPolicy"
    (manifest,) = parse_manifests(HEAD.format(kind=kind, on=on, rule=rule))
    assert describe_subject(manifest.policy) == subject
    assert [describe_rule(found) for found in manifest.policy.rules()] == [description]


@pytest.mark.parametrize(
    ("on", "subject"),
    [("{}", "every node"), ("{matchLabels: {role: edge, zone: a}}", "nodes with role=edge, zone=a")],
)
def test_nodes(on: str, subject: str) -> None:
    text = HEAD.replace("endpointSelector", "nodeSelector")
    (manifest,) = parse_manifests(
        text.format(kind="CiliumClusterwideNetworkPolicy", on=on, rule="ingress: [{}]")
    )
    assert describe_subject(manifest.policy) == subject
