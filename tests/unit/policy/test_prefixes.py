# SPDX-License-Identifier: Apache-2.0
"""Prefixes as text, as blocks in order, and the longest that holds an address."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.policy.bitmaps import PrefixIndex
from services.policy.prefixes import (
    PrefixUse,
    block_of,
    contains,
    longest_prefix,
    prefix_labels,
    prefix_problem,
    within,
)


@st.composite
def cidrs(draw: st.DrawFn) -> str:
    """Few addresses, so that prefixes are often within each other, at both ends of the space too."""
    network, bits = draw(st.sampled_from(((IPv4Network, 32), (IPv6Network, 128))))
    length = draw(st.integers(0, 4) | st.integers(bits - 4, bits))
    top, low = draw(st.integers(0, 15)), draw(st.integers(0, 15))
    address = top << (bits - 4) | draw(st.sampled_from((low, (1 << bits - 4) - 1 - low)))
    return str(network((address >> (bits - length) << (bits - length), length)))


@given(st.lists(cidrs(), max_size=12, unique=True), cidrs(), st.lists(cidrs(), max_size=2))
def test_the_index_finds_exactly_the_prefixes_within(known: list[str], cidr: str, excepts: list[str]) -> None:
    index = PrefixIndex()
    for number, each in enumerate(known):
        index.add(number, each)
    expected = {number for number, each in enumerate(known) if within(each, cidr, excepts)}
    assert set(index.within(cidr, excepts)) == expected
    for number, each in list(enumerate(known))[::2]:
        index.remove(number, each)
    assert set(index.within(cidr, excepts)) == {number for number in expected if number % 2}


@given(cidrs(), cidrs())
def test_a_block_widened_to_the_length_of_what_holds_it_is_that(one: str, other: str) -> None:
    small, large = block_of(one), block_of(other)
    held = (
        small.version == large.version
        and small.length >= large.length
        and small.widened(large.length) == large
    )
    assert held == contains(other, one)
    if held:
        assert large <= small < large.following


@pytest.mark.parametrize(
    ("cidr", "labels"),
    [
        ("10.0.0.0/8", {"cidr:10.0.0.0/8", "reserved:world", "reserved:world-ipv4"}),
        ("2001:db8::/32", {"cidr:2001:db8::/32", "reserved:world", "reserved:world-ipv6"}),
    ],
)
def test_a_prefix_has_labels_of_its_own_and_those_of_the_world(cidr: str, labels: set[str]) -> None:
    assert prefix_labels(cidr).strings == labels


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.1/32", "::/0", "2001:db8::/32"])
def test_canonical_text_has_no_problem(cidr: str) -> None:
    assert prefix_problem(cidr) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("10.0.0.0", "10.0.0.0/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("10.0.0.0/33", "a CIDR"),
        ("fe80::%eth0/64", "a CIDR"),
        ("web", "a CIDR"),
    ],
)
def test_a_problem_says_what_was_expected(text: str, expected: str) -> None:
    problem = prefix_problem(text)
    assert problem is not None
    assert expected in problem


def test_the_longest_prefix_in_this_use_holds_an_address() -> None:
    prefixes = {
        1: PrefixUse("10.0.0.0/8", by_identity=True, by_address=True),
        2: PrefixUse("10.1.0.0/16", by_identity=True),
        3: PrefixUse("10.1.2.0/24", by_address=True),
        4: PrefixUse("::/0", by_identity=True),
    }
    assert longest_prefix(prefixes, "10.1.2.3", by_address=False) == 2
    assert longest_prefix(prefixes, "10.1.2.3", by_address=True) == 3
    assert longest_prefix(prefixes, "10.1.3.3", by_address=True) == 1
    assert longest_prefix(prefixes, "192.0.2.1", by_address=False) is None
    assert longest_prefix(prefixes, "2001:db8::1", by_address=False) == 4
