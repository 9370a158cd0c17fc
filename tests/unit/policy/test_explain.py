# SPDX-License-Identifier: Apache-2.0
"""Verdicts with their reasons and remedies."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy.entries import judge
from services.policy.explain import End, Explainer, Verdict, end_outside, explain
from services.policy.manifest import parse_manifests
from services.policy.prefixes import PrefixUse, longest_prefix
from services.policy.remedies import remedies
from services.policy.resolve import BoundPolicy, resolve
from services.policy.rules import Direction, NamedPort, Protocol, Tier
from services.policy.selector import Labels
from tests.unit.policy import test_diff

SPACE = "k8s:io.kubernetes.pod.namespace=shop"
WEB = End(300, Labels(["k8s:app=web", SPACE]), frozenset({NamedPort("http", Protocol.TCP, 8080)}))
CLIENT = End(301, Labels(["k8s:app=client", SPACE]))
HOST = End(1, Labels(["reserved:host"]))

ALLOW = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""
DENY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: no-client, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingressDeny:
  - fromEndpoints: [{matchLabels: {app: client}}]
"""
ISOLATED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolated, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
"""
BLOCK = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: block, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]
"""
ADMIN = """
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: admin}
spec:
  priority: 10
  subject: {namespaces: {}}
  ingress:
  - {name: hand-over, action: %s, from: [{namespaces: {}}]}
"""
BASELINE = """
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec:
  subject: {namespaces: {}}
  ingress:
  - {action: Deny, from: [{namespaces: {}}]}
"""


def bound(*texts: str) -> list[BoundPolicy]:
    cookies = itertools.count(1)
    return [
        BoundPolicy(manifest.policy, {rule.path: next(cookies) for rule in manifest.policy.rules()})
        for text in texts
        for manifest in parse_manifests(text)
    ]


def asked(
    *texts: str,
    sender: End = CLIENT,
    receiver: End = WEB,
    protocol: int = Protocol.TCP,
    port: int = 80,
    prefixes: dict[int, PrefixUse] | None = None,
) -> tuple[Verdict, Verdict, tuple[str, ...]]:
    egress, ingress = explain(bound(*texts), sender, receiver, protocol, port, prefixes)
    return egress, ingress, remedies(egress, ingress, sender, receiver, protocol, port)


def paths(verdict: Verdict) -> list[str]:
    return [str(found).partition(" ")[2] for found in verdict.covering]


def test_every_rule_that_covers_it_the_deciding_first() -> None:
    egress, ingress, told = asked(ALLOW, DENY)
    assert egress.reason == "allowed: no policy restricts the sender's egress"
    assert not ingress.allowed
    assert ingress.reason == "denied by CiliumNetworkPolicy shop/no-client spec.ingressDeny[0]"
    assert paths(ingress) == ["shop/no-client spec.ingressDeny[0]", "shop/web spec.ingress[0]"]
    assert ingress.judgement is not None and ingress.judgement.key is not None
    assert ingress.judgement.key.identity == CLIENT.identity
    assert told[0] == "CiliumNetworkPolicy shop/no-client spec.ingressDeny[0] no longer denies it"
    assert told[1] == ("a rule of the tier ADMIN, as an AdminNetworkPolicy has them, that allows it")


def test_lines_of_rules() -> None:
    _, ingress, _ = asked(ALLOW)
    assert [found.line for found in ingress.covering] == [8]


def test_what_would_let_it_pass_a_default_deny() -> None:
    _, ingress, told = asked(ALLOW, port=81)
    assert not ingress.allowed and ingress.covering == ()
    assert told == (
        "a rule that allows it in the ingress of a policy that selects the receiver, for example in "
        "CiliumNetworkPolicy shop/web: from app=client,io.kubernetes.pod.namespace=shop on port 81/TCP",
        "this policy goes or is no longer default deny for ingress: CiliumNetworkPolicy shop/web",
    )


def test_both_ends_deny() -> None:
    egress, ingress, told = asked(ISOLATED)
    assert (egress.allowed, ingress.allowed) == (False, False)
    assert told[0] == "both ends deny it: one change at the sender and one at the receiver are needed"
    assert {text.partition(":")[0] for text in told[1:]} == {"at the sender", "at the receiver"}


def test_what_would_deny_what_is_allowed() -> None:
    _, _, told = asked(ALLOW)
    assert (
        "CiliumNetworkPolicy shop/web spec.ingress[0] no longer allows it: then the default of the receiver "
        "denies it"
    ) in told
    assert any(
        text.startswith("a rule that denies it in the egress of a policy that selects the sender")
        for text in told
    )
    assert not any("no longer" in text for text in asked()[2])


def test_tiers_in_words() -> None:
    _, ingress, told = asked(ADMIN % "Pass", ALLOW)
    assert ingress.reason == (
        "allowed by CiliumNetworkPolicy shop/web spec.ingress[0]; AdminNetworkPolicy admin spec.ingress[0] "
        "had passed it on to the next tier"
    )
    assert [found.tier for found in ingress.covering] == [Tier.NORMAL, Tier.ADMIN]
    _, denied, told = asked(ADMIN % "Deny", ALLOW)
    assert denied.reason == "denied by AdminNetworkPolicy admin spec.ingress[0]"
    assert told[0] == "AdminNetworkPolicy admin spec.ingress[0] no longer denies it"
    assert told[1].endswith("that allows it before AdminNetworkPolicy admin spec.ingress[0]")
    _, allowed, told = asked(ADMIN % "Allow", DENY)
    assert allowed.allowed
    assert any("tier ADMIN that denies it before AdminNetworkPolicy admin" in text for text in told)
    _, baseline, told = asked(BASELINE)
    assert baseline.reason == (
        "denied by BaselineAdminNetworkPolicy default spec.ingress[0]: no policy of a tier before the "
        "baseline has a say in it"
    )
    assert told[1].startswith("a rule that allows it in the ingress of a policy")


