"""Label sets: normal form, digests, reserved sets and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidArgument
from services.identity.labelset import digest, encode, normalise, reserved_number

LABELS = ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop", "k8s:tier=", "any:a=b"]


@given(st.permutations(LABELS))
def test_order_and_repeats_do_not_change_the_digest(labels: list[str]) -> None:
    assert digest(encode(normalise(labels))) == digest(encode(normalise(LABELS)))
    assert normalise([*labels, labels[0]]) == normalise(LABELS)


def test_different_sets_have_different_digests() -> None:
    sets = [["k8s:a=b"], ["k8s:a=c"], ["k8s:a=b", "k8s:c=d"], ["any:a=b"], ["k8s:a="]]
    assert len({digest(encode(normalise(labels))) for labels in sets}) == len(sets)


@pytest.mark.parametrize(
    ("label", "number"), [("reserved:host", 1), ("reserved:remote-node", 6), ("reserved:world-ipv6", 10)]
)
def test_a_reserved_label_alone_is_its_identity(label: str, number: int) -> None:
    assert reserved_number(normalise([label])) == number


def test_other_sets_are_not_reserved() -> None:
    assert reserved_number(normalise(LABELS)) is None
    assert reserved_number(normalise(["k8s:reserved=host"])) is None


@pytest.mark.parametrize(
    ("labels", "reason", "named"),
    [
        (["k8s:app=web", "k8s:app=db"], "LABEL_CONFLICT", "k8s:app"),
        (["app"], "LABEL_INVALID", "app"),
        (["k8s:app=a b"], "LABEL_INVALID", "k8s:app=a b"),
        (["reserved:unknown"], "LABEL_INVALID", "reserved:unknown"),
        (["reserved:nobody"], "LABEL_INVALID", "reserved:nobody"),
        (["reserved:host", "k8s:app=web"], "LABEL_CONFLICT", "reserved:host"),
        (["cidr:10.0.0.0/8"], "LABEL_UNSUPPORTED", "cidr:10.0.0.0/8"),
    ],
)
def test_what_is_refused_is_named(labels: list[str], reason: str, named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        normalise(labels)
    assert caught.value.reason == reason
    assert caught.value.violations[0].field == "labels"
    assert named in caught.value.violations[0].description
