# SPDX-License-Identifier: Apache-2.0
"""The own kind, Policy: what each way to write it means, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.policy.manifest import ManifestError, parse_manifests
from services.policy.rules import (
    CidrGroupPeer,
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
from services.policy.selector import (
    ANY_SOURCE,
    EVERYTHING,
    K8S,
    NAMESPACE_KEY,
    RESERVED,
    Selector,
    equals,
    exists,
)

HOME = equals(K8S, NAMESPACE_KEY, "shop")
RULE = "spec.rules[0]"


def manifest(spec: Any, namespace: str = "") -> str:
    metadata = {"name": "web", **({"namespace": namespace} if namespace else {})}
    return json.dumps({"apiVersion": "fimbria.io/v1", "kind": "Policy", "metadata": metadata, "spec": spec})


def read(spec: dict[str, Any], namespace: str = "") -> Policy:
    (parsed,) = parse_manifests(manifest({} if spec is None else spec, namespace))
    return parsed.policy


def refused(spec: Any, namespace: str = "") -> dict[str, str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifests(manifest(spec, namespace))
    return {v.field: v.description for v in caught.value.violations}


def rule(**fields: Any) -> dict[str, Any]:
    return {"pods": {}, "rules": [{"direction": "ingress", "action": "allow", **fields}]}


def test_without_a_namespace_it_is_about_the_cluster() -> None:
    everywhere = read({"pods": {}})
    assert str(everywhere.ref) == "Policy web"
    assert everywhere.specs[0].subject == EVERYTHING
    assert str(read({"pods": {}}, "shop").ref) == "Policy shop/web"
    assert read({"pods": {"matchLabels": {"app": "a"}}}, "shop").specs[0].subject == Selector.of(
        [HOME, equals(ANY_SOURCE, "app", "a")]
    )
    nodes = read({"nodes": {"matchLabels": {"role": "edge"}}}).specs[0]
    assert nodes.nodes
    assert nodes.subject == Selector((equals(ANY_SOURCE, "role", "edge"),))


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        (None, Tier.NORMAL),
        ("normal", Tier.NORMAL),
        ("TIER_NORMAL", Tier.NORMAL),
        ("TIER_UNSPECIFIED", Tier.NORMAL),
        ("admin", Tier.ADMIN),
        ("TIER_ADMIN", Tier.ADMIN),
        ("baseline", Tier.BASELINE),
    ],
)
def test_tiers(tier: str | None, expected: Tier) -> None:
    assert read({"pods": {}, "tier": tier}).tier is expected


def test_order_in_the_tiers_that_have_one() -> None:
    rules = [{"direction": d, "action": "deny"} for d in ("ingress", "egress", "ingress")]
    for tier in ("admin", "baseline"):
        policy = read({"pods": {}, "tier": tier, "priority": 9, "rules": rules})
        assert [(r.direction, r.order) for r in policy.rules()] == [
            (Direction.INGRESS, 9 << 16),
            (Direction.EGRESS, 9 << 16),
            (Direction.INGRESS, 9 << 16 | 1),
        ]
        assert policy.priority == 9
    assert [r.order for r in read({"pods": {}, "priority": 0, "rules": rules}).rules()] == [0, 0, 0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, (False, False)),
        ([], (False, False)),
        (["ingress"], (True, False)),
        (["DIRECTION_EGRESS", "ingress"], (True, True)),
    ],
)
def test_only_what_is_said_is_denied_by_default(given: Any, expected: tuple[bool, bool]) -> None:
    spec = rule() if given is None else {**rule(), "defaultDeny": given}
    assert read(spec).specs[0].default_deny == expected


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        (None, [EVERYTHING]),
        ([], [EVERYTHING]),
        ([{"pods": {}}], [Selector((HOME,))]),
        (
            [{"pods": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "x"}}}],
            [Selector((equals(K8S, NAMESPACE_KEY, "x"),))],
        ),
        ([{"entity": "host"}], [Selector((exists(RESERVED, "host"),))]),
        ([{"entity": "none"}], []),
        ([{"entity": "all"}, {"entity": "world-ipv6"}], [EVERYTHING, CidrPeer("::/0")]),
        ([{"cidr": {"cidr": "10.0.0.0/8"}}], [CidrPeer("10.0.0.0/8")]),
        (
            [{"cidr": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"], "byAddress": True}}],
            [CidrPeer("10.0.0.0/8", ("10.1.0.0/16",), by_address=True)],
        ),
        ([{"cidrGroup": "offices"}], [CidrGroupPeer("offices")]),
    ],
)
def test_peers(peers: Any, expected: list[Peer]) -> None:
    (found,) = read(rule(peers=peers), "shop").rules()
    assert list(found.peers) == expected


def test_peers_of_a_clusterwide_policy_are_pods() -> None:
    (found,) = read(rule(peers=[{"pods": {}}])).rules()
    assert found.peers == (Selector((exists(K8S, NAMESPACE_KEY),)),)


EACH = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


@pytest.mark.parametrize(
    ("port", "matches"),
    [
        ({"protocol": "TCP"}, [PortRange(Protocol.TCP)]),
        ({"protocol": "ANY"}, [PortRange(p) for p in EACH]),
        ({"protocol": "UDP", "port": "53"}, [PortRange(Protocol.UDP, 53, 53)]),
        ({"protocol": "UDP", "port": "53", "endPort": 0}, [PortRange(Protocol.UDP, 53, 53)]),
        ({"protocol": "ANY", "port": "1", "endPort": 9}, [PortRange(p, 1, 9) for p in EACH]),
        ({"protocol": "SCTP", "port": "HTTP"}, [PortName(Protocol.SCTP, "http")]),
        ({"protocol": "ANY", "port": "http"}, [PortName(Protocol.ANY, "http")]),
        ({"protocol": "ICMP"}, [PortRange(Protocol.ICMP)]),
        ({"protocol": "ICMP", "port": "8"}, [PortRange(Protocol.ICMP, 8, 8)]),
        ({"protocol": "ICMPv6", "port": "EchoRequest"}, [PortRange(Protocol.ICMPV6, 128, 128)]),
        ({"protocol": "ICMPv6", "port": "133", "endPort": 137}, [PortRange(Protocol.ICMPV6, 133, 137)]),
    ],
)
def test_ports(port: dict[str, Any], matches: list[PortMatch]) -> None:
    (found,) = read(rule(ports=[port])).rules()
    assert list(found.ports) == matches


@pytest.mark.parametrize(
    ("action", "deny", "passes"),
    [("allow", False, False), ("ACTION_DENY", True, False), ("pass", False, True)],
)
def test_actions(action: str, deny: bool, passes: bool) -> None:
    (found,) = read({**rule(action=action), "tier": "admin"}).rules()
    assert (found.deny, found.passes) == (deny, passes)


PORT = f"{RULE}.ports[0]"
PEER = f"{RULE}.peers[0]"


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        ({}, "spec", "got nothing, expected exactly one of pods, nodes"),
        ({"pods": {}, "nodes": {}}, "spec", "got pods and nodes"),
        ({"pods": {}, "tier": "Admin"}, "spec.tier", "one of normal, admin, baseline"),
        ({"pods": {}, "tier": 1}, "spec.tier", "one of normal, admin, baseline"),
        ({"pods": {}, "priority": 5}, "spec.priority", "no priority in the tier normal"),
        ({"pods": {}, "tier": "admin", "priority": 1001}, "spec.priority", "from 0 to 1000"),
        ({"pods": {}, "audit": "true"}, "spec.audit", "true or false"),
        ({"pods": {}, "defaultDeny": ["both"]}, "spec.defaultDeny[0]", "one of ingress, egress"),
        ({"pods": {}, "defaultDeny": ["egress", "DIRECTION_EGRESS"]}, "spec.defaultDeny[1]", "once"),
        ({"pods": {}, "defaultDeny": ["egress"], "tier": "admin"}, "spec.defaultDeny", "of the tier normal"),
        ({"pods": {}, "default_deny": []}, "spec.default_deny", "no such field"),
        ({"pods": {"match_labels": {}}}, "spec.pods.match_labels", "no such field"),
        (
            {"pods": {"matchLabels": {"docker:a": "b"}}},
            'spec.pods.matchLabels["docker:a"]',
            "one of the sources",
        ),
        ({**rule(), "rules": rule()["rules"] * 1001}, "spec.rules", "got 1001, expected at most 1000 rules"),
        (rule(direction=None), f"{RULE}.direction", "missing"),
        (rule(direction="in"), f"{RULE}.direction", "one of ingress, egress"),
        (rule(action="pass"), f"{RULE}.action", "one of allow, deny; pass is for the tier admin"),
        ({**rule(action="pass"), "tier": "baseline"}, f"{RULE}.action", "pass is for the tier admin"),
        (rule(action="ACTION_UNSPECIFIED"), f"{RULE}.action", "one of allow, deny"),
        (rule(name="x"), f"{RULE}.name", "no such field"),
        (rule(peers=[{}]), PEER, "got nothing"),
        (rule(peers=[{"entity": "world", "pods": {}}]), PEER, "got pods and entity"),
        (rule(peers=[{"entity": "mars"}]), f"{PEER}.entity", "an entity"),
        (rule(peers=[{"cidr": "10.0.0.0/8"}]), f"{PEER}.cidr", "an object"),
        (rule(peers=[{"cidr": {}}]), f"{PEER}.cidr.cidr", "missing"),
        (rule(peers=[{"cidr": {"cidr": "10.0.0.1/8"}}]), f"{PEER}.cidr.cidr", "10.0.0.0/8"),
        (rule(peers=[{"cidr": {"cidr": "::/0", "byAddress": 1}}]), f"{PEER}.cidr.byAddress", "true or false"),
        (rule(peers=[{"cidr": {"cidr": "::/0", "by_address": True}}]), f"{PEER}.cidr.by_address", "no such"),
        (
            rule(peers=[{"cidr": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]),
            f"{PEER}.cidr.except[0]",
            "not all of it",
        ),
        (rule(peers=[{"cidrGroup": "A"}]), f"{PEER}.cidrGroup", "an object name"),
        (rule(ports=[{}]), f"{PORT}.protocol", "missing"),
        (rule(ports=[{"protocol": "tcp"}]), f"{PORT}.protocol", "one of TCP, UDP, SCTP, ANY, ICMP, ICMPv6"),
        (rule(ports=[{"protocol": "TCP", "port": 80}]), f"{PORT}.port", "quote it"),
        (rule(ports=[{"protocol": "TCP", "port": "0"}]), f"{PORT}.port", "leave it out for every port"),
        (rule(ports=[{"protocol": "TCP", "port": "080"}]), f"{PORT}.port", "without leading zeros"),
        (rule(ports=[{"protocol": "TCP", "port": ""}]), f"{PORT}.port", "a port number from 1"),
        (rule(ports=[{"protocol": "TCP", "endPort": 9}]), f"{PORT}.endPort", "without a port"),
        (rule(ports=[{"protocol": "TCP", "port": "9", "endPort": 8}]), f"{PORT}.endPort", "from 9 to 65535"),
        (rule(ports=[{"protocol": "TCP", "port": "a", "endPort": 8}]), f"{PORT}.endPort", "named port a"),
        (rule(ports=[{"protocol": "ICMP", "port": "256"}]), f"{PORT}.port", "from 0 to 255"),
        (rule(ports=[{"protocol": "ICMP", "port": "8", "endPort": 256}]), f"{PORT}.endPort", "from 8 to 255"),
        (
            {"nodes": {}, "rules": rule(ports=[{"protocol": "TCP", "port": "ssh"}])["rules"]},
            f"{PORT}.port",
            "nodes declare no port names",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_path_value_and_expectation(
    spec: dict[str, Any], field: str, said: str
) -> None:
    found = refused(spec)
    assert list(found) == [field]
    assert said in found[field]


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        ({"nodes": {}}, "spec.nodes", "only a cluster-wide policy selects nodes"),
        (
            {"pods": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "other"}}},
            "spec.pods",
            "the policy's own, shop",
        ),
    ],
)
def test_a_policy_with_a_namespace_is_about_its_pods(spec: dict[str, Any], field: str, said: str) -> None:
    found = refused(spec, "shop")
    assert list(found) == [field]
    assert said in found[field]
