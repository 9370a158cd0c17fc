# SPDX-License-Identifier: Apache-2.0
"""Documents, names and what surrounds a policy's rules."""

from __future__ import annotations

import pytest

from services.policy.manifest import ManifestError, load_stored, parse_manifests, parse_refs
from services.policy.rules import PolicyRef

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
        (WEB.replace("networking.k8s.io/v1", "extensions/v1beta1"), "apiVersion", "networking.k8s.io/v1"),
        (WEB.replace("name: web", "name: Web"), "metadata.name", "an object name"),
        (WEB.replace("name: web", "name: 5"), "metadata.name", "quote it"),
        (WEB.replace("name: web,", ""), "metadata.name", "missing"),
        (WEB.replace("shop", "Shop"), "metadata.namespace", "a namespace name"),
        (WEB.replace("namespace: shop", "namspace: shop"), "metadata.namspace", "no such field"),
        (WEB.replace("spec:", "specs:"), "specs", "no such field"),
        (WEB.replace("spec: {podSelector: {}}", ""), "spec", "missing"),
        (WEB.replace("metadata: {name: web, namespace: shop}", ""), "metadata", "missing"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, field: str, said: str) -> None:
    _, found, description = refused(text)[0]
    assert found == field
    assert said in description


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


def test_only_names_are_read_for_a_deletion() -> None:
    broken = WEB.replace("podSelector: {}", "ingress: nonsense")
    assert parse_refs(f"{broken}\n---\n{broken}\n---\n{API}") == [
        PolicyRef("NetworkPolicy", "shop", "web"),
        PolicyRef("NetworkPolicy", "shop", "api"),
    ]
    with pytest.raises(ManifestError):
        parse_refs(WEB.replace("name: web,", ""))
