# SPDX-License-Identifier: Apache-2.0
"""Documents, names and what surrounds a policy's rules."""

from __future__ import annotations

import json
import time

import pytest

from services.policy.manifest import (
    ManifestError,
    load_stored,
    parse_definitions,
    parse_manifests,
    parse_refs,
)
from services.policy.rules import Policy, PolicyRef

WEB = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {}}
"""
API = WEB.replace("name: web", "name: api")


def refused(text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(ManifestError) as caught:
        parse_manifests(text)
    return [(v.document, v.field, v.description) for v in caught.value.violations]


def refs(text: str) -> list[str]:
    return [str(manifest.policy.ref) for manifest in parse_manifests(text)]


def test_several_documents_and_lists() -> None:
    both = ["NetworkPolicy shop/web", "NetworkPolicy shop/api"]
    assert refs(f"---\n{WEB}\n---\n---\n{API}\n---\n") == both
    items = f"[{WEB_JSON}, {WEB_JSON.replace('web', 'api')}]"
    assert refs(f'{{"apiVersion": "v1", "kind": "List", "metadata": {{}}, "items": {items}}}') == both


WEB_JSON = (
    '{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", '
    '"metadata": {"name": "web", "namespace": "shop"}, "spec": {"podSelector": {}}}'
)


def test_json_and_yaml_say_the_same() -> None:
    assert parse_manifests(WEB_JSON) == parse_manifests(WEB)


def test_without_a_namespace_it_is_the_default_one() -> None:
    assert refs(WEB.replace(", namespace: shop", "")) == ["NetworkPolicy default/web"]


def test_what_the_cluster_wrote_into_an_object_is_no_difference() -> None:
    server = WEB.replace(
        "namespace: shop}",
        "namespace: shop, uid: x, resourceVersion: '5', generation: 2, creationTimestamp: '2026-01-01'}",
    )
    server += "status: {}\n"
    assert parse_manifests(server) == parse_manifests(WEB)


def test_the_stored_text_says_the_same_again() -> None:
    (manifest,) = parse_manifests(WEB)
    assert load_stored(manifest.text) == manifest.policy


def test_violations_of_all_documents_are_told_with_their_document() -> None:
    bad = WEB.replace("podSelector: {}", "podSelector: {}, ingress: [{ports: [{port: 0}]}]")
    found = refused(f"{bad}\n---\n{API}\n---\n{bad.replace('name: web', 'name: other')}")
    assert [(document, field) for document, field, _ in found] == [
        (0, "spec.ingress[0].ports[0].port"),
        (2, "spec.ingress[0].ports[0].port"),
    ]


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("", "manifests", "no document"),
        ("---\n---\n", "manifests", "no document"),
        ("a: [", "manifests", "not valid YAML"),
        ('{"a": ', "manifests", "not valid YAML"),
        ("a: 1\na: 2", "manifests", "line 2, column 1: the field 'a' stands twice"),
        ('{"a": 1, "a": 2}', "manifests", "the field 'a' stands twice"),
        ("a: 2026-01-01", "manifests", "quote the value"),
        ("a: 12:30:45", "manifests", "no plain decimal number"),
        ("a: 1:30.5", "manifests", "no plain number"),
        ("a: 0777", "manifests", "no plain decimal number"),
        ("a: 0x1F", "manifests", "no plain decimal number"),
        ("a: 1_000", "manifests", "no plain decimal number"),
        ("a: 99999999999999999999", "manifests", "a: a whole number of more than 64 bits"),
        ('{"a": [99999999999999999999]}', "manifests", "a[0]: a whole number of more than 64 bits"),
        ('{"a": {"b": "\\ud800"}}', "manifests", "a.b: half of a surrogate pair"),
        ('{"a": {"\\ud800": 1}}', "manifests", "a: a field name with half of a surrogate pair"),
        ("a: !!int ''", "manifests", "not valid YAML"),
        ("a: !!bool maybe", "manifests", "not valid YAML"),
        ("a: !!timestamp soon", "manifests", "not valid YAML"),
        ("a: !!binary aGk=", "manifests", "not valid YAML"),
        ("a: !!set {b}", "manifests", "not valid YAML"),
        ("a: *b", "manifests", "no anchor 'b'"),
        ("&k a: 1\n*k : 2", "manifests", "a plain field name"),
        ("yes: a", "manifests", "not a string"),
        ("1: a", "manifests", "not a string"),
        ("a: .inf", "manifests", "not a number that JSON has"),
        ("a: &x [*x]", "manifests", "nested more than"),
        ("a: " + "[" * 100_000, "manifests", "nested more than"),
        ("- " * 100_000, "manifests", "nested more than"),
        ('{"a":' * 100_000, "manifests", "nested more than"),
        (f"a: [{'x, ' * 500_000}]", "manifests", "more than 200000 values"),
        ("a: &x {b: 1}\nc: {<<: *x}", "manifests", "merge keys"),
        ("? [a, b]\n: 1", "manifests", "a plain field name"),
        ("!!python/object:os.system {}", "manifests", "not valid YAML"),
        ("\x00", "manifests", "not valid YAML"),
        ("just text", "kind", "expected an object"),
        ("- a", "kind", "expected an object"),
        ("kind: Pod", "kind", 'got "Pod", expected one of NetworkPolicy'),
        ("kind: [NetworkPolicy]", "kind", "expected one of"),
        ("apiVersion: v1", "kind", "missing"),
        ("{apiVersion: v1, kind: List}", "manifests", "items: expected a list"),
        ("{apiVersion: v1, kind: List, items: []}", "manifests", "at least one policy"),
        ("{apiVersion: v1, kind: List, items: [{}], item: 1}", "manifests", "item: no such field in a List"),
        (
            "{apiVersion: v1, kind: List, items: [{}], metadata: 1}",
            "manifests",
            "metadata: expected an object",
        ),
        (
            "{apiVersion: v1, kind: List, items: [{}], metadata: {name: a}}",
            "manifests",
            "metadata.name: no such",
        ),
        (WEB.replace("networking.k8s.io/v1", "extensions/v1beta1"), "apiVersion", "networking.k8s.io/v1"),
        (WEB.replace("name: web", "name: Web"), "metadata.name", "an object name"),
        (WEB.replace("name: web", "name: 5"), "metadata.name", "quote it"),
        (WEB.replace("name: web,", ""), "metadata.name", "missing"),
        (WEB.replace("shop", "Shop"), "metadata.namespace", "a namespace name"),
        (WEB.replace("namespace: shop", "namspace: shop"), "metadata.namspace", "no such field"),
        (WEB.replace("spec:", "specs:"), "specs", "no such field"),
        (WEB.replace("spec: {podSelector: {}}", ""), "spec", "missing"),
        (WEB.replace("shop}", "shop, annotations: [a]}"), "metadata.annotations", "an object, not a list"),
        (WEB.replace("shop}", "shop, annotations: {a: 1}}"), "metadata.annotations.a", "quote it"),
        (WEB.replace("shop}", "shop, labels: {a: [b]}}"), "metadata.labels.a", "as a string"),
        (WEB.replace("shop}", "shop, labels: {a: -b}}"), "metadata.labels.a", "a label value"),
        (WEB.replace("shop}", "shop, labels: {-a: b}}"), "metadata.labels.-a", "a label key"),
        (
            WEB.replace("shop}", "shop, annotations: {fimbria.io/audit: 'yes'}}"),
            'metadata.annotations["fimbria.io/audit"]',
            'got "yes", expected the string "true" or "false"',
        ),
        (
            WEB.replace("shop}", "shop, annotations: {fimbria.io/audit: true}}"),
            'metadata.annotations["fimbria.io/audit"]',
            'got true, expected the string "true" or "false"',
        ),
        (
            WEB.replace("shop}", "shop, annotations: {fimbria.io/audti: 'true'}}"),
            'metadata.annotations["fimbria.io/audti"]',
            "no such annotation",
        ),
        (
            '{"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup", "metadata": {"name": "a", '
            '"annotations": {"fimbria.io/audit": "true"}}, "spec": {"externalCIDRs": []}}',
            'metadata.annotations["fimbria.io/audit"]',
            "no such annotation on a CiliumCIDRGroup",
        ),
        (WEB.replace("metadata: {name: web, namespace: shop}", ""), "metadata", "missing"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, field: str, said: str) -> None:
    _, found, description = refused(text)[0]
    assert found == field
    assert said in description


def test_what_is_wrong_is_told_although_the_name_is_wrong_too() -> None:
    text = WEB.replace("name: web", "name: Web").replace("podSelector", "podSelectors")
    assert [field for _, field, _ in refused(text)] == ["metadata.name", "spec.podSelectors"]


def test_no_more_violations_are_told_than_anybody_reads() -> None:
    found = refused(WEB.replace("podSelector: {}", ", ".join(f"field{n}: 1" for n in range(2000))))
    assert len(found) == 500
    assert "more than 500 violations" in found[-1][2]


def test_the_same_policy_twice_is_refused() -> None:
    ((document, field, description),) = refused(f"{WEB}\n---\n{WEB}")
    assert (document, field) == (1, "metadata.name")
    assert "NetworkPolicy shop/web" in description


def test_a_clusterwide_policy_has_no_namespace() -> None:
    text = (
        '{"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", '
        '"metadata": {"name": "web", "namespace": "shop"}, "spec": {"endpointSelector": {}}}'
    )
    assert refused(text)[0][1] == "metadata.namespace"
    assert refs(text.replace(', "namespace": "shop"', "")) == ["CiliumClusterwideNetworkPolicy web"]


def test_an_alias_that_blows_up_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "more than" in refused("\n".join(lines))[0][2]


SPEC = '"spec": {"podSelector": {}}'


@pytest.mark.parametrize(
    "text",
    [
        WEB_JSON.replace(SPEC, '"spec": {"LONG": 1}'),
        WEB_JSON.replace(SPEC, '"spec": {"podSelector": {"matchLabels": {"LONG": "a", "a": "LONG"}}}'),
        WEB_JSON.replace(SPEC, '"LONG": 1, "LONG": 2'),
        WEB_JSON.replace("web", "LONG"),
        WEB_JSON.replace("NetworkPolicy", "LONG"),
        '{"apiVersion": "v1", "kind": "List", "items": [{}], "LONG": 1}',
        "LONG: 1\nLONG: 1",
        "a: *LONG",
        "a: !LONG b",
        "LONG",
        "DIGITS: 1",
        "a: DIGITS",
        "a: PAIRS1",
    ],
)
def test_errors_about_long_texts_are_short(text: str) -> None:
    long = {"LONG": "x" * 1_000_000, "DIGITS": "9" * 1_000_000, "PAIRS": "1:" * 500_000}
    for name, value in long.items():
        text = text.replace(name, value)
    for _, field, description in refused(text):
        assert len(field) + len(description) < 1500


def test_big_files_are_read_in_seconds() -> None:
    """A thousand policies of four kilobytes each: 0.9 s of processor time where this was written."""
    rules = "".join(
        f"  - fromEndpoints: [{{matchLabels: {{app: client{n}, k8s:io.kubernetes.pod.namespace: other}}}}]\n"
        f'    toPorts: [{{ports: [{{port: "{8000 + n}", protocol: TCP}}, {{port: "53", protocol: UDP}}]}}]\n'
        for n in range(9)
    )
    one = (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: %d}\nspec:\n"
        f"  description: {'x' * 2400}\n  endpointSelector: {{}}\n  ingress:\n{rules}"
    )
    text = "---\n".join(one.replace("%d", f"policy{n}") for n in range(1000))
    assert 3_500_000 < len(text) < 4 * 2**20
    started = time.thread_time()
    found = parse_manifests(text)
    assert time.thread_time() - started < 10
    assert len(found) == 1000
    lines = text.splitlines()
    for manifest in found[::100]:
        for path, line in manifest.policy.lines.items():
            index = int(path.removeprefix("spec.ingress[").rstrip("]"))
            assert f"client{index}," in lines[line - 1]
        assert len(manifest.policy.lines) == 9


def test_only_names_are_read_for_a_deletion() -> None:
    broken = WEB.replace("podSelector: {}", "ingress: nonsense")
    assert parse_refs(f"{broken}\n---\n{broken}\n---\n{API}") == [
        PolicyRef("NetworkPolicy", "shop", "web"),
        PolicyRef("NetworkPolicy", "shop", "api"),
    ]
    with pytest.raises(ManifestError):
        parse_refs(WEB.replace("name: web,", ""))


def only(text: str) -> Policy:
    (manifest,) = parse_manifests(text)
    return manifest.policy


CILIUM = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: web}
spec: {endpointSelector: {}, ingress: [{}]}
"""
ADMIN = """
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: web}
spec: {priority: 1, subject: {namespaces: {}}}
"""
BASELINE = """
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec: {subject: {namespaces: {}}}
"""
OWN = """
apiVersion: fimbria.io/v1
kind: Policy
metadata: {name: web}
spec: {pods: {}}
"""


