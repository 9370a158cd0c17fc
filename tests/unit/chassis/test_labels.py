from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidArgument
from services.chassis.labels import Label, LabelSet, parse_label, pod_labels


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("k8s:app=web", Label("k8s", "app", "web")),
        ("k8s:app=", Label("k8s", "app", "")),
        ("k8s:app.kubernetes.io/name=web", Label("k8s", "app.kubernetes.io/name", "web")),
        (
            "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
            Label("k8s", "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", "shop"),
        ),
        ("reserved:host", Label("reserved", "host")),
        ("cidr:10.0.0.0/8", Label("cidr", "10.0.0.0/8")),
        ("cidr:fd00--/8", Label("cidr", "fd00--/8")),
        ("any:tier=db", Label("any", "tier", "db")),
    ],
)
def test_a_label_is_parsed_and_written_back(text: str, label: Label) -> None:
    assert parse_label(text) == label
    assert label.format() == str(label) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "app=web",
        "app",
        ":app=web",
        "K8S:app=web",
        "k8s:=web",
        "k8s:-app=web",
        "k8s:app=we b",
        "k8s:app=" + "x" * 64,
        "k8s:" + "x" * 64 + "=web",
        "k8s:Upper.Prefix/name=web",
        "k8s:a/b/c=web",
        "k8s:/name=web",
        "reserved:host=yes",
        "reserved:",
        "cidr:10.0.0.1/8",
        "cidr:nonsense",
        "cidr:10.0.0.0/8=x",
        "k8s:app=web\n",
    ],
)
def test_a_malformed_label_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_label(text)
    assert caught.value.reason == "LABEL_INVALID"
    assert caught.value.violations[0].field == "labels"
    assert repr(text) in caught.value.message


def test_a_label_set_is_sorted_and_without_repetition() -> None:
    labels = LabelSet(["k8s:b=2", Label("k8s", "a", "1"), "k8s:b=2"])
    assert labels == ("k8s:a=1", "k8s:b=2")
    assert labels == LabelSet(["k8s:b=2", "k8s:a=1"]) and hash(labels) == hash(LabelSet(reversed(labels)))
    assert labels.get("b") == "2"
    assert labels.get("b", "reserved") is None
    assert labels.parsed() == (Label("k8s", "a", "1"), Label("k8s", "b", "2"))


def test_two_values_for_one_key_are_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        LabelSet(["k8s:app=web", "k8s:app=db"])
    assert caught.value.reason == "LABEL_CONFLICT"
    LabelSet(["k8s:app=web", "any:app=db"])


def test_a_pods_labels_carry_its_namespace() -> None:
    assert pod_labels("shop", {"app": "web"}, {"team": "blue"}) == (
        "k8s:app=web",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
        "k8s:io.cilium.k8s.namespace.labels.team=blue",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.kubernetes.pod.namespace=shop",
    )


def test_a_pods_labels_carry_its_service_account() -> None:
    labels = pod_labels("shop", {"app": "web"}, {}, "front")
    assert labels.get("io.cilium.k8s.policy.serviceaccount") == "front"
    assert labels == pod_labels("shop", {"app": "web", "io.cilium.k8s.policy.serviceaccount": "front"}, {})
    with pytest.raises(InvalidArgument) as caught:
        pod_labels("shop", {"io.cilium.k8s.policy.serviceaccount": "back"}, {}, "front")
    assert caught.value.reason == "LABEL_CONFLICT"


def test_a_pod_cannot_claim_another_cluster() -> None:
    own = pod_labels("shop", {"io.cilium.k8s.policy.cluster": "default"}, {})
    assert own == pod_labels("shop", {}, {})
    with pytest.raises(InvalidArgument):
        pod_labels("shop", {"io.cilium.k8s.policy.cluster": "other"}, {})


def test_the_namespaces_name_cannot_be_relabelled() -> None:
    labels = pod_labels("shop", {}, {"kubernetes.io/metadata.name": "bank"})
    assert labels.get("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name") == "shop"


@pytest.mark.parametrize(
    "key", ["io.kubernetes.pod.namespace", "io.cilium.k8s.namespace.labels.team", "bad key", ""]
)
def test_a_pod_cannot_claim_a_namespace_or_a_bad_key(key: str) -> None:
    with pytest.raises(InvalidArgument):
        pod_labels("shop", {key: "x"}, {})


@pytest.mark.parametrize("namespace", ["", "Shop", "a.b", "x" * 64])
def test_a_malformed_namespace_is_refused(namespace: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        pod_labels(namespace, {}, {})
    assert caught.value.reason == "NAMESPACE_INVALID"


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        label = parse_label(text)
    except InvalidArgument:
        return
    assert parse_label(label.format()) == label
