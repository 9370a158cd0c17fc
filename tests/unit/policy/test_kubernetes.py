# SPDX-License-Identifier: Apache-2.0
"""Kubernetes NetworkPolicy: what each way to write it means, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.policy.manifest import ManifestError, parse_manifests
from services.policy.rules import CidrPeer, Direction, PortName, PortRange, Protocol, RuleSpec
from services.policy.selector import EVERYTHING, K8S, NAMESPACE_KEY, Selector, equals, exists

NAMESPACE_LABEL = "io.cilium.k8s.namespace.labels."


def manifest(spec: Any, **metadata: Any) -> str:
    return json.dumps(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "web", "namespace": "shop", **metadata},
            "spec": spec,
        }
    )


def read(spec: dict[str, Any]) -> RuleSpec:
    (parsed,) = parse_manifests(manifest(spec))
    return parsed.policy.specs[0]


def refused(spec: Any) -> dict[str, str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifests(manifest(spec))
    assert all(v.subject == "NetworkPolicy shop/web" for v in caught.value.violations)
    return {v.field: v.description for v in caught.value.violations}


@pytest.mark.parametrize(
    ("spec", "default_deny"),
    [
        ({"podSelector": {}}, (True, False)),
        ({"podSelector": {}, "policyTypes": []}, (True, False)),
        ({"podSelector": {}, "egress": []}, (True, False)),
        ({"podSelector": {}, "egress": [{}]}, (True, True)),
        ({"podSelector": {}, "policyTypes": ["Egress"]}, (False, True)),
        ({"podSelector": {}, "policyTypes": ["Egress", "Ingress"]}, (True, True)),
        ({"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{}]}, (True, False)),
    ],
)
def test_policy_types_say_which_directions_deny(
    spec: dict[str, Any], default_deny: tuple[bool, bool]
) -> None:
    assert read(spec).default_deny == default_deny


def test_rules_of_a_direction_that_policy_types_leave_out_have_no_effect() -> None:
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}], "egress": [{}]}
    assert [rule.direction for rule in read(spec).rules] == [Direction.INGRESS]


def test_a_policy_selects_pods_of_its_own_namespace() -> None:
    home = equals(K8S, NAMESPACE_KEY, "shop")
    assert read({"podSelector": {}}).subject == Selector((home,))
    assert read({}).subject == Selector((home,))
    chosen = read({"podSelector": {"matchLabels": {"app": "web"}}}).subject
    assert chosen == Selector.of([home, equals(K8S, "app", "web")])


@pytest.mark.parametrize("rule", [{}, {"from": []}, {"from": None}])
def test_no_peers_are_all_peers(rule: dict[str, Any]) -> None:
    (found,) = read({"podSelector": {}, "ingress": [rule]}).rules
    assert found.peers == (EVERYTHING,)
    assert found.ports == ()


@pytest.mark.parametrize("rules", [[], None])
def test_no_rules_allow_nothing(rules: Any) -> None:
    found = read({"podSelector": {}, "ingress": rules})
    assert (found.rules, found.default_deny) == ((), (True, False))


@pytest.mark.parametrize(
    ("peer", "selector"),
    [
        (
            {"podSelector": {"matchLabels": {"app": "a"}}},
            Selector.of([equals(K8S, NAMESPACE_KEY, "shop"), equals(K8S, "app", "a")]),
        ),
        ({"podSelector": {}}, Selector.of([equals(K8S, NAMESPACE_KEY, "shop")])),
        ({"namespaceSelector": {}}, Selector.of([exists(K8S, NAMESPACE_KEY)])),
        (
            {
                "namespaceSelector": {"matchLabels": {"team": "x"}},
                "podSelector": {"matchLabels": {"app": "a"}},
            },
            Selector.of(
                [
                    exists(K8S, NAMESPACE_KEY),
                    equals(K8S, NAMESPACE_LABEL + "team", "x"),
                    equals(K8S, "app", "a"),
                ]
            ),
        ),
    ],
)  # fmt: skip
def test_peers(peer: dict[str, Any], selector: Selector) -> None:
    (rule,) = read({"podSelector": {}, "egress": [{"to": [peer]}]}).rules
    assert rule.direction is Direction.EGRESS
    assert rule.peers == (selector,)


@pytest.mark.parametrize(
    ("block", "peer"),
    [
        ({"cidr": "10.0.0.0/8"}, CidrPeer("10.0.0.0/8", by_address=True)),
        ({"cidr": "::/0", "except": []}, CidrPeer("::/0", by_address=True)),
        (
            {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.0.0.0/9"]},
            CidrPeer("10.0.0.0/8", ("10.1.0.0/16", "10.0.0.0/9"), by_address=True),
        ),
    ],
)
def test_an_ip_block_is_whoever_has_the_address(block: dict[str, Any], peer: CidrPeer) -> None:
    for direction, key in (("ingress", "from"), ("egress", "to")):
        spec = {"podSelector": {}, direction: [{key: [{"ipBlock": block}, {"podSelector": {}}]}]}
        (rule,) = read(spec).rules
        assert rule.peers == (peer, Selector((equals(K8S, NAMESPACE_KEY, "shop"),)))


@pytest.mark.parametrize(
    ("port", "match"),
    [
        ({}, PortRange(Protocol.TCP)),
        ({"protocol": "UDP"}, PortRange(Protocol.UDP)),
        ({"port": 80}, PortRange(Protocol.TCP, 80, 80)),
        ({"protocol": "SCTP", "port": 7777}, PortRange(Protocol.SCTP, 7777, 7777)),
        ({"port": 8000, "endPort": 8080}, PortRange(Protocol.TCP, 8000, 8080)),
        ({"port": 8000, "endPort": 8000}, PortRange(Protocol.TCP, 8000, 8000)),
        ({"port": "http"}, PortName(Protocol.TCP, "http")),
        ({"port": "dns", "protocol": "UDP"}, PortName(Protocol.UDP, "dns")),
    ],
)
def test_ports(port: dict[str, Any], match: PortRange | PortName) -> None:
    (rule,) = read({"podSelector": {}, "ingress": [{"ports": [port]}]}).rules
    assert rule.ports == (match,)


def ingress(**rule: Any) -> dict[str, Any]:
    return {"podSelector": {}, "ingress": [rule]}


IN = "spec.ingress[0]"
BLOCK = f"{IN}.from[0].ipBlock"
MATCH = f"{IN}.from[0].podSelector"


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        (ingress(**{"from": [{"ipBlock": {}}]}), f"{BLOCK}.cidr", "missing"),
        (ingress(**{"from": [{"ipBlock": {"cidr": ""}}]}), f"{BLOCK}.cidr", "a CIDR, for example"),
        (ingress(**{"from": [{"ipBlock": {"cidr": "10.1.2.3/8"}}]}), f"{BLOCK}.cidr", "10.0.0.0/8"),
        (ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.1"}}]}), f"{BLOCK}.cidr", "10.0.0.1/32"),
        (ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "x": 1}}]}), f"{BLOCK}.x", "no such field"),
        (
            ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}),
            BLOCK,
            "got ipBlock beside a selector",
        ),
        (
            ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "namespaceSelector": {}}]}),
            BLOCK,
            "got ipBlock beside a selector",
        ),
        (
            ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}),
            f"{BLOCK}.except[0]",
            "not all of it",
        ),
        (
            ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["0.0.0.0/0"]}}]}),
            f"{BLOCK}.except[0]",
            "a CIDR within 10.0.0.0/8",
        ),
        (
            ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": "10.1.0.0/16"}}]}),
            f"{BLOCK}.except",
            "a list, not a string",
        ),
        (ingress(**{"from": [{}]}), f"{IN}.from[0]", "podSelector, namespaceSelector or both"),
        (ingress(**{"from": [{"podSelector": None}]}), f"{IN}.from[0]", "podSelector, namespaceSelector"),
        (ingress(**{"from": {}}), f"{IN}.from", "a list, not an object"),
        (ingress(**{"from": ["a"]}), f"{IN}.from[0]", "an object, not a string"),
        (ingress(**{"from": [{"pods": {}}]}), f"{IN}.from[0].pods", "no such field"),
        (ingress(to=[]), f"{IN}.to", "no such field"),
        (ingress(ports=[{"port": 0}]), f"{IN}.ports[0].port", "got 0, expected a port name or a port"),
        (ingress(ports=[{"port": 70000}]), f"{IN}.ports[0].port", "got 70000"),
        (ingress(ports=[{"port": -1}]), f"{IN}.ports[0].port", "got -1"),
        (ingress(ports=[{"port": 80.5}]), f"{IN}.ports[0].port", "got 80.5"),
        (ingress(ports=[{"port": True}]), f"{IN}.ports[0].port", "got true"),
        (ingress(ports=[{"port": "80"}]), f"{IN}.ports[0].port", "at least one letter"),
        (ingress(ports=[{"port": "a-name-too-long-x"}]), f"{IN}.ports[0].port", "at most 15"),
        (ingress(ports=[{"port": "Http"}]), f"{IN}.ports[0].port", "a-z"),
        (ingress(ports=[{"port": "a--b"}]), f"{IN}.ports[0].port", "single '-'"),
        (ingress(ports=[{"endPort": 80}]), f"{IN}.ports[0].endPort", "without a port"),
        (ingress(ports=[{"port": 80, "endPort": 79}]), f"{IN}.ports[0].endPort", "from 80 to 65535"),
        (ingress(ports=[{"port": 80, "endPort": 70000}]), f"{IN}.ports[0].endPort", "got 70000"),
        (ingress(ports=[{"port": "http", "endPort": 80}]), f"{IN}.ports[0].endPort", "named port http"),
        (ingress(ports=[{"protocol": "tcp"}]), f"{IN}.ports[0].protocol", "TCP, UDP or SCTP"),
        (ingress(ports=[{"protocol": "ICMP"}]), f"{IN}.ports[0].protocol", "TCP, UDP or SCTP"),
        (ingress(ports=[{"name": "x"}]), f"{IN}.ports[0].name", "no such field"),
        ({"podSelector": {}, "policyTypes": ["ingress"]}, "spec.policyTypes[0]", "Ingress or Egress"),
        ({"podSelector": {}, "policyTypes": ["Ingress", "Ingress"]}, "spec.policyTypes[1]", "once"),
        ({"podSelector": {}, "priority": 1}, "spec.priority", "no such field"),
        ({"podSelector": []}, "spec.podSelector", "an object, not a list"),
        ({"podSelector": {"app": "web"}}, "spec.podSelector.app", "no such field"),
        (
            ingress(**{"from": [{"podSelector": {"matchLabels": {"app": 1}}}]}),
            f"{MATCH}.matchLabels.app",
            "quote it",
        ),
        (
            ingress(**{"from": [{"podSelector": {"matchLabels": {"-app": "a"}}}]}),
            f"{MATCH}.matchLabels.-app",
            "a label key",
        ),
        (
            ingress(**{"from": [{"podSelector": {"matchLabels": {"app": "no spaces"}}}]}),
            f"{MATCH}.matchLabels.app",
            "a label value",
        ),
        (
            ingress(**{"from": [{"podSelector": {"matchLabels": {"BAD_/app": "a"}}}]}),
            f'{MATCH}.matchLabels["BAD_/app"]',
            "a DNS name",
        ),
        (
            ingress(**{"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt"}]}}]}),
            f"{MATCH}.matchExpressions[0].operator",
            "In, NotIn, Exists, DoesNotExist",
        ),
        (
            ingress(**{"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]}),
            f"{MATCH}.matchExpressions[0].values",
            "at least one value",
        ),
        (
            ingress(
                **{
                    "from": [
                        {
                            "podSelector": {
                                "matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]
                            }
                        }
                    ]
                }
            ),
            f"{MATCH}.matchExpressions[0].values",
            "no values",
        ),
        (
            ingress(**{"from": [{"podSelector": {"matchExpressions": [{"operator": "Exists"}]}}]}),
            f"{MATCH}.matchExpressions[0].key",
            "missing",
        ),
    ],
)
def test_what_is_wrong_is_named_by_path_value_and_expectation(
    spec: dict[str, Any], field: str, said: str
) -> None:
    found = refused(spec)
    assert list(found) == [field]
    assert said in found[field]


def test_everything_that_is_wrong_is_told_at_once() -> None:
    found = refused(
        {
            "podSelector": {"matchLabels": {"app": True}},
            "ingress": [{"from": [{"ipBlock": {}}], "ports": [{"port": 0}, {"port": 70000}]}],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"x": "y z"}}}]}],
        }
    )
    assert list(found) == [
        "spec.podSelector.matchLabels.app",
        "spec.ingress[0].from[0].ipBlock.cidr",
        "spec.ingress[0].ports[0].port",
        "spec.ingress[0].ports[1].port",
        "spec.egress[0].to[0].podSelector.matchLabels.x",
    ]
