"""Which labels are security-relevant, and what another filter would change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidArgument
from services.chassis.labels import LabelSet, pod_labels
from services.identity.filter_preview import FilterChange, preview
from services.identity.label_filter import DEFAULT_PATTERNS, LabelFilter
from services.identity.model import Identity

NAMESPACE = "k8s:io.kubernetes.pod.namespace=shop"


def kept(patterns: list[str], *labels: str) -> list[str]:
    return list(LabelFilter.parse(patterns).apply(LabelSet(labels)))


def test_the_default_leaves_out_what_controllers_write_and_nothing_else() -> None:
    left_out = {
        "pod-template-hash": "5d4",
        "pod-template-generation": "3",
        "controller-revision-hash": "6f",
        "statefulset.kubernetes.io/pod-name": "db-0",
        "apps.kubernetes.io/pod-index": "0",
        "batch.kubernetes.io/job-completion-index": "2",
        "batch.kubernetes.io/controller-uid": "u",
        "controller-uid": "u",
    }
    stay = {"app": "web", "job-name": "import", "pod-template-hash-of": "x", "controller-uid.example": "y"}
    labels = pod_labels("shop", {**left_out, **stay}, {"team": "a"}, "default")
    default = LabelFilter.parse([])
    assert default.texts == DEFAULT_PATTERNS
    assert default.apply(labels) == pod_labels("shop", stay, {"team": "a"}, "default")


def test_labels_of_users_pass_the_default_filter_unchanged() -> None:
    labels = pod_labels("shop", {"app": "web", "tier": "front"}, {"team": "a"}, "web")
    assert LabelFilter.parse([]).apply(labels) is labels


def test_the_first_pattern_that_matches_decides() -> None:
    labels = ["k8s:app=web", "k8s:app.version=2", "k8s:tier=front"]
    assert kept(["k8s:app.version", "!k8s:app"], *labels) == ["k8s:app.version=2"]
    assert kept(["!k8s:app"], *labels) == ["k8s:tier=front"]
    assert kept(["!k8s:app$"], *labels) == ["k8s:app.version=2", "k8s:tier=front"]
    assert kept(["k8s:app$", "!k8s:app", "k8s:"], *labels) == ["k8s:app=web", "k8s:tier=front"]


def test_unmatched_labels_are_left_out_once_a_pattern_includes() -> None:
    assert kept(["k8s:app"], "k8s:app=web", "k8s:tier=front") == ["k8s:app=web"]


def test_patterns_without_a_source_mean_any() -> None:
    labels = ["container:app=web", "k8s:app=web", "k8s:tier=front"]
    assert kept(["!app"], *labels) == kept(["!any:app"], *labels) == ["k8s:tier=front"]
    assert kept(["!container:app"], *labels) == labels[1:]


def test_a_set_of_which_nothing_is_left_keeps_its_namespace() -> None:
    assert kept(["k8s:team"], "k8s:app=web", NAMESPACE) == [NAMESPACE]
    assert kept(["!k8s:"], "k8s:app=web", NAMESPACE) == [NAMESPACE]


def test_a_set_without_a_namespace_is_not_emptied() -> None:
    assert kept(["k8s:team"], "k8s:app=web") == ["k8s:app=web"]


def test_reserved_labels_are_always_included() -> None:
    assert kept(["k8s:app"], "reserved:host") == ["reserved:host"]


@pytest.mark.parametrize(
    ("patterns", "field", "words"),
    [
        (["k8s:app", "!"], "patterns[1]", "names no key"),
        (["$"], "patterns[0]", "names no key"),
        (["k8s:$"], "patterns[0]", "names no key"),
        (["K8s:app"], "patterns[0]", "the source 'K8s'"),
        ([":app"], "patterns[0]", "the source ''"),
        (["k8s:app=web"], "patterns[0]", "the key prefix 'app=web'"),
        (["k8s:a$b"], "patterns[0]", "$ only at the end"),
        (["!reserved:host"], "patterns[0]", "no filter leaves out"),
        (["cidr:10.0.0.0/8"], "patterns[0]", "no filter leaves out"),
        (["k8s:app", "k8s:tier", "!k8s:app"], "patterns[2]", "repeats patterns[0]"),
        (["app", "any:app"], "patterns[1]", "repeats patterns[0]"),
    ],
)
def test_bad_patterns_are_named(patterns: list[str], field: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        LabelFilter.parse(patterns)
    assert caught.value.reason == "FILTER_INVALID"
    assert caught.value.metadata["pattern"] in patterns
    (violation,) = caught.value.violations
    assert violation.field == field
    assert words in violation.description
    assert "expected" in violation.description


_KEYS = st.sampled_from(["app", "app.a", "tier", "pod-template-hash", "io.kubernetes.pod.namespace"])
_SOURCES = st.sampled_from(["k8s", "container"])
_PATTERNS = st.lists(
    st.builds(
        lambda no, source, key, end: f"{no}{source}{key}{end}",
        st.sampled_from(["", "!"]),
        st.sampled_from(["", "k8s:", "container:"]),
        st.sampled_from(["a", "app", "t", "pod-template-hash"]),
        st.sampled_from(["", "$"]),
    ),
    max_size=5,
    unique_by=lambda text: text.removeprefix("!"),
)


@given(_PATTERNS, st.dictionaries(st.tuples(_SOURCES, _KEYS), st.sampled_from("xy"), min_size=1))
def test_filtered_sets_are_in_normal_form_and_stay_as_they_are(
    patterns: list[str], given_labels: dict[tuple[str, str], str]
) -> None:
    label_filter = LabelFilter.parse(patterns)
    labels = LabelSet(f"{source}:{key}={value}" for (source, key), value in given_labels.items())
    after = label_filter.apply(labels)
    assert after
    assert set(after) <= set(labels)
    assert LabelSet(after) == after
    assert label_filter.apply(after) == after
    assert LabelFilter.parse(label_filter.texts) == label_filter


def test_a_preview_tells_changes_entries_and_merges() -> None:
    blue, green, plain, other = (
        Identity(256, LabelSet([NAMESPACE, "k8s:app=web", "k8s:slot=blue"]), 1),
        Identity(257, LabelSet([NAMESPACE, "k8s:app=web", "k8s:slot=green"]), 2),
        Identity(258, LabelSet([NAMESPACE, "k8s:app=web"]), 3),
        Identity(259, LabelSet([NAMESPACE, "k8s:app=db", "k8s:slot=blue"]), 4),
    )
    found = preview(LabelFilter.parse(["!k8s:slot$"]), [blue, green, plain, other], {256: 3, 258: 7, 259: 1})
    assert found.changes == [
        FilterChange(blue, plain.labels, 258, 3),
        FilterChange(green, plain.labels, 258, 0),
        FilterChange(other, LabelSet([NAMESPACE, "k8s:app=db"]), 0, 1),
    ]
    assert (found.entries, found.merged) == (4, 1)


def test_a_filter_that_changes_nothing_says_so() -> None:
    found = preview(LabelFilter.parse([]), [Identity(256, LabelSet(["k8s:app=web"]), 1)], {256: 1})
    assert (list(found.changes), found.entries, found.merged) == ([], 0, 0)
