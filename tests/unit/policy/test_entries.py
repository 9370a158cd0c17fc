# SPDX-License-Identifier: Apache-2.0
"""Port ranges as prefixes, and verdicts over entries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.policy.entries import (
    EntryKey,
    EntryValue,
    SubjectPolicy,
    judge,
    port_prefixes,
)
from services.policy.rules import Direction

IN, OUT = Direction.INGRESS, Direction.EGRESS
TCP, UDP = 6, 17


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_prefixes_cover_exactly_the_range(one: int, other: int) -> None:
    first, last = min(one, other), max(one, other)
    expected = first
    for port, length in port_prefixes(first, last):
        size = 1 << (16 - length)
        assert port == expected
        assert port % size == 0
        expected = port + size
    assert expected == last + 1


@pytest.mark.parametrize(
    ("first", "last", "prefixes"),
    [
        (80, 80, [(80, 16)]),
        (0, 65535, [(0, 0)]),
        (8080, 8095, [(8080, 12)]),
        (80, 95, [(80, 12)]),
        (80, 444, [(80, 12), (96, 11), (128, 9), (256, 9), (384, 11), (416, 12), (432, 13), (440, 14),
                   (444, 16)]),
        (65535, 65535, [(65535, 16)]),
    ],
)  # fmt: skip
def test_prefixes_are_as_few_as_can_be(first: int, last: int, prefixes: list[tuple[int, int]]) -> None:
    assert list(port_prefixes(first, last)) == prefixes


def policy(*entries: tuple[EntryKey, EntryValue], enforced: bool = True) -> SubjectPolicy:
    return SubjectPolicy((enforced, enforced), ((), ()), dict(entries))


LEVELS = [
    EntryKey(IN, 300, TCP, 80, 16),
    EntryKey(IN, 300, TCP, 64, 10),
    EntryKey(IN, 0, TCP, 80, 16),
    EntryKey(IN, 0, TCP, 64, 10),
    EntryKey(IN, 300, TCP, 0, 0),
    EntryKey(IN, 0, TCP, 0, 0),
    EntryKey(IN, 300, 0, 0, 0),
    EntryKey(IN, 0, 0, 0, 0),
]


@pytest.mark.parametrize("first", range(len(LEVELS)))
def test_the_most_specific_level_decides(first: int) -> None:
    entries = [(key, EntryValue(False, 10 + index)) for index, key in enumerate(LEVELS)]
    judgement = judge(policy(*entries[first:]), IN, 300, TCP, 80)
    assert (judgement.allowed, judgement.key) == (True, LEVELS[first])


@pytest.mark.parametrize("denying", range(len(LEVELS)))
def test_deny_at_any_level_wins_over_allow_at_every_other(denying: int) -> None:
    entries = [(key, EntryValue(index == denying, 10 + index)) for index, key in enumerate(LEVELS)]
    judgement = judge(policy(*entries), IN, 300, TCP, 80)
    assert (judgement.allowed, judgement.key) == (False, LEVELS[denying])


@pytest.mark.parametrize(
    ("direction", "identity", "protocol", "port"),
    [(OUT, 300, TCP, 80), (IN, 301, TCP, 80), (IN, 300, UDP, 80), (IN, 300, TCP, 81)],
)
def test_an_entry_covers_nothing_else(direction: Direction, identity: int, protocol: int, port: int) -> None:
    only = policy((LEVELS[0], EntryValue(False, 1)))
    assert judge(only, IN, 300, TCP, 80).allowed
    assert not judge(only, direction, identity, protocol, port).allowed


def test_without_an_entry_the_default_decides() -> None:
    assert not judge(policy(), IN, 300, TCP, 80).allowed
    assert judge(policy(enforced=False), IN, 300, TCP, 80).allowed
    denying = policy((LEVELS[0], EntryValue(True, 1)), enforced=False)
    assert judge(denying, IN, 301, TCP, 80).allowed
    assert not judge(denying, IN, 300, TCP, 80).allowed
