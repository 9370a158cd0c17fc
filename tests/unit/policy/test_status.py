# SPDX-License-Identifier: Apache-2.0
"""How far policies have come, and what their authors may not expect."""

from __future__ import annotations

import itertools

import pytest

from services.policy.diff_peers import Universe
from services.policy.enforcement import NodeState
from services.policy.engine import Subject
from services.policy.manifest import parse_manifests
from services.policy.node_store import Acknowledged
from services.policy.resolve import BoundPolicy
from services.policy.rules import NamedPort, Protocol
from services.policy.selector import Labels
from services.policy.status import PolicyStatus, Situation, late_because
from services.policy.stored import StoredPolicy

SPACE = "k8s:io.kubernetes.pod.namespace=shop"
IDENTITIES = {
    2: Labels(["reserved:world"]),
    300: Labels(["k8s:app=web", SPACE]),
    301: Labels(["k8s:app=client", SPACE]),
    302: Labels(["k8s:app=idle", SPACE]),
}
WEB, CLIENT = Subject(300, (NamedPort("http", Protocol.TCP, 80),)), Subject(301)
EDGE = Subject(1, (), ("k8s:role=edge",))
SECOND = 1_000_000_000


def node(name: str, at: int, *, error: str = "", subscribed: bool = True, **more: object) -> NodeState:
    return NodeState(name, Acknowledged(at, 1, error, 0), subscribed, **more)  # type: ignore[arg-type]


def manifest(name: str, spec: str, app: str = "web", more: str = "") -> str:
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}, namespace: shop{more}}}
spec:
  endpointSelector: {{matchLabels: {{app: {app}}}}}
  {spec}
"""


FROM_CLIENT = "ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]"


def statuses(*texts: str, nodes: tuple[NodeState, ...] = ()) -> dict[str, PolicyStatus]:
    cookies = itertools.count(1)
    found = [each for text in texts for each in parse_manifests(text)]
    stored = {
        each.policy.ref: StoredPolicy(
            BoundPolicy(each.policy, {rule.path: next(cookies) for rule in each.policy.rules()}),
            each.text,
            5,
            10 * SECOND,
            group=each.group,
            effective_revision=6,
        )
        for each in found
    }
    situation = Situation(
        {ref: item for ref, item in stored.items() if item.group is None},
        {ref.name: item for ref, item in stored.items() if item.group is not None},
        lambda item: item.bound.policy,
        Universe(IDENTITIES),
        {WEB: ("node-1", "node-2"), CLIENT: ("node-2",), EDGE: ("node-1",)},
        {state.name: state for state in nodes or (node("node-1", 6), node("node-2", 6))},
        12 * SECOND,
    )
    return {item.ref.name: situation.status(item) for item in stored.values()}


def notes(*texts: str) -> tuple[str, ...]:
    return next(iter(statuses(*texts).values())).notes


def test_it_is_enforced_when_every_node_that_has_a_subject_says_so() -> None:
    behind = node("node-2", 5, late_since_ns=3 * SECOND)
    found = statuses(
        manifest("web", FROM_CLIENT),
        manifest("to", "egress: [{}]", "client"),
        nodes=(node("node-1", 9), behind),
    )
    web = found["web"]
    assert not web.enforced and web.revision == 6
    (subject,) = web.subjects
    assert subject.identity == 300 and [each.late for each in subject.nodes] == [
        "",
        "not acknowledged yet; it has acknowledged revision 5 of 6",
    ]
    # Since the policy was changed, although the node was late before.
    assert subject.nodes[1].late_ns == 2 * SECOND
    assert [subject.identity for subject in found["to"].subjects] == [301]
    assert statuses(manifest("web", FROM_CLIENT))["web"].enforced


def test_a_node_that_is_a_subject() -> None:
    text = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: edge}
spec:
  nodeSelector: {matchLabels: {role: edge}}
  ingress: [{fromEntities: [cluster]}]
"""
    (subject,) = statuses(text)["edge"].subjects
    assert (subject.identity, [each.state.name for each in subject.nodes]) == (1, ["node-1"])
    assert set(subject.labels) == {"k8s:role=edge", "reserved:host"}


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (node("n", 6), ""),
        (node("n", 7, error="broken"), ""),
        (node("n", 5), "not acknowledged yet"),
        (node("n", 5, subscribed=False), "its loader is not subscribed"),
        (node("n", 5, error="map full"), "it cannot realize more: map full"),
        (
            node("n", 5, error="map full", failed_subjects=frozenset({WEB})),
            "it could not realize this subject: map full",
        ),
        (
            node("n", 5, error="map full", failed_subjects=frozenset({CLIENT})),
            "it cannot realize more: map full",
        ),
    ],
)
def test_why_a_node_is_late(state: NodeState, why: str) -> None:
    assert late_because(state, WEB, 6).partition(";")[0] == why


def test_whom_it_does_not_select() -> None:
    assert notes(manifest("none", FROM_CLIENT, "nobody")) == (
        "it selects nobody: no pod and no node that is there has such labels",
    )
    assert notes(manifest("idle", FROM_CLIENT, "idle")) == (
        "no node has a pod that it selects, of 1 identities",
    )
    assert notes(manifest("web", FROM_CLIENT)) == ()


def test_audit_mode_and_groups_and_names() -> None:
    audit = ", annotations: {fimbria.io/audit: 'true'}"
    assert notes(manifest("web", FROM_CLIENT, more=audit))[0].startswith("in audit mode")
    group = "ingress: [{fromCIDRSet: [{cidrGroupRef: office}]}]"
    (told,) = notes(manifest("web", group))
    assert told == ("there is no CiliumCIDRGroup 'office', which spec.ingress[0] names: it matches nobody")
    office = (
        "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: office}\n"
        "spec: {externalCIDRs: [192.0.2.0/24]}\n"
    )
    both = statuses(manifest("web", group), office)
    assert both["web"].notes == () and both["office"].notes == ()
    assert statuses(office)["office"].notes == ("no policy names it",)
    ports = "ingress: [{toPorts: [{ports: [{port: metrics, protocol: TCP}]}]}]"
    assert notes(manifest("web", ports)) == (
        "spec.ingress[0]: no pod that it selects declares a port 'metrics'",
    )
    assert notes(manifest("web", ports.replace("metrics", "http"))) == ()


def test_rules_that_another_always_decides_before() -> None:
    deny = manifest("veto", FROM_CLIENT.replace("ingress:", "ingressDeny:"))
    assert notes(manifest("web", FROM_CLIENT), deny) == (
        "spec.ingress[0] has no effect: CiliumNetworkPolicy shop/veto spec.ingressDeny[0] decides before it",
    )
    narrower = manifest("veto", FROM_CLIENT.replace("ingress:", "ingressDeny:"), "idle")
    assert notes(manifest("web", FROM_CLIENT), narrower) == ()
    audit = ", annotations: {fimbria.io/audit: 'true'}"
    audited = manifest("veto", FROM_CLIENT.replace("ingress:", "ingressDeny:"), more=audit)
    assert notes(manifest("web", FROM_CLIENT), audited) == ()