@pytest.mark.parametrize("text", [WEB, CILIUM, ADMIN, BASELINE, OWN])
def test_an_annotation_puts_a_policy_of_any_kind_into_audit_mode(text: str) -> None:
    for value, audit in (("true", True), ("false", False)):
        annotated = text.replace("metadata: {", f'metadata: {{annotations: {{fimbria.io/audit: "{value}"}}, ')
        assert only(annotated).audit is audit
        (manifest,) = parse_manifests(annotated)
        assert load_stored(manifest.text).audit is audit
    assert not only(text).audit


def test_of_the_own_kind_the_field_and_the_annotation_must_agree() -> None:
    field = OWN.replace("pods: {}", "pods: {}, audit: true")
    assert only(field).audit
    annotated = 'metadata: {annotations: {fimbria.io/audit: "%s"}, '
    assert only(field.replace("metadata: {", annotated % "true")).audit
    ((_, where, said),) = refused(field.replace("metadata: {", annotated % "false"))
    assert where == "spec.audit"
    assert "annotation" in said


RULES = """# a comment
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: one
spec:
  endpointSelector: {}
  ingress:
  - fromEntities:
    - all
  - {}

  - # the third
    toPorts:
    - ports: [{port: "80"}]
---
apiVersion: v1
kind: List
items:
- apiVersion: cilium.io/v2
  kind: CiliumNetworkPolicy
  metadata: {name: two}
  specs:
  - {endpointSelector: {}, egressDeny: [{}, {}]}
  - endpointSelector: {}
    egress:
    -
      toEntities: [all]
- {apiVersion: fimbria.io/v1, kind: Policy, metadata: {name: three}, spec: {
    pods: {}, rules: [
      {direction: ingress, action: allow},
      {direction: egress, action: allow}]}}
"""