def test_audit_mode_is_told_and_changes_nothing() -> None:
    audit = ISOLATED.replace("name: isolated,", "annotations: {fimbria.io/audit: 'true'}, name: isolated,")
    egress, ingress, _ = asked(audit)
    assert egress.allowed and ingress.allowed and ingress.audited
    assert [ref.name for ref in ingress.audited_by] == ["isolated"]
    assert ingress.reason.endswith(
        "in audit mode, the default deny of NetworkPolicy shop/isolated would deny it"
    )
    audit = DENY.replace("name: no-client,", "annotations: {fimbria.io/audit: 'true'}, name: no-client,")
    _, ingress, _ = asked(ALLOW, audit)
    assert ingress.allowed and ingress.audit_rule is not None
    assert ingress.audit_rule.rule.path == "spec.ingressDeny[0]"
    assert [found.audit for found in ingress.covering] == [False, True]


PREFIXES = {
    0xFF0001: PrefixUse("10.0.0.0/8", by_address=True),
    0xFF0002: PrefixUse("10.1.0.0/16", by_address=True),
}


def test_rules_by_address_need_the_address_of_a_pod() -> None:
    def client(address: str | None) -> End:
        return End(301, CLIENT.labels, address=address)

    _, ingress, _ = asked(BLOCK, sender=client("10.2.3.4"), prefixes=PREFIXES)
    assert ingress.allowed and paths(ingress) == ["shop/block spec.ingress[0]"]
    assert ingress.judgement is not None and ingress.judgement.key is not None
    assert ingress.judgement.key.identity == 0xFF0001
    _, ingress, _ = asked(BLOCK, sender=client("10.1.3.4"), prefixes=PREFIXES)
    assert not ingress.allowed and ingress.covering == ()
    _, ingress, _ = asked(BLOCK, sender=client(None), prefixes=PREFIXES)
    assert not ingress.allowed
    assert ingress.reason.endswith(
        "NetworkPolicy shop/block spec.ingress[0] selects by address, and the sender's was not given: "
        "left out"
    )


def test_somebody_outside_the_cluster() -> None:
    held = {0xFF0003: PrefixUse("192.0.2.0/24", by_identity=True)}
    assert end_outside(held, "192.0.2.7").identity == 0xFF0003
    assert end_outside(held, "198.51.100.1").identity == 2
    text = ALLOW.replace("fromEndpoints: [{matchLabels: {app: client}}]", "fromCIDR: [192.0.2.0/24]")
    _, ingress, _ = asked(text, sender=end_outside(held, "192.0.2.7"), prefixes=held)
    assert ingress.allowed and paths(ingress) == ["shop/web spec.ingress[0]"]
    egress, ingress, told = asked(text, sender=end_outside(held, "198.51.100.1"), prefixes=held)
    assert egress.reason == "allowed: no policy is enforced at 198.51.100.1 outside the cluster"
    assert not ingress.allowed and "from 198.51.100.1 outside the cluster on port 80/TCP" in told[0]


def test_a_node_reaches_its_pods_whatever_policies_say() -> None:
    _, ingress, told = asked(ISOLATED, sender=HOST)
    assert ingress.allowed and ingress.reason == "allowed: a node always reaches its own pods"
    assert not any("receiver" in text for text in told)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_covers_a_connection_is_what_decides_it(data: st.DataObject) -> None:
    """The rules that are told and the entries agree, and so do remedies that are about them."""
    names = ("a", "b", "c")[: data.draw(st.integers(1, 3))]
    world = test_diff.world(*(data.draw(test_diff.policies(name)) for name in names))
    prefixes = test_diff.numbered(world)
    cookies = itertools.count(1)
    known = [
        BoundPolicy(held.policy, {path: next(cookies) for path in held.cookies})
        for held in world.policies.values()
    ]
    explainer = Explainer(known, prefixes)
    subject = End(300, test_diff.IDENTITIES[300], test_diff.PORTS_OF[300])
    address = data.draw(st.sampled_from(test_diff.ADDRESSES))
    outside = end_outside(prefixes, address)
    inside = End(303, test_diff.IDENTITIES[303], test_diff.PORTS_OF[303], address)
    peer = data.draw(st.sampled_from((outside, inside)))
    port = data.draw(st.sampled_from((8, 78, 80, 81, 8080)))
    protocol = data.draw(st.sampled_from((Protocol.TCP, Protocol.UDP, Protocol.ICMP)))
    egress, _ = explainer.explain(subject, peer, protocol, port)
    _, ingress = explainer.explain(peer, subject, protocol, port)
    policy = resolve(known, test_diff.IDENTITIES, subject.labels, subject.ports, test_diff.PORTS_OF, prefixes)
    by_address = longest_prefix(prefixes, address, by_address=True)
    held = (by_address,) if by_address is not None else ()
    for direction, verdict in ((Direction.EGRESS, egress), (Direction.INGRESS, ingress)):
        assert verdict.judgement == judge(policy, direction, peer.identity, protocol, port, held)
        if verdict.judgement is not None and verdict.judgement.value is not None:
            assert verdict.rule is not None and verdict.covering[0] is verdict.rule
        if verdict.audited:
            assert verdict.audit_rule is not None or verdict.audited_by


def test_what_policies_allow_and_the_datapath_does_not_carry() -> None:
    timestamp, echo = 13, 8
    for port, carried in ((timestamp, False), (echo, True)):
        for verdict in asked(protocol=Protocol.ICMP, port=port)[:2]:
            assert verdict.allowed
            assert ("the datapath drops it" in verdict.reason) is not carried
    assert "datapath" not in asked(port=13)[0].reason
