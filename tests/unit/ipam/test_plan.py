"""Pools as they are asked for: which mask sizes go with which CIDRs."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from services.chassis.errors import InvalidArgument
from services.ipam.family import Network
from services.ipam.model import Pool
from services.ipam.plan import plan_pool

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
