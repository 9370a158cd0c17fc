"""CIDR arithmetic: parsing, overlap, and carving node CIDRs out of pools."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidArgument
from services.ipam.cidr import (
    capacity_of,
    carve,
    check_node_mask,
    first_overlap,
    merged,
    parse_address,
    parse_cidr,
    parse_ipv4,
    parse_ipv6,
    span_of,
)
from services.ipam.family import Network


def net(text: str) -> Network:
    return ip_network(text)


def test_parses_a_network() -> None:
    assert parse_cidr("10.244.0.0/16", "cidrs[0]") == net("10.244.0.0/16")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.244.0.1/16", "10.244.0.0/16"),
        ("10.244.0.0", "10.244.0.0/32"),
        ("10.244.0.0/33", "10.244.0.0/16"),
        ("nonsense", "10.244.0.0/16"),
        ("fd00::1/64", "fd00::/64"),
        ("fd00::", "fd00::/128"),
        ("fd00::/129", "fd00:10:244::/48"),
        ("fe80::%1/64", "fd00:10:244::/48"),
    ],
)
def test_a_bad_cidr_names_field_value_and_expectation(text: str, expected: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_cidr(text, "cidrs[3]")
    assert caught.value.violations[0].field == "cidrs[3]"
    assert text in str(caught.value)
    assert expected in caught.value.violations[0].description


@pytest.mark.parametrize("text", ["10.0.0.256", "", "10.0.0.0/8", "fd00::g", "fe80::1%eth0"])
def test_a_bad_address_names_its_field(text: str) -> None:
    for parse in (parse_address, parse_ipv4, parse_ipv6):
        with pytest.raises(InvalidArgument) as caught:
            parse(text, "address")
        assert caught.value.metadata["field"] == "address"
        assert caught.value.reason == "ADDRESS_INVALID"


def test_an_address_of_the_other_family_is_refused() -> None:
    assert parse_ipv4("10.0.0.1", "address") == IPv4Address("10.0.0.1")
    assert parse_ipv6("FD00::01", "ipv6") == IPv6Address("fd00::1")
    with pytest.raises(InvalidArgument, match="is IPv6; expected an IPv4 address"):
        parse_ipv4("fd00::1", "address")
    with pytest.raises(InvalidArgument, match="is IPv4; expected an IPv6 address"):
        parse_ipv6("10.0.0.1", "ipv6")


@pytest.mark.parametrize("mask", [15, 31, 32])
def test_a_mask_that_does_not_fit_is_refused_with_the_range_that_would(mask: int) -> None:
    with pytest.raises(InvalidArgument, match="expected 16 to 30") as caught:
        check_node_mask(net("10.0.0.0/16"), mask, "node_mask_size")
    assert caught.value.reason == "MASK_SIZE_INVALID"


@pytest.mark.parametrize("mask", [16, 24, 30])
def test_masks_at_the_edges_fit(mask: int) -> None:
    check_node_mask(net("10.0.0.0/16"), mask, "node_mask_size")


@pytest.mark.parametrize(
    ("cidr", "mask", "expected"),
    [("fd00::/48", 47, "48 to 112"), ("fd00::/48", 113, "48 to 112"), ("fd00::/64", 127, "64 to 126")],
)
def test_ipv6_masks_have_their_own_range(cidr: str, mask: int, expected: str) -> None:
    with pytest.raises(InvalidArgument, match=f"expected {expected}"):
        check_node_mask(net(cidr), mask, "node_mask_size_ipv6")
    check_node_mask(net(cidr), 112, "node_mask_size_ipv6")


def test_overlap_names_both_networks() -> None:
    assert first_overlap([net("10.1.0.0/16")], [net("10.0.0.0/8")]) == (net("10.1.0.0/16"), net("10.0.0.0/8"))
    assert first_overlap([net("10.0.0.0/8"), net("10.1.0.0/16")], []) == (
        net("10.1.0.0/16"),
        net("10.0.0.0/8"),
    )
    assert first_overlap([net("10.0.0.0/16")], [net("10.1.0.0/16")]) is None
    assert first_overlap([net("0.0.0.0/0")], [net("::/0")]) is None
    assert first_overlap([net("fd00:1::/64")], [net("fd00::/16")]) == (net("fd00:1::/64"), net("fd00::/16"))


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


def test_carving_ipv6_costs_nothing_by_the_size_of_the_pool() -> None:
    pool = [net("fd00:10:244::/48")]
    first = net("fd00:10:244::/112")
    assert carve(pool, 112, []) == first
    assert carve(pool, 112, [first]) == net("fd00:10:244::1:0/112")
    assert carve(pool, 112, [first, net("fd00:10:244:8000::/49")]) == net("fd00:10:244::1:0/112")
    assert capacity_of(pool, 112) == 1 << 64


def test_capacity_counts_node_cidrs() -> None:
    assert capacity_of([net("10.0.0.0/16"), net("10.1.0.0/24")], 24) == 257


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[Network], int]:
    blocks = draw(st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True))
    prefix = draw(st.integers(22, 26))
    mask = draw(st.integers(prefix, 29))
    if draw(st.booleans()):
        base = int(IPv6Address("fd00::"))
        return [IPv6Network((base + block * 1024, prefix + 96)) for block in blocks], mask + 96
    return [IPv4Network((0x0A000000 + block * 1024, prefix)) for block in blocks], mask


@given(pools(), st.data())
def test_carving_until_full_gives_disjoint_networks_and_then_none(
    pool: tuple[list[Network], int], data: st.DataObject
) -> None:
    cidrs, mask = pool
    taken: list[Network] = []
    while (
        network := carve(cidrs, mask, data.draw(st.permutations(taken)) if len(taken) < 6 else taken)
    ) is not None:
        assert network.prefixlen == mask
        assert any(network[0] in cidr and network[-1] in cidr for cidr in cidrs)
        assert not any(network.overlaps(other) for other in taken)
        taken.append(network)
    assert len(taken) == capacity_of(cidrs, mask)


@pytest.mark.parametrize(
    "text", ["10.1.2.0/24", "0.0.0.0/0", "10.0.0.7/32", "fd00:1::/64", "::/0", "fd00::1/128"]
)
def test_a_stored_cidr_is_read_as_numbers(text: str) -> None:
    network = net(text)
    assert span_of(text) == (int(network.network_address), int(network.broadcast_address))


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda pair: (pair[0], sum(pair)))))
def test_merged_spans_are_the_same_numbers(spans: list[tuple[int, int]]) -> None:
    found = merged(spans)
    numbers = [value for first, last in found for value in range(first, last + 1)]
    assert numbers == sorted({value for first, last in spans for value in range(first, last + 1)})
    assert all(later[0] > earlier[1] + 1 for earlier, later in pairwise(found))
