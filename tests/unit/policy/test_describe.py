# SPDX-License-Identifier: Apache-2.0
"""Rules and subjects in words."""

from __future__ import annotations

import pytest

from services.policy.describe import describe_action, describe_rule, describe_subject
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
        (
            True,
            "{}",
            'egress: [{toCIDR: [10.0.0.1, "0.0.0.0/0"]}]',
            "every pod",
            "to 10.0.0.1/32 outside the cluster or the world over IPv4",
        ),
        (
            True,
            "{}",
            'ingress: [{fromCIDRSet: [{cidr: "::/0", except: ["fd00::/8"]}, {cidrGroupRef: a}]}]',
            "every pod",
            "from the world over IPv6 except fd00::/8 or the CIDR group a",
        ),
        (
            True,
            "{}",
            "ingress: [{icmps: [{fields: [{type: Echo}, {type: 200, family: IPv6}]}]}]",
            "every pod",
            "from everyone to ICMP type 8 (EchoRequest), ICMPv6 type 200",
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


OWN = """
apiVersion: fimbria.io/v1
kind: Policy
metadata: {{name: web}}
spec: {{tier: admin, pods: {{}}, rules: [{{direction: egress, {rule}}}]}}
"""


@pytest.mark.parametrize(
    ("rule", "action", "description"),
    [
        (
            "action: pass, "
            "peers: [{cidr: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16], byAddress: true}}]",
            "pass",
            "to whoever has an address in 10.0.0.0/8 except 10.1.0.0/16 and 10.2.0.0/16",
        ),
        (
            "action: deny, ports: [{protocol: TCP}, {protocol: ICMP}, {protocol: UDP, port: dns}]",
            "deny",
            "to everyone on port any/TCP, dns/UDP or ICMP of every type",
        ),
        (
            'action: allow, ports: [{protocol: ICMPv6, port: "133", endPort: 137}]',
            "allow",
            "to everyone on ICMPv6 types 133-137",
        ),
    ],
)
def test_actions_addresses_and_types(rule: str, action: str, description: str) -> None:
    (manifest,) = parse_manifests(OWN.format(rule=rule))
    (found,) = manifest.policy.rules()
    assert (describe_action(found), describe_rule(found)) == (action, description)


def test_a_cidr_group_is_about_nobody() -> None:
    (manifest,) = parse_manifests(
        "{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {name: a}, spec: {externalCIDRs: []}}"
    )
    assert describe_subject(manifest.policy) == ""
