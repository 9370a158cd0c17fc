# SPDX-License-Identifier: Apache-2.0
"""CiliumNetworkPolicy and its clusterwide kind: what each way to write it means, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.policy.manifest import ManifestError, load_stored_manifest, parse_manifests
from services.policy.rules import CidrGroupPeer, CidrPeer, Peer, PortName, PortRange, Protocol, RuleSpec
from services.policy.selector import (
    ANY_SOURCE,
    EVERYTHING,
    K8S,
    NAMESPACE_KEY,
    RESERVED,
    Labels,
    Operator,
    Requirement,
    Selector,
    equals,
    exists,
)

HOME = equals(K8S, NAMESPACE_KEY, "shop")
IN = "spec.ingress[0]"


def manifest(spec: Any, *, clusterwide: bool = False) -> str:
    metadata = {"name": "web"} if clusterwide else {"name": "web", "namespace": "shop"}
    kind = "CiliumClusterwideNetworkPolicy" if clusterwide else "CiliumNetworkPolicy"
    return json.dumps({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec})


def read(spec: dict[str, Any], *, clusterwide: bool = False) -> RuleSpec:
    (parsed,) = parse_manifests(manifest({"endpointSelector": {}, **spec}, clusterwide=clusterwide))
    return parsed.policy.specs[0]


def refused(spec: Any, *, clusterwide: bool = False) -> dict[str, str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifests(manifest(spec, clusterwide=clusterwide))
    return {v.field: v.description for v in caught.value.violations}


@pytest.mark.parametrize(
    ("spec", "default_deny"),
    [
        ({}, (False, False)),
        ({"ingress": []}, (False, False)),
        ({"ingress": [{}]}, (True, False)),
        ({"egress": [{}]}, (False, True)),
        ({"ingressDeny": [{"fromEntities": ["world"]}]}, (True, False)),
        ({"egressDeny": [{"toEntities": ["world"]}]}, (False, True)),
        ({"ingress": [{}], "enableDefaultDeny": {"ingress": False}}, (False, False)),
        ({"enableDefaultDeny": {"egress": True}}, (False, True)),
        ({"ingress": [{}], "enableDefaultDeny": {"egress": True}}, (True, True)),
    ],
)
def test_which_directions_deny_by_default(spec: dict[str, Any], default_deny: tuple[bool, bool]) -> None:
    assert read(spec).default_deny == default_deny


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"fromEndpoints": []},
        {"fromEntities": []},
        {"fromEndpoints": [], "fromEntities": ["all"]},
        {"fromEntities": ["none"]},
        {"fromEndpoints": [], "toPorts": [{"ports": [{"port": "80"}]}]},
        {"fromEndpoints": None},
        {"fromCIDR": []},
        {"fromCIDRSet": []},
        {"fromCIDRSet": [], "fromCIDR": ["10.0.0.0/8"]},
        {"fromCIDR": [], "icmps": [{"fields": [{"type": 8}]}]},
        {"icmps": []},
    ],
)
def test_a_rule_that_matches_nobody(rule: dict[str, Any]) -> None:
    (found,) = read({"ingress": [rule]}).rules
    assert found.peers == ()


@pytest.mark.parametrize(
    "what",
    [
        {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]},
        {"icmps": [{"fields": [{"type": 8}]}]},
        {"icmps": [], "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]},
    ],
)
def test_ports_alone_match_everybody(what: dict[str, Any]) -> None:
    (rule,) = read({"ingress": [what]}).rules
    assert rule.peers == (EVERYTHING,)
    assert len(rule.ports) == 1


@pytest.mark.parametrize(
    ("rule", "peers"),
    [
        ({"toCIDR": ["10.0.0.0/8", "fd00::/8"]}, [CidrPeer("10.0.0.0/8"), CidrPeer("fd00::/8")]),
        ({"toCIDR": ["10.1.2.3", "fd00::1"]}, [CidrPeer("10.1.2.3/32"), CidrPeer("fd00::1/128")]),
        ({"toCIDR": ["0.0.0.0/0", "0.0.0.0/0"]}, [CidrPeer("0.0.0.0/0")]),
        (
            {"toCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.3.4/32"]}]},
            [CidrPeer("10.0.0.0/8", ("10.1.0.0/16", "10.2.3.4/32"))],
        ),
        (
            {"toCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}]},
            [CidrPeer("10.0.0.0/8", ("10.0.0.0/8",))],
        ),
        ({"toCIDRSet": [{"cidrGroupRef": "offices"}]}, [CidrGroupPeer("offices")]),
        (
            {"toCIDRSet": [{"cidrGroupRef": "offices", "except": ["10.1.0.0/16"]}, {"cidr": "::/0"}]},
            [CidrGroupPeer("offices", ("10.1.0.0/16",)), CidrPeer("::/0")],
        ),
        ({"toEntities": ["world-ipv4", "world-ipv6"]}, [CidrPeer("0.0.0.0/0"), CidrPeer("::/0")]),
    ],
)  # fmt: skip
def test_addresses_are_those_of_nobody_else(rule: dict[str, Any], peers: list[Peer]) -> None:
    (found,) = read({"egress": [rule]}).rules
    assert list(found.peers) == peers


@pytest.mark.parametrize(
    ("field", "protocol", "number"),
    [
        ({"type": 8}, Protocol.ICMP, 8),
        ({"type": "8", "family": "IPv4"}, Protocol.ICMP, 8),
        ({"type": "EchoRequest"}, Protocol.ICMP, 8),
        ({"type": "Echo"}, Protocol.ICMP, 8),
        ({"type": 0, "family": "IPv6"}, Protocol.ICMPV6, 0),
        ({"type": "EchoRequest", "family": "IPv6"}, Protocol.ICMPV6, 128),
        ({"type": "NeighborSolicitation", "family": "IPv6"}, Protocol.ICMPV6, 135),
        ({"type": "ExtendedEchoReply", "family": "IPv6"}, Protocol.ICMPV6, 161),
    ],
)
def test_icmp_types_are_ports(field: dict[str, Any], protocol: Protocol, number: int) -> None:
    (rule,) = read({"ingressDeny": [{"fromEntities": ["all"], "icmps": [{"fields": [field]}]}]}).rules
    assert rule.ports == (PortRange(protocol, number, number),)


def test_a_cidr_group_has_its_members_and_no_rules() -> None:
    for version in ("v2", "v2alpha1"):
        (parsed,) = parse_manifests(group(["10.0.0.0/8", "192.0.2.1", "10.0.0.0/8"], version))
        assert str(parsed.policy.ref) == "CiliumCIDRGroup offices"
        assert parsed.policy.specs == ()
        assert parsed.group == ("10.0.0.0/8", "192.0.2.1/32")
        assert load_stored_manifest(parsed.text) == parsed
    (parsed,) = parse_manifests(group([]))
    assert parsed.group == ()
    (parsed,) = parse_manifests(manifest({"endpointSelector": {}}))
    assert parsed.group is None


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ('"spec": {}', "spec.externalCIDRs", "missing"),
        ('"spec": {"externalCIDRs": [], "cidrs": []}', "spec.cidrs", "no such field"),
        ('"spec": {"externalCIDRs": ["10.0.0.1/8"]}', "spec.externalCIDRs[0]", "10.0.0.0/8"),
        ('"spec": {"externalCIDRs": "10.0.0.0/8"}', "spec.externalCIDRs", "a list, not a string"),
        ('"specs": []', "specs", "no such field"),
    ],
)
def test_a_cidr_group_that_is_wrong(text: str, field: str, said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifests(group([]).replace('"spec": {"externalCIDRs": []}', text))
    violation = caught.value.violations[0]
    assert violation.field == field
    assert said in violation.description


def group(members: list[str], version: str = "v2") -> str:
    head = {"apiVersion": f"cilium.io/{version}", "kind": "CiliumCIDRGroup", "metadata": {"name": "offices"}}
    return json.dumps({**head, "spec": {"externalCIDRs": members}})


@pytest.mark.parametrize(
    "key",
    [
        "k8s:io.cilium.k8s.policy.cluster",
        "io.cilium.k8s.policy.serviceaccount",
        "any:io.cilium.k8s.policy.serviceaccount",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name",
    ],
)
def test_keys_of_labels_that_the_cluster_sets(key: str) -> None:
    subject = read({"endpointSelector": {"matchLabels": {key: "value"}}}, clusterwide=True).subject
    source, _, bare = key.rpartition(":")
    assert subject == Selector((equals(source or ANY_SOURCE, bare, "value"),))


@pytest.mark.parametrize(
    ("endpoints", "selector"),
    [
        ({}, Selector((HOME,))),
        ({"matchLabels": {}}, Selector((HOME,))),
        ({"matchLabels": {"app": "a"}}, Selector.of([HOME, equals(ANY_SOURCE, "app", "a")])),
        ({"matchLabels": {"k8s:app": "a"}}, Selector.of([HOME, equals(K8S, "app", "a")])),
        ({"matchLabels": {"any:app": "a"}}, Selector.of([HOME, equals(ANY_SOURCE, "app", "a")])),
        (
            {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "x", "app": "a"}},
            Selector.of([equals(K8S, NAMESPACE_KEY, "x"), equals(ANY_SOURCE, "app", "a")]),
        ),
        (
            {"matchLabels": {"io.kubernetes.pod.namespace": "x"}},
            Selector.of([equals(ANY_SOURCE, NAMESPACE_KEY, "x")]),
        ),
        (
            {"matchExpressions": [{"key": "k8s:io.kubernetes.pod.namespace", "operator": "Exists"}]},
            Selector.of([exists(K8S, NAMESPACE_KEY)]),
        ),
        (
            {"matchLabels": {"io.cilium.k8s.namespace.labels.team": "x"}},
            Selector.of([equals(ANY_SOURCE, "io.cilium.k8s.namespace.labels.team", "x")]),
        ),
        ({"matchLabels": {"reserved:host": ""}}, Selector.of([equals(RESERVED, "host", "")])),
    ],
)
def test_peers_stay_in_the_namespace_unless_they_name_one(
    endpoints: dict[str, Any], selector: Selector
) -> None:
    (rule,) = read({"egress": [{"toEndpoints": [endpoints]}]}).rules
    assert rule.peers == (selector,)


@pytest.mark.parametrize(
    ("endpoints", "selector"),
    [
        ({}, Selector((exists(K8S, NAMESPACE_KEY),))),
        (
            {"matchLabels": {"app": "a"}},
            Selector.of([exists(K8S, NAMESPACE_KEY), equals(ANY_SOURCE, "app", "a")]),
        ),
    ],
)
def test_peers_of_a_clusterwide_policy_are_pods(endpoints: dict[str, Any], selector: Selector) -> None:
    (rule,) = read({"ingress": [{"fromEndpoints": [endpoints]}]}, clusterwide=True).rules
    assert rule.peers == (selector,)


def test_whom_a_policy_selects() -> None:
    chosen = {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["b", "a", "a"]}]}
    apps = Requirement(ANY_SOURCE, "app", Operator.NOT_IN, ("a", "b"))
    assert read({"endpointSelector": chosen}).subject == Selector.of([HOME, apps])
    assert read({"endpointSelector": chosen}, clusterwide=True).subject == Selector.of([apps])


HOST, WORLD, POD = (
    Labels([label]) for label in ("reserved:host", "reserved:world", "k8s:io.kubernetes.pod.namespace=x")
)


@pytest.mark.parametrize(
    ("entity", "matched"),
    [
        ("all", (True, True, True)),
        ("cluster", (True, False, True)),
        ("host", (True, False, False)),
        ("world", (False, True, False)),
        ("remote-node", (False, False, False)),
    ],
)
def test_entities(entity: str, matched: tuple[bool, bool, bool]) -> None:
    (rule,) = read({"ingress": [{"fromEntities": [entity]}]}).rules
    (peer,) = rule.peers
    assert isinstance(peer, Selector)
    assert tuple(peer.matches(labels) for labels in (HOST, WORLD, POD)) == matched
    assert peer.matches_everything == (entity == "all")


@pytest.mark.parametrize(
    ("port", "matches"),
    [
        ({"port": "80", "protocol": "TCP"}, [PortRange(Protocol.TCP, 80, 80)]),
        ({"port": "80", "endPort": 90, "protocol": "UDP"}, [PortRange(Protocol.UDP, 80, 90)]),
        ({"port": "80", "endPort": 0, "protocol": "UDP"}, [PortRange(Protocol.UDP, 80, 80)]),
        (
            {"port": "53"},
            [PortRange(p, 53, 53) for p in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)],
        ),
        ({"port": "0", "protocol": "UDP"}, [PortRange(Protocol.UDP, 0, 65535)]),
        (
            {"port": "0", "protocol": "ANY"},
            [PortRange(p, 0, 65535) for p in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)],
        ),
        ({"port": "0", "endPort": 0, "protocol": "TCP"}, [PortRange(Protocol.TCP, 0, 65535)]),
        ({"port": "HTTP", "protocol": "TCP"}, [PortName(Protocol.TCP, "http")]),
        ({"port": "http", "protocol": "ANY"}, [PortName(Protocol.ANY, "http")]),
    ],
)
def test_ports(port: dict[str, Any], matches: list[PortRange | PortName]) -> None:
    (rule,) = read({"ingress": [{"toPorts": [{"ports": [port]}]}]}).rules
    assert list(rule.ports) == matches


def test_specs_are_numbered_in_paths() -> None:
    text = json.dumps(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"endpointSelector": {}, "ingress": [{}]},
            "specs": [{"endpointSelector": {}, "egressDeny": [{"toEntities": ["world"]}, {}]}],
        }
    )
    (parsed,) = parse_manifests(text)
    paths = [rule.path for rule in parsed.policy.rules()]
    assert paths == ["spec.ingress[0]", "specs[0].egressDeny[0]", "specs[0].egressDeny[1]"]
    assert [rule.deny for rule in parsed.policy.rules()] == [False, True, True]


def ingress(**rule: Any) -> dict[str, Any]:
    return {"endpointSelector": {}, "ingress": [rule]}


def egress(**rule: Any) -> dict[str, Any]:
    return {"endpointSelector": {}, "egress": [rule]}


def ports(**port: Any) -> dict[str, Any]:
    return ingress(toPorts=[{"ports": [port]}])


PORT = f"{IN}.toPorts[0].ports[0]"
ICMP = f"{IN}.icmps[0].fields[0]"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (ingress(fromCIDRSet=[{"cidrGroupSelector": {}}]), f"{IN}.fromCIDRSet[0].cidrGroupSelector"),
        (ingress(fromRequires=[{}]), f"{IN}.fromRequires"),
        (ingress(fromGroups=[{}]), f"{IN}.fromGroups"),
        (ingress(fromNodes=[{}]), f"{IN}.fromNodes"),
        (ingress(fromEndpoints=[{}], authentication={"mode": "required"}), f"{IN}.authentication"),
        (egress(toFQDNs=[{"matchName": "a.b"}]), "spec.egress[0].toFQDNs"),
        (egress(toFQDNs=[{"matchPattern": "*.b"}]), "spec.egress[0].toFQDNs"),
        (egress(toServices=[{}]), "spec.egress[0].toServices"),
        (egress(toGroups=[{}]), "spec.egress[0].toGroups"),
        (egress(toRequires=[{}]), "spec.egress[0].toRequires"),
        (egress(toNodes=[{}]), "spec.egress[0].toNodes"),
        (
            ingress(toPorts=[{"ports": [{"port": "80"}], "rules": {"http": [{}]}}]),
            f"{IN}.toPorts[0].rules",
        ),
        (
            ingress(toPorts=[{"ports": [{"port": "443"}], "terminatingTLS": {}}]),
            f"{IN}.toPorts[0].terminatingTLS",
        ),
        (
            ingress(toPorts=[{"ports": [{"port": "443"}], "originatingTLS": {}}]),
            f"{IN}.toPorts[0].originatingTLS",
        ),
        (
            ingress(toPorts=[{"ports": [{"port": "443"}], "serverNames": ["a"]}]),
            f"{IN}.toPorts[0].serverNames",
        ),
        (
            ingress(toPorts=[{"ports": [{"port": "443"}], "listener": {}}]),
            f"{IN}.toPorts[0].listener",
        ),
        (ports(port="0", protocol="VRRP"), f"{PORT}.protocol"),
        (ports(port="0", protocol="IGMP"), f"{PORT}.protocol"),
        ({"endpointSelector": {}, "log": {"value": "x"}}, "spec.log"),
        (
            {"endpointSelector": {}, "ingressDeny": [{"fromNodes": [{}]}]},
            "spec.ingressDeny[0].fromNodes",
        ),
    ],
)  # fmt: skip
def test_what_is_not_supported_yet_is_refused_by_its_path(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifests(manifest(spec))
    (violation,) = caught.value.violations
    assert violation.field == field
    assert "not supported yet" in violation.description
    assert caught.value.unsupported_only


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        (ports(port=80), f"{PORT}.port", "quote it"),
        (ports(port="0", endPort=5), f"{PORT}.endPort", "every port"),
        (ports(port="080"), f"{PORT}.port", "without leading zeros"),
        (ports(port="00"), f"{PORT}.port", "without leading zeros"),
        (ports(port="70000"), f"{PORT}.port", 'got "70000"'),
        (ports(port="1" * 400), f"{PORT}.port", "from 1 to 65535"),
        (ports(port="-1"), f"{PORT}.port", "port number from 1"),
        (ports(port=""), f"{PORT}.port", "port number from 1"),
        (ports(port="a-name-too-long-x"), f"{PORT}.port", "at most 15"),
        (ports(protocol="TCP"), f"{PORT}.port", "missing"),
        (ports(port="80", protocol="tcp"), f"{PORT}.protocol", "TCP, UDP, SCTP or ANY"),
        (ports(port="80", endPort=79), f"{PORT}.endPort", "not below port"),
        (ports(port="80", endPort="90"), f"{PORT}.endPort", "a number from 80"),
        (ports(port="http", endPort=90), f"{PORT}.endPort", "named port http"),
        (ports(port="80", name="x"), f"{PORT}.name", "no such field"),
        (ingress(toPorts=[{}]), f"{IN}.toPorts[0].ports", "at least one port"),
        (ingress(toPorts=[{"ports": []}]), f"{IN}.toPorts[0].ports", "at least one port"),
        (
            ingress(toPorts=[{"ports": [{"port": str(n)} for n in range(1, 42)]}]),
            f"{IN}.toPorts[0].ports",
            "at most 40",
        ),
        (ingress(fromEntities=["mars"]), f"{IN}.fromEntities[0]", "an entity: all, cluster"),
        (ports(port="8", protocol="ICMP"), f"{PORT}.protocol", "use icmps"),
        (ports(port="8", protocol="ICMPv6"), f"{PORT}.protocol", "use icmps"),
        (ingress(fromEntities=["host"], fromEndpoints=[{}]), f"{IN}.fromEntities", "use two rules"),
        (
            ingress(fromEndpoints=[{}], fromCIDR=["10.0.0.0/8"]),
            f"{IN}.fromCIDR",
            "got fromCIDR beside fromEndpoints",
        ),
        (
            ingress(fromCIDR=["10.0.0.0/8"], fromCIDRSet=[{"cidr": "10.0.0.0/8"}]),
            f"{IN}.fromCIDRSet",
            "got fromCIDRSet beside fromCIDR",
        ),
        (ingress(fromCIDR=["10.1.2.3/8"]), f"{IN}.fromCIDR[0]", "canonical form: 10.0.0.0/8"),
        (ingress(fromCIDR=["2001:DB8::1"]), f"{IN}.fromCIDR[0]", "canonical form: 2001:db8::1/128"),
        (ingress(fromCIDR=["10.0.0.0/33"]), f"{IN}.fromCIDR[0]", "a CIDR, for example"),
        (ingress(fromCIDR=["fe80::1%eth0"]), f"{IN}.fromCIDR[0]", "without a zone"),
        (ingress(fromCIDR=["::ffff:a00:0/104"]), f"{IN}.fromCIDR[0]", "IPv4's own notation"),
        (ingress(fromCIDR=[""]), f"{IN}.fromCIDR[0]", "a CIDR, for example"),
        (ingress(fromCIDR=[10]), f"{IN}.fromCIDR[0]", "quote it"),
        (ingress(fromCIDRSet=[{"cidr": "10.0.0.1"}]), f"{IN}.fromCIDRSet[0].cidr", "10.0.0.1/32"),
        (
            ingress(fromCIDRSet=[{"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}]),
            f"{IN}.fromCIDRSet[0].except[0]",
            "a CIDR within 10.0.0.0/8",
        ),
        (
            ingress(fromCIDRSet=[{"cidr": "10.0.0.0/8", "except": ["fd00::/16"]}]),
            f"{IN}.fromCIDRSet[0].except[0]",
            "a CIDR within 10.0.0.0/8",
        ),
        (
            ingress(fromCIDRSet=[{"cidr": "10.0.0.0/8", "cidrGroupRef": "g"}]),
            f"{IN}.fromCIDRSet[0]",
            "got cidr and cidrGroupRef",
        ),
        (ingress(fromCIDRSet=[{"except": ["10.0.0.0/8"]}]), f"{IN}.fromCIDRSet[0]", "got nothing"),
        (
            ingress(fromCIDRSet=[{"cidrGroupRef": "Group"}]),
            f"{IN}.fromCIDRSet[0].cidrGroupRef",
            "an object name",
        ),
        (
            ingress(toPorts=[{"ports": [{"port": "80"}]}], icmps=[{"fields": [{"type": 8}]}]),
            f"{IN}.icmps",
            "use two rules",
        ),
        (ingress(icmps=[{"fields": []}]), f"{IN}.icmps[0].fields", "at least one ICMP type"),
        (ingress(icmps=[{}]), f"{IN}.icmps[0].fields", "at least one ICMP type"),
        (ingress(icmps=[{"fields": [{}]}]), f"{ICMP}.type", "missing"),
        (ingress(icmps=[{"fields": [{"type": 256}]}]), f"{ICMP}.type", "from 0 to 255"),
        (ingress(icmps=[{"fields": [{"type": "08"}]}]), f"{ICMP}.type", "from 0 to 255"),
        (ingress(icmps=[{"fields": [{"type": "echoreply"}]}]), f"{ICMP}.type", "EchoReply"),
        (ingress(icmps=[{"fields": [{"type": "PacketTooBig"}]}]), f"{ICMP}.type", "an ICMP type"),
        (ingress(icmps=[{"fields": [{"type": "Photuris", "family": "IPv6"}]}]), f"{ICMP}.type", "ICMPv6"),
        (ingress(icmps=[{"fields": [{"type": 8, "family": "ipv4"}]}]), f"{ICMP}.family", "IPv4 or IPv6"),
        (ingress(icmps=[{"fields": [{"type": 8, "code": 0}]}]), f"{ICMP}.code", "no such field"),
        (
            ingress(icmps=[{"fields": [{"type": 8}] * 41}]),
            f"{IN}.icmps[0].fields",
            "got 41, expected at most 40",
        ),
        (ingress(toEndpoints=[{}]), f"{IN}.toEndpoints", "no such field"),
        (
            ingress(fromEndpoints=[{"matchLabels": {"docker:app": "a"}}]),
            f'{IN}.fromEndpoints[0].matchLabels["docker:app"]',
            "one of the sources",
        ),
        (
            ingress(fromEndpoints=[{"matchLabels": {"reserved:mars": ""}}]),
            f'{IN}.fromEndpoints[0].matchLabels["reserved:mars"]',
            "a reserved identity",
        ),
        (
            ingress(fromEndpoints=[{"matchLabels": {"reserved:host": "yes"}}]),
            f'{IN}.fromEndpoints[0].matchLabels["reserved:host"]',
            "an empty value",
        ),
        (
            ingress(fromEndpoints=[{"matchLabels": {"io.kubernetes.pod.namespace": "Not_A_Name"}}]),
            f'{IN}.fromEndpoints[0].matchLabels["io.kubernetes.pod.namespace"]',
            "a namespace name",
        ),
        ({"ingress": [{}]}, "spec.endpointSelector", "missing"),
        ({"nodeSelector": {}, "ingress": [{}]}, "spec.nodeSelector", "only a CiliumClusterwideNetworkPolicy"),
        (
            {"endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "other"}}},
            "spec.endpointSelector",
            "the policy's own, shop",
        ),
        (
            {"endpointSelector": {}, "enableDefaultDeny": {"ingress": "no"}},
            "spec.enableDefaultDeny.ingress",
            "true or false",
        ),
        ({"endpointSelector": {}, "description": 5}, "spec.description", "a description"),
        ({"endpointSelector": {}, "rules": []}, "spec.rules", "no such field"),
        ({"endpointSelector": {}, "labels": [{"key": 1}]}, "spec.labels[0].key", "quote it"),
        ({"endpointSelector": {}, "labels": [{"name": "a"}]}, "spec.labels[0].name", "no such field"),
        (
            {"endpointSelector": {}, "enableDefaultDeny": {"both": True}},
            "spec.enableDefaultDeny.both",
            "no such field",
        ),
        (
            ingress(fromEndpoints=[{"matchLabels": {"reserved:world-ipv4": ""}}]),
            f'{IN}.fromEndpoints[0].matchLabels["reserved:world-ipv4"]',
            "use the entity world-ipv4",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_path_value_and_expectation(
    spec: dict[str, Any], field: str, said: str
) -> None:
    found = refused(spec)
    assert list(found) == [field]
    assert said in found[field]
