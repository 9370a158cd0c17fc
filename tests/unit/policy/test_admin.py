# SPDX-License-Identifier: Apache-2.0
"""AdminNetworkPolicy and BaselineAdminNetworkPolicy: what each way to write it means, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.policy.manifest import ManifestError, parse_manifests
from services.policy.rules import (
    CidrPeer,
    Direction,
    Peer,
    Policy,
    PortMatch,
    PortName,
    PortRange,
    Protocol,
    Tier,
)
from services.policy.selector import K8S, NAMESPACE_KEY, Selector, equals, exists

NAMESPACE_LABEL = "io.cilium.k8s.namespace.labels."
ANYWHERE = exists(K8S, NAMESPACE_KEY)
IN, OUT = "spec.ingress[0]", "spec.egress[0]"


def manifest(spec: Any, *, baseline: bool = False, name: str | None = None) -> str:
    if not baseline and isinstance(spec, dict):
        spec = {"priority": 10, **spec}
    return json.dumps(
        {
            "apiVersion": "policy.networking.k8s.io/v1alpha1",
            "kind": "BaselineAdminNetworkPolicy" if baseline else "AdminNetworkPolicy",
            "metadata": {"name": name or ("default" if baseline else "cluster-rules")},
            "spec": spec,
        }
    )


def read(spec: dict[str, Any], *, baseline: bool = False) -> Policy:
    (parsed,) = parse_manifests(manifest({"subject": {"namespaces": {}}, **spec}, baseline=baseline))
    return parsed.policy


def refused(spec: Any, *, baseline: bool = False, name: str | None = None) -> dict[str, str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifests(manifest(spec, baseline=baseline, name=name))
    return {v.field: v.description for v in caught.value.violations}


def test_tier_priority_and_order() -> None:
    rule = {"action": "Allow", "from": [{"namespaces": {}}]}
    policy = read(
        {"priority": 1000, "ingress": [rule, rule], "egress": [{"action": "Deny", "to": [{"pods": PODS}]}]}
    )
    assert (policy.tier, policy.priority, str(policy.ref)) == (
        Tier.ADMIN,
        1000,
        "AdminNetworkPolicy cluster-rules",
    )
    assert [(r.direction, r.order) for r in policy.rules()] == [
        (Direction.INGRESS, 1000 << 16),
        (Direction.INGRESS, 1000 << 16 | 1),
        (Direction.EGRESS, 1000 << 16),
    ]
    baseline = read({"ingress": [rule, rule]}, baseline=True)
    assert (baseline.tier, baseline.priority) == (Tier.BASELINE, 0)
    assert [r.order for r in baseline.rules()] == [0, 1]
    assert policy.specs[0].default_deny == baseline.specs[0].default_deny == (False, False)


PODS: dict[str, Any] = {"namespaceSelector": {}, "podSelector": {}}


@pytest.mark.parametrize(
    ("action", "deny", "passes"), [("Allow", False, False), ("Deny", True, False), ("Pass", False, True)]
)
def test_actions(action: str, deny: bool, passes: bool) -> None:
    (rule,) = read({"ingress": [{"action": action, "from": [{"namespaces": {}}]}]}).rules()
    assert (rule.deny, rule.passes) == (deny, passes)


@pytest.mark.parametrize(
    ("subject", "selector"),
    [
        ({"namespaces": {}}, Selector((ANYWHERE,))),
        (
            {"namespaces": {"matchLabels": {"team": "x"}}},
            Selector.of([ANYWHERE, equals(K8S, NAMESPACE_LABEL + "team", "x")]),
        ),
        ({"pods": PODS}, Selector((ANYWHERE,))),
        (
            {
                "pods": {
                    "namespaceSelector": {"matchLabels": {"team": "x"}},
                    "podSelector": {"matchLabels": {"app": "a"}},
                }
            },
            Selector.of(
                [ANYWHERE, equals(K8S, NAMESPACE_LABEL + "team", "x"), equals(K8S, "app", "a")],
            ),
        ),
    ],
)
def test_subjects_and_peers_are_pods(subject: dict[str, Any], selector: Selector) -> None:
    policy = read({"subject": subject, "ingress": [{"action": "Deny", "from": [subject]}]})
    assert policy.specs[0].subject == selector
    assert not policy.specs[0].nodes
    (rule,) = policy.rules()
    assert rule.peers == (selector,)
    assert rule.ports == ()


@pytest.mark.parametrize(
    ("to", "peers"),
    [
        (
            [{"networks": ["10.0.0.0/8", "fd00::/8"]}],
            [CidrPeer("10.0.0.0/8", by_address=True), CidrPeer("fd00::/8", by_address=True)],
        ),
        (
            [{"namespaces": {}}, {"networks": ["0.0.0.0/0"]}],
            [Selector((ANYWHERE,)), CidrPeer("0.0.0.0/0", by_address=True)],
        ),
    ],
)
def test_networks_are_whoever_has_the_address(to: list[Any], peers: list[Peer]) -> None:
    (rule,) = read({"egress": [{"action": "Deny", "to": to}]}).rules()
    assert list(rule.peers) == peers


@pytest.mark.parametrize(
    ("port", "match"),
    [
        ({"portNumber": {"protocol": "UDP", "port": 53}}, PortRange(Protocol.UDP, 53, 53)),
        ({"portNumber": {"port": 53}}, PortRange(Protocol.TCP, 53, 53)),
        ({"portRange": {"start": 1, "end": 65535}}, PortRange(Protocol.TCP, 1, 65535)),
        ({"portRange": {"protocol": "SCTP", "start": 7, "end": 9}}, PortRange(Protocol.SCTP, 7, 9)),
        ({"namedPort": "http"}, PortName(Protocol.ANY, "http")),
    ],
)
def test_ports(port: dict[str, Any], match: PortMatch) -> None:
    rule = {"name": "a rule", "action": "Allow", "to": [{"namespaces": {}}], "ports": [port]}
    (found,) = read({"egress": [rule]}).rules()
    assert found.ports == (match,)


def ingress(**rule: Any) -> dict[str, Any]:
    return {
        "subject": {"namespaces": {}},
        "ingress": [{"action": "Allow", "from": [{"namespaces": {}}], **rule}],
    }


def egress(**rule: Any) -> dict[str, Any]:
    return {
        "subject": {"namespaces": {}},
        "egress": [{"action": "Allow", "to": [{"namespaces": {}}], **rule}],
    }


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        ({}, "spec.subject", "missing"),
        ({"subject": {}}, "spec.subject", "got nothing, expected exactly one of namespaces, pods"),
        ({"subject": {"namespaces": {}, "pods": PODS}}, "spec.subject", "got namespaces and pods"),
        ({"subject": {"pods": {"podSelector": {}}}}, "spec.subject.pods.namespaceSelector", "missing"),
        ({"subject": {"pods": {"namespaceSelector": {}}}}, "spec.subject.pods.podSelector", "missing"),
        ({"subject": {"namespaces": {}}, "priority": 1001}, "spec.priority", "from 0 to 1000"),
        ({"subject": {"namespaces": {}}, "priority": -1}, "spec.priority", "from 0 to 1000"),
        ({"subject": {"namespaces": {}}, "priority": "1"}, "spec.priority", "from 0 to 1000"),
        ({"subject": {"namespaces": {}}, "priority": None}, "spec.priority", "missing"),
        ({"subject": {"namespaces": {}}, "tier": 1}, "spec.tier", "no such field"),
        (ingress(action="allow"), f"{IN}.action", "one of Allow, Deny, Pass"),
        (ingress(action=None), f"{IN}.action", "missing"),
        (ingress(name="x" * 101), f"{IN}.name", "at most 100 characters"),
        (ingress(name=5), f"{IN}.name", "quote it"),
        (ingress(to=[]), f"{IN}.to", "no such field"),
        (ingress(**{"from": []}), f"{IN}.from", "got 0, expected 1 to 100 peers"),
        (ingress(**{"from": None}), f"{IN}.from", "missing"),
        (ingress(**{"from": [{"namespaces": {}}] * 101}), f"{IN}.from", "got 101, expected 1 to 100 peers"),
        (ingress(**{"from": [{}]}), f"{IN}.from[0]", "got nothing"),
        (egress(to=[{"networks": []}]), f"{OUT}.to[0].networks", "got 0, expected 1 to 25 networks"),
        (egress(to=[{"networks": ["10.0.0.1/8"]}]), f"{OUT}.to[0].networks[0]", "10.0.0.0/8"),
        (egress(to=[{"networks": ["10.0.0.0/8"] * 2}]), f"{OUT}.to[0].networks[1]", "each network once"),
        (
            egress(to=[{"networks": [f"10.{n}.0.0/16" for n in range(26)]}]),
            f"{OUT}.to[0].networks",
            "got 26, expected 1 to 25 networks",
        ),
        (
            egress(to=[{"networks": ["10.0.0.0/8"], "namespaces": {}}]),
            f"{OUT}.to[0]",
            "got namespaces and networks",
        ),
        (egress(ports=[]), f"{OUT}.ports", "got 0, expected 1 to 100 ports"),
        (egress(ports=[{}]), f"{OUT}.ports[0]", "got nothing"),
        (egress(ports=[{"portNumber": {}}]), f"{OUT}.ports[0].portNumber.port", "missing"),
        (
            egress(ports=[{"portNumber": {"port": 0}}]),
            f"{OUT}.ports[0].portNumber.port",
            "from 1 to 65535",
        ),
        (
            egress(ports=[{"portNumber": {"port": 1, "protocol": "ICMP"}}]),
            f"{OUT}.ports[0].portNumber.protocol",
            "TCP, UDP or SCTP",
        ),
        (egress(ports=[{"portRange": {"start": 1}}]), f"{OUT}.ports[0].portRange.end", "missing"),
        (
            egress(ports=[{"portRange": {"start": 9, "end": 9}}]),
            f"{OUT}.ports[0].portRange",
            "a start below the end",
        ),
        (egress(ports=[{"namedPort": "Http"}]), f"{OUT}.ports[0].namedPort", "a-z"),
        (
            egress(to=[{"networks": ["10.0.0.0/8"]}], ports=[{"namedPort": "http"}]),
            f"{OUT}.ports[0]",
            "no named port beside networks",
        ),
        (
            {"subject": {"namespaces": {}}, "ingress": ingress()["ingress"] * 101},
            "spec.ingress",
            "got 101, expected at most 100 rules",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_path_value_and_expectation(
    spec: dict[str, Any], field: str, said: str
) -> None:
    found = refused(spec)
    assert list(found) == [field]
    assert said in found[field]


@pytest.mark.parametrize("peer", ["nodes", "domainNames"])
def test_what_is_not_supported_yet_is_refused_by_its_path(peer: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifests(manifest(egress(to=[{peer: {} if peer == "nodes" else ["a.b"]}])))
    assert [v.field for v in caught.value.violations] == [f"{OUT}.to[0].{peer}"]
    assert caught.value.unsupported_only
    # They are peers of egress rules only.
    assert "no such field" in refused(ingress(**{"from": [{peer: {}}]}))[f"{IN}.from[0].{peer}"]


def test_what_the_baseline_does_not_have() -> None:
    found = refused({**ingress(action="Pass"), "priority": 1}, baseline=True)
    assert "no such field" in found.pop("spec.priority")
    assert "one of Allow, Deny" in found.pop(f"{IN}.action")
    assert not found
    assert "default: there is one" in refused(ingress(), baseline=True, name="other")["metadata.name"]
