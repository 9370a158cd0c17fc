"""Which pool a workload's addresses come from."""

from __future__ import annotations

import pytest

from services.chassis.errors import FailedPrecondition, InvalidArgument
from services.ipam.choice import choose
from services.ipam.model import LabelSelector, Mode, PoolSelectors, Requirement, Workload
from services.ipam.selectors import check_selector, decode_selector, encode_selector, selects

OURS, CILIUM = "fimbria.io/ip-pool", "ipam.cilium.io/ip-pool"
SELECTORS = [
    PoolSelectors("blue", pod=LabelSelector((("color", "blue"),))),
    PoolSelectors("shops", namespace=LabelSelector((("team", "shop"),))),
    PoolSelectors("named", namespace=LabelSelector((("kubernetes.io/metadata.name", "billing"),))),
    PoolSelectors(
        "both",
        pod=LabelSelector((("color", "green"),)),
        namespace=LabelSelector((("team", "lab"),)),
    ),
    PoolSelectors("one-pod", pod=LabelSelector((("io.kubernetes.pod.name", "db-0"),))),
    PoolSelectors("nobody"),
]


def chosen(workload: Workload | None, requested: str = "") -> str:
    return choose("multi-pool", "own", requested, workload, SELECTORS)


@pytest.mark.parametrize("mode", ["kubernetes", "cluster-pool"])
def test_the_other_modes_know_the_nodes_own_pool_only(mode: Mode) -> None:
    workload = Workload("billing", "x", {"color": "blue"}, {OURS: "red"})
    assert choose(mode, "own", "", workload, SELECTORS) == "own"
    assert choose(mode, "own", "own", workload, SELECTORS) == "own"
    with pytest.raises(FailedPrecondition, match=r"'red'.*'own'") as caught:
        choose(mode, "own", "red", None, [])
    assert caught.value.reason == "POOL_NOT_ALLOWED"
    assert caught.value.metadata == {"requested_pool": "red", "pool": "own", "mode": mode}


@pytest.mark.parametrize(
    ("workload", "requested", "expected"),
    [
        (None, "", "own"),
        (None, "red", "red"),
        (Workload(), "", "own"),
        (Workload(annotations={OURS: "a"}), "red", "red"),
        (Workload(annotations={OURS: "a", CILIUM: "b"}), "", "a"),
        (Workload(annotations={CILIUM: "b"}, namespace_annotations={OURS: "c"}), "", "b"),
        (Workload(annotations={OURS: " "}, namespace_annotations={CILIUM: "d"}), "", "d"),
        (Workload(labels={"color": "blue"}, namespace_annotations={OURS: "c"}), "", "c"),
        (Workload(labels={"color": "blue"}), "", "blue"),
        (Workload(namespace_labels={"team": "shop"}), "", "shops"),
        (Workload("billing"), "", "named"),
        (Workload("data", "db-0"), "", "one-pod"),
        (Workload(labels={"color": "green"}, namespace_labels={"team": "lab"}), "", "both"),
        (Workload(labels={"color": "green"}, namespace_labels={"team": "other"}), "", "own"),
    ],
)
def test_the_first_that_names_a_pool_wins(workload: Workload | None, requested: str, expected: str) -> None:
    assert chosen(workload, requested) == expected


def test_several_pools_that_select_one_workload_are_ambiguous() -> None:
    with pytest.raises(FailedPrecondition, match=OURS) as caught:
        chosen(Workload("a", "b", {"color": "blue"}, namespace_labels={"team": "shop"}))
    assert caught.value.reason == "POOL_AMBIGUOUS"
    assert caught.value.metadata == {"workload": "a/b", "pools": "blue, shops"}
    # An annotation settles it.
    settled = Workload("a", "b", {"color": "blue"}, {OURS: "blue"}, {"team": "shop"})
    assert chosen(settled) == "blue"


@pytest.mark.parametrize(
    ("workload", "requested", "field"),
    [
        (Workload(annotations={CILIUM: "Not A Pool"}), "", f'workload.annotations["{CILIUM}"]'),
        (Workload(namespace_annotations={OURS: "-"}), "", f'workload.namespace_annotations["{OURS}"]'),
        (None, "a_b", "pool"),
    ],
)
def test_what_cannot_be_a_pool_names_the_field(workload: Workload | None, requested: str, field: str) -> None:
    with pytest.raises(InvalidArgument, match="DNS label") as caught:
        chosen(workload, requested)
    assert caught.value.reason == "POOL_NAME_INVALID"
    assert caught.value.violations[0].field == field


LABELS = {"app": "web", "tier": ""}


@pytest.mark.parametrize(
    ("requirement", "holds"),
    [
        (Requirement("app", "In", ("db", "web")), True),
        (Requirement("app", "In", ("db",)), False),
        (Requirement("zone", "In", ("db",)), False),
        (Requirement("tier", "In", ("",)), True),
        (Requirement("app", "NotIn", ("db",)), True),
        (Requirement("app", "NotIn", ("web",)), False),
        (Requirement("zone", "NotIn", ("web",)), True),
        (Requirement("tier", "Exists"), True),
        (Requirement("zone", "Exists"), False),
        (Requirement("tier", "DoesNotExist"), False),
        (Requirement("zone", "DoesNotExist"), True),
    ],
)
def test_requirements_mean_what_they_do_in_kubernetes(requirement: Requirement, holds: bool) -> None:
    assert selects(LabelSelector((), (requirement,)), LABELS) is holds
    assert selects(LabelSelector((("app", "web"),), (requirement,)), LABELS) is holds
    assert not selects(LabelSelector((("app", "db"),), (requirement,)), LABELS)


def test_an_empty_selector_selects_everything() -> None:
    assert selects(LabelSelector(), {})
    assert choose("multi-pool", "own", "", Workload(), [PoolSelectors("all", LabelSelector())]) == "all"


@pytest.mark.parametrize(
    ("selector", "field", "expected"),
    [
        (LabelSelector((("bad key", "v"),)), "s.match_labels['bad key']", "bad key"),
        (LabelSelector((("app", "no/slash"),)), "s.match_labels['app']", "no/slash"),
        (LabelSelector((), (Requirement("app", "In"),)), "s.match_expressions[0].values", "at least one"),
        (
            LabelSelector((), (Requirement("a", "Exists"), Requirement("b", "DoesNotExist", ("x",)))),
            "s.match_expressions[1].values",
            "no values",
        ),
        (LabelSelector((), (Requirement("app", "In", ("a b",)),)), "s.match_expressions[0]", "a b"),
    ],
)
def test_a_selector_that_cannot_be_is_refused(selector: LabelSelector, field: str, expected: str) -> None:
    with pytest.raises(InvalidArgument, match=expected) as caught:
        check_selector(selector, "s")
    assert caught.value.reason == "SELECTOR_INVALID"
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    "selector",
    [
        None,
        LabelSelector(),
        LabelSelector((("a", "1"), ("b", ""))),
        LabelSelector((("a", "1"),), (Requirement("k", "In", ("x", "y")), Requirement("k", "Exists"))),
    ],
)
def test_a_stored_selector_is_the_same(selector: LabelSelector | None) -> None:
    assert decode_selector(encode_selector(selector)) == selector