def test_each_rule_has_the_line_at_which_it_begins() -> None:
    one, two, three = (manifest.policy for manifest in parse_manifests(RULES))
    assert one.lines == {"spec.ingress[0]": 9, "spec.ingress[1]": 11, "spec.ingress[2]": 14}
    assert two.lines == {"specs[0].egressDeny[0]": 24, "specs[0].egressDeny[1]": 24, "specs[1].egress[0]": 28}
    assert three.lines == {"spec.rules[0]": 31, "spec.rules[1]": 32}


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_lines_of_json_are_known_too(indent: int | None) -> None:
    items = [json.loads(manifest.text) for manifest in parse_manifests(RULES)]
    # Whatever looks like structure inside of strings is none.
    items[0]["metadata"]["annotations"] = {"a": '[{"ingress": [\n {"x\\":}]\\'}
    text = "\n\n" + json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=indent)
    lines = text.splitlines()
    for policy in (manifest.policy for manifest in parse_manifests(text)):
        assert set(policy.lines) == {rule.path for rule in policy.rules()}
        for path, line in policy.lines.items():
            assert 1 <= line <= len(lines)
            if indent:
                assert lines[line - 1].strip().startswith("{"), path
    found = parse_manifests(text)[1].policy.lines
    assert sorted(found.values()) == list(found.values())
    assert (len(set(found.values())) == 3) is bool(indent)


