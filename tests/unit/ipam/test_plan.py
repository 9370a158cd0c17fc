"""Pools as they are asked for: which mask sizes go with which CIDRs."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from services.chassis.errors import InvalidArgument
from services.ipam.exclusions import parse_all
from services.ipam.family import Network
from services.ipam.model import DrainingCidr, LabelSelector, Pool
from services.ipam.plan import PoolContent, plan_pool, plan_update

V4, V6 = ip_network("10.0.0.0/16"), ip_network("fd00::/48")


@pytest.mark.parametrize(
    ("cidrs", "masks", "planned", "families", "capacity"),
    [
        ([V4], (24, 0), (24, 0), (4,), 256),
        ([V6], (0, 0), (0, 112), (6,), 1 << 64),
        ([V6], (0, 64), (0, 64), (6,), 1 << 16),
        ([V6, V4], (24, 56), (24, 56), (4, 6), 256),
        ([V4, V6], (24, 52), (24, 52), (4, 6), 16),
    ],
)
def test_a_pool_holds_as_many_nodes_as_its_scarcer_family(
    cidrs: list[Network],
    masks: tuple[int, int],
    planned: tuple[int, int],
    families: tuple[int, ...],
    capacity: int,
) -> None:
    pool = plan_pool("p", cidrs, *masks)
    assert pool == Pool("p", tuple(cidrs), *planned)
    assert pool.families == families
    assert pool.capacity == capacity


@pytest.mark.parametrize(
    ("cidrs", "masks", "field", "expected"),
    [
        ([V4], (0, 0), "node_mask_size", "16 to 30"),
        ([V4], (24, 112), "node_mask_size_ipv6", "expected 0"),
        ([V6], (24, 112), "node_mask_size", "expected 0"),
        ([V4, V6], (24, 126), "node_mask_size_ipv6", "48 to 112"),
        ([V4, V6], (31, 112), "node_mask_size", "16 to 30"),
    ],
)
def test_a_mask_without_its_family_or_out_of_range_is_refused(
    cidrs: list[Network], masks: tuple[int, int], field: str, expected: str
) -> None:
    with pytest.raises(InvalidArgument, match=expected) as caught:
        plan_pool("p", cidrs, *masks)
    assert caught.value.reason == "MASK_SIZE_INVALID"
    assert caught.value.metadata["field"] == field


def test_the_order_of_cidrs_does_not_make_another_pool() -> None:
    pool = plan_pool("p", [V4, V6], 24, 112)
    assert pool.same_as(plan_pool("p", [V6, V4], 24, 0))
    assert not pool.same_as(plan_pool("p", [V4, V6], 24, 96))
    assert not pool.same_as(plan_pool("p", [V4], 24, 0))


POOL = plan_pool("p", [V4, V6], 24, 112)
MORE = ip_network("10.9.0.0/20")


def test_what_changes_nothing_leaves_the_pool_as_it_is() -> None:
    assert plan_update(POOL, PoolContent((V4, V6))) is POOL


def test_cidrs_come_go_and_come_back() -> None:
    extended = plan_update(POOL, PoolContent((V4, V6, MORE)))
    assert (extended.cidrs, extended.draining, extended.revision) == ((V4, V6, MORE), (), 2)
    drained = plan_update(extended, PoolContent((MORE,)))
    assert drained.cidrs == (MORE,)
    assert drained.draining == (DrainingCidr(V4), DrainingCidr(V6))
    assert (drained.families, drained.capacity, drained.revision) == ((4,), 16, 3)
    # The mask size of a family outlives its CIDRs: they may come back.
    back = plan_update(drained, PoolContent((V6, MORE)))
    assert (back.cidrs, back.draining) == ((V6, MORE), (DrainingCidr(V4),))


def test_selectors_and_exclusions_are_content() -> None:
    spans = parse_all(["10.0.0.0/28"], "excluded")
    changed = plan_update(POOL, PoolContent((V4, V6), spans, LabelSelector()))
    assert (changed.excluded, changed.pod_selector, changed.revision) == (spans, LabelSelector(), 2)
    assert not changed.same_as(POOL)
    assert plan_update(changed, PoolContent((V4, V6), spans, LabelSelector())) is changed
    assert plan_update(changed, PoolContent((V4, V6))).revision == 3


def test_exclusions_lie_inside_what_the_pool_has_or_drains() -> None:
    spans = parse_all(["10.0.0.0/28"], "excluded")
    drained = plan_update(POOL, PoolContent((MORE, V6), spans))
    assert drained.excluded == spans
    outside = parse_all(["10.0.0.0/28", "10.10.0.1"], "excluded")
    with pytest.raises(InvalidArgument, match=r"10\.10\.0\.1") as caught:
        plan_update(POOL, PoolContent((V4, V6), outside))
    assert caught.value.reason == "EXCLUSION_OUTSIDE"
    with pytest.raises(InvalidArgument, match="not inside the pool"):
        plan_pool("p", [V4], 24, 0, excluded=outside)


@pytest.mark.parametrize(
    ("pool", "cidr", "expected"),
    [
        (POOL, "10.9.0.0/25", "0 to 24"),
        (POOL, "fd01::/32", "48 to 112"),
        (POOL, "fd01::/113", "48 to 112"),
        (plan_pool("p", [V4], 24, 0), "fd01::/64", "without a mask size"),
    ],
)
def test_a_new_cidr_has_to_fit_the_mask_sizes(pool: Pool, cidr: str, expected: str) -> None:
    with pytest.raises(InvalidArgument, match=expected) as caught:
        plan_update(pool, PoolContent((V4, ip_network(cidr))))
    assert caught.value.reason == "MASK_SIZE_INVALID"
    assert caught.value.metadata["field"] == "cidrs[1]"
