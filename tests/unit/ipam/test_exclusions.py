"""Addresses that nobody gets: their text, their slots, and the networks that they make useless."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import InvalidArgument
from services.ipam.addresses import AddressRange
from services.ipam.exclusions import (
    Span,
    check_within,
    decode_spans,
    encode_spans,
    excluded_count,
    excluding,
    parse,
    parse_all,
    spans_within,
    touches,
)
from services.ipam.growth import useless


def number(text: str) -> int:
    return int(IPv4Address(text))


@pytest.mark.parametrize(
    ("text", "normal", "count"),
    [
        ("10.0.0.0/28", "10.0.0.0/28", 16),
        ("10.0.0.7", "10.0.0.7", 1),
        ("10.0.0.7/32", "10.0.0.7", 1),
        ("10.0.0.4-10.0.0.9", "10.0.0.4-10.0.0.9", 6),
        ("10.0.0.4 - 10.0.0.9", "10.0.0.4-10.0.0.9", 6),
        ("10.0.0.4-10.0.0.4", "10.0.0.4", 1),
        ("fd00:0:0::1-fd00::f", "fd00::1-fd00::f", 15),
        ("fd00:0::/120", "fd00::/120", 256),
        ("FD00::1/128", "fd00::1", 1),
    ],
)
def test_every_way_to_write_a_span_has_one_normal_form(text: str, normal: str, count: int) -> None:
    span = parse(text, "excluded[0]")
    assert (span.text, span.last - span.first + 1) == (normal, count)
    assert parse(span.text, "") == span


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "ADDRESS_INVALID"),
        ("10.0.0", "ADDRESS_INVALID"),
        ("10.0.0.1/28", "CIDR_INVALID"),
        ("10.0.0.9-10.0.0.4", "RANGE_INVALID"),
        ("10.0.0.9-fd00::1", "RANGE_INVALID"),
        ("10.0.0.4-", "ADDRESS_INVALID"),
        ("10.0.0.0/28-10.0.0.9", "ADDRESS_INVALID"),
        ("fe80::1%eth0", "ADDRESS_INVALID"),
    ],
)
def test_a_bad_span_names_field_and_value(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_all(["10.0.0.1", text], "excluded")
    assert caught.value.reason == reason
    assert caught.value.violations[0].field == "excluded[1]"


def test_spans_are_sorted_and_each_is_there_once() -> None:
    spans = parse_all(["fd00::1", "10.0.0.9", "10.0.0.1/32", "10.0.0.1"], "excluded")
    assert [span.text for span in spans] == ["10.0.0.1", "10.0.0.9", "fd00::1"]
    assert decode_spans(encode_spans(spans)) == spans
    assert excluding(IPv4Address("10.0.0.9"), spans) == "10.0.0.9"
    assert excluding(IPv4Address("10.0.0.8"), spans) is None


def test_spans_have_to_be_inside_the_pool() -> None:
    cidrs = [ip_network("10.0.0.0/24"), ip_network("10.0.1.0/24"), ip_network("fd00::/64")]
    # Across two CIDRs that lie beside each other.
    check_within(parse_all(["10.0.0.250-10.0.1.5", "fd00::/65"], "excluded"), cidrs, "excluded")
    for outside in ("10.0.1.250-10.0.2.5", "10.0.0.0/23", "fd00:1::", "11.0.0.0"):
        spans = parse_all(["10.0.0.1", outside], "excluded")
        if outside == "10.0.0.0/23":
            check_within(spans, cidrs, "excluded")
            continue
        with pytest.raises(InvalidArgument, match="not inside the pool") as caught:
            check_within(spans, cidrs, "excluded")
        assert caught.value.metadata["value"] == outside
    assert touches(parse("10.0.1.250-10.0.2.5", ""), cidrs)
    assert not touches(parse("10.0.2.0/24", ""), cidrs)


def test_the_slots_of_overlapping_spans_are_disjoint() -> None:
    spans = parse_all(
        ["10.0.0.0/30", "10.0.0.2-10.0.0.6", "10.0.0.7", "10.0.0.200-10.0.1.3", "fd00::1"], "excluded"
    )
    network = ip_network("10.0.0.0/24")
    assert spans_within(spans, network) == [(0, 7), (200, 255)]
    assert spans_within(spans, ip_network("10.0.1.0/24")) == [(0, 3)]
    assert spans_within(spans, ip_network("10.0.9.0/24")) == []
    # Slots 2 to 7 and 200 to 254: network, router and broadcast address are nobody's anyway.
    assert excluded_count(spans, AddressRange(network)) == 6 + 55


@given(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 40)), max_size=6), st.booleans())
def test_useless_networks_are_those_that_leave_no_address(pairs: list[tuple[int, int]], router: bool) -> None:
    base = number("10.0.0.0")
    spans = [Span(4, base + first, base + min(first + more, 127), "") for first, more in pairs]
    cidrs = [ip_network("10.0.0.0/26"), ip_network("10.0.0.64/27"), ip_network("10.0.0.96/28")]
    blocked = useless(spans, cidrs, 28, router=router)
    excluded = {value for span in spans for value in range(span.first, span.last + 1)}
    for cidr in cidrs:
        for network in cidr.subnets(new_prefix=28):
            first = int(network.network_address)
            pods = set(range(first + 2, first + 15))
            expected = pods <= excluded or (router and first + 1 in excluded)
            assert any(low <= first and first + 15 <= high for low, high in blocked) is expected
            # Never a part of one: what is carved is whole.
            assert expected or not any(low <= first + 15 and first <= high for low, high in blocked)