def test_lines_are_no_part_of_what_a_policy_says() -> None:
    (manifest,) = parse_manifests(OWN)
    assert parse_manifests("\n\n" + OWN) == [manifest]
    assert load_stored(manifest.text) == manifest.policy
    assert load_stored(manifest.text).lines == {}


def test_what_older_versions_accepted_is_still_read() -> None:
    text = json.dumps(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "web", "namespace": "shop", "labels": {"-": 1}, "annotations": {"a": 1}},
            "spec": {
                "endpointSelector": {},
                "labels": [{"anything": 1}],
                "ingress": [{"toPorts": [{"ports": [{"port": "080"}]}]}],
            },
        }
    )
    assert len(list(load_stored(text).rules())) == 1
    assert [field for _, field, _ in refused(text)] == [
        "metadata.annotations.a",
        "metadata.labels.-",
        "metadata.labels.-",
        "spec.labels[0].anything",
        "spec.ingress[0].toPorts[0].ports[0].port",
    ]


def test_messages_are_read_as_manifests_and_say_the_same() -> None:
    definition = {
        "namespace": "shop",
        "name": "web",
        "tier": "TIER_ADMIN",
        "priority": 7,
        "audit": True,
        "pods": {"matchLabels": {"app": "web"}},
        "rules": [
            {"direction": "DIRECTION_INGRESS", "action": "ACTION_PASS", "peers": [{"entity": "world"}]},
            {"direction": "DIRECTION_EGRESS", "action": "ACTION_DENY", "ports": [{"protocol": "TCP"}]},
        ],
    }
    manifest = """
apiVersion: fimbria.io/v1
kind: Policy
metadata: {name: web, namespace: shop}
spec:
  tier: admin
  priority: 7
  audit: true
  pods: {matchLabels: {app: web}}
  rules:
  - {direction: ingress, action: pass, peers: [{entity: world}]}
  - {direction: egress, action: deny, ports: [{protocol: TCP}]}
"""
    assert parse_definitions([definition]) == parse_manifests(manifest)
    assert parse_definitions([{**definition, "tier": "TIER_UNSPECIFIED", "priority": 0, "rules": []}])


def test_violations_of_messages_have_paths_in_the_request() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_definitions(
            [
                {"name": "a", "pods": {}},
                {
                    "name": "B",
                    "namespace": "-",
                    "nodes": {"matchLabels": {"a": "b c"}},
                    "defaultDeny": ["DIRECTION_UNSPECIFIED"],
                    "rules": [{"direction": 7, "action": "ACTION_UNSPECIFIED"}],
                },
                {"name": "a", "pods": {}},
            ]
        )
    assert [(v.document, v.field) for v in caught.value.violations] == [
        (1, "policies[1].name"),
        (1, "policies[1].namespace"),
        (1, "policies[1].nodes.matchLabels.a"),
        (1, "policies[1].rules[0].direction"),
        (1, "policies[1].rules[0].action"),
        (1, "policies[1].defaultDeny[0]"),
        (2, "policies[2].name"),
    ]
    assert "Policy a stands in these manifests already" in caught.value.violations[-1].description
