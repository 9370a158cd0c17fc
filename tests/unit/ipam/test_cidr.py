"""CIDR arithmetic: parsing, overlap, and carving node CIDRs out of pools."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidArgument
from services.ipam.cidr import (
    capacity_of,
    carve,
    check_node_mask,
    first_overlap,
    parse_address,
    parse_cidr,
)


def net(text: str) -> IPv4Network:
    return IPv4Network(text)


def test_parses_a_network() -> None:
    assert parse_cidr("10.244.0.0/16", "cidrs[0]") == net("10.244.0.0/16")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.244.0.1/16", "10.244.0.0/16"),
        ("10.244.0.0", "10.244.0.0/32"),
        ("10.244.0.0/33", "10.244.0.0/16"),
        ("nonsense", "10.244.0.0/16"),
        ("fd00::/64", "IPv4"),
    ],
)
def test_a_bad_cidr_names_field_value_and_expectation(text: str, expected: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_cidr(text, "cidrs[3]")
    assert caught.value.violations[0].field == "cidrs[3]"
    assert text in str(caught.value)
    assert expected in caught.value.violations[0].description


@pytest.mark.parametrize("text", ["10.0.0.256", "", "fd00::1", "10.0.0.0/8"])
def test_a_bad_address_names_its_field(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_address(text, "address")
    assert caught.value.metadata["field"] == "address"


@pytest.mark.parametrize("mask", [15, 31, 32])
def test_a_mask_that_does_not_fit_is_refused_with_the_range_that_would(mask: int) -> None:
    with pytest.raises(InvalidArgument, match="expected 16 to 30") as caught:
        check_node_mask(net("10.0.0.0/16"), mask, "node_mask_size")
    assert caught.value.reason == "MASK_SIZE_INVALID"


@pytest.mark.parametrize("mask", [16, 24, 30])
def test_masks_at_the_edges_fit(mask: int) -> None:
    check_node_mask(net("10.0.0.0/16"), mask, "node_mask_size")


def test_overlap_names_both_networks() -> None:
    assert first_overlap([net("10.1.0.0/16")], [net("10.0.0.0/8")]) == (net("10.1.0.0/16"), net("10.0.0.0/8"))
    assert first_overlap([net("10.0.0.0/8"), net("10.1.0.0/16")], []) == (
        net("10.1.0.0/16"),
        net("10.0.0.0/8"),
    )
    assert first_overlap([net("10.0.0.0/16")], [net("10.1.0.0/16")]) is None


def test_carving_takes_the_lowest_free_network() -> None:
    pool = [net("10.0.0.0/22")]
    assert carve(pool, 24, []) == net("10.0.0.0/24")
    assert carve(pool, 24, [net("10.0.0.0/24"), net("10.0.2.0/24")]) == net("10.0.1.0/24")


def test_carving_goes_on_in_the_next_cidr() -> None:
    pool = [net("10.9.0.0/24"), net("10.1.0.0/24")]
    assert carve(pool, 24, [net("10.9.0.0/24")]) == net("10.1.0.0/24")
    assert carve(pool, 24, pool) is None


def test_carving_steps_over_networks_of_other_sizes() -> None:
    pool = [net("10.0.0.0/24")]
    assert carve(pool, 26, [net("10.0.0.0/28")]) == net("10.0.0.64/26")
    assert carve(pool, 28, [net("10.0.0.0/25")]) == net("10.0.0.128/28")
    assert carve(pool, 26, [net("10.0.0.32/28"), net("10.0.0.64/30")]) == net("10.0.0.128/26")


def test_capacity_counts_node_cidrs() -> None:
    assert capacity_of([net("10.0.0.0/16"), net("10.1.0.0/24")], 24) == 257


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[IPv4Network], int]:
    blocks = draw(st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True))
    prefix = draw(st.integers(22, 26))
    cidrs = [IPv4Network((0x0A000000 + block * 1024, prefix)) for block in blocks]
    return cidrs, draw(st.integers(prefix, 29))


@given(pools(), st.data())
def test_carving_until_full_gives_disjoint_networks_and_then_none(
    pool: tuple[list[IPv4Network], int], data: st.DataObject
) -> None:
    cidrs, mask = pool
    taken: list[IPv4Network] = []
    while (
        network := carve(cidrs, mask, data.draw(st.permutations(taken)) if len(taken) < 6 else taken)
    ) is not None:
        assert network.prefixlen == mask
        assert any(network.subnet_of(cidr) for cidr in cidrs)
        assert not any(network.overlaps(other) for other in taken)
        taken.append(network)
    assert len(taken) == capacity_of(cidrs, mask)
