"""The choice of free addresses, in numbers."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.ipam.allocation import (
    NodeCidr,
    NodeCidrs,
    Supply,
    bounds_of,
    excluded_slots,
    free_slots,
    next_slots,
)
from services.ipam.exclusions import encode_spans, parse_all

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=3)


def cidr(text: str, cursor: int = 2, pool: str = "p", *, draining: bool = False) -> NodeCidr:
    return NodeCidr(bounds_of(text), pool, draining, cursor)


def disjoint(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sorted spans without an overlap that cover the same numbers."""
    covered = sorted({n for a, b in spans for n in range(min(a, b), max(a, b) + 1)})
    found: list[tuple[int, int]] = []
    for number in covered:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return tuple(found)


@given(st.integers(0, 60), st.integers(0, 60), st.sets(st.integers(0, 60)), SPANS, st.integers(0, 70))
def test_free_slots_are_the_lowest_that_are_neither_taken_nor_excluded(
    start: int, end: int, taken: set[int], spans: list[tuple[int, int]], count: int
) -> None:
    excluded = disjoint(spans)
    out = {n for first, last in excluded for n in range(first, last + 1)}
    expected = [slot for slot in range(start, end + 1) if slot not in taken and slot not in out]
    assert free_slots(start, end, taken, excluded, count) == expected[:count]


@given(st.integers(0, 40), st.sets(st.integers(0, 33)), st.integers(1, 40))
def test_the_choice_goes_on_at_the_cursor_and_wraps(cursor: int, taken: set[int], count: int) -> None:
    of = cidr("10.0.0.0/27", cursor)
    start = cursor if 2 <= cursor <= 30 else 2
    rotation = [*range(start, 31), *range(2, start)]
    assert next_slots(of, taken, (), count) == [slot for slot in rotation if slot not in taken][:count]


def test_a_wide_exclusion_and_a_wide_cidr_cost_nothing() -> None:
    of = cidr("fd00::/64")
    exclusions = encode_spans(parse_all(["fd00::2-fd00::7fff:ffff:ffff:0"], "excluded"))
    begun = time.monotonic()
    (slot,) = next_slots(of, {0x7FFF_FFFF_FFFF_0001}, excluded_slots(exclusions, "fd00::/64"), 1)
    assert of.bounds.address(slot) == IPv6Address("fd00::7fff:ffff:ffff:2")
    assert time.monotonic() - begun < 1


def test_addresses_and_slots_are_the_same_in_both_directions() -> None:
    for text in ("10.244.1.0/24", "fd00:10:244::1:0/112"):
        bounds = bounds_of(text)
        for slot in (bounds.first, bounds.first + 7, bounds.last):
            assert bounds.packed(slot) == bounds.address(slot).packed
            assert bounds.slot(bounds.packed(slot)) == slot
        assert bounds.address(bounds.first - 1) == bounds.router


def test_a_node_allocates_from_its_cidrs_of_the_pool_that_do_not_drain() -> None:
    node = NodeCidrs(
        "n",
        "p",
        [cidr("10.0.0.0/24"), cidr("fd00::/112"), cidr("10.1.0.0/24", pool="q"),
         cidr("10.0.1.0/24", draining=True), cidr("10.0.2.0/24")],
    )  # fmt: skip
    assert [one.bounds.text for one in node.usable("p", 4)] == ["10.0.0.0/24", "10.0.2.0/24"]
    assert [one.bounds.text for one in node.usable("q", 6)] == []
    assert (node.router(4), node.router(6)) == (IPv4Address("10.0.0.1"), IPv6Address("fd00::1"))
    found = node.having(IPv4Address("10.1.0.7"))
    assert found is not None
    assert found.pool == "q"
    for reserved in ("10.1.0.0", "10.1.0.1", "10.1.0.255", "10.9.0.7"):
        assert node.having(IPv4Address(reserved)) is None


def test_a_supply_gives_each_address_once_and_moves_the_cursors() -> None:
    first, second = cidr("10.0.0.0/29", 5), cidr("10.0.1.0/29")
    supply = Supply(NodeCidrs("n", "p", [first, second]), "p", 4, "[]", "", demand=6)
    supply.add(first, next_slots(first, {6}, (), 10))
    assert supply.missing == 2
    supply.add(second, next_slots(second, (), (), 10))
    assert (supply.missing, supply.left) == (0, 6)
    assert [(one.bounds.text, slot) for one, slot in supply.give(3)] == [
        ("10.0.0.0/29", 5),
        ("10.0.0.0/29", 2),
        ("10.0.0.0/29", 3),
    ]
    assert first.cursor == 4
    assert [slot for _, slot in supply.give(3)] == [4, 2, 3]
    assert (first.cursor, second.cursor, supply.left) == (5, 4, 0)


def test_what_is_excluded_counts_only_where_pods_may_be() -> None:
    spans = parse_all(["10.0.0.0/30", "10.0.0.250-10.0.1.9", "10.0.0.7"], "excluded")
    of = cidr("10.0.0.0/24")
    supply = Supply(NodeCidrs("n", "p", [of]), "p", 4, encode_spans(spans), "")
    assert supply.excluded(of) == ((0, 3), (7, 7), (250, 255))
    assert supply.excluded_count(of) == 2 + 1 + 5


class Rotation(RuleBasedStateMachine):
    """Random allocations and releases on one small CIDR against a model of who holds what."""

    text = "10.0.0.0/28"

    def __init__(self) -> None:
        super().__init__()
        self.cidr = cidr(self.text)
        self.capacity = self.cidr.bounds.last - self.cidr.bounds.first + 1
        self.held: set[int] = set()
        self.released: int | None = None

    @rule(count=st.integers(1, 4))
    def allocate(self, count: int) -> None:
        slots = next_slots(self.cidr, self.held, (), count)
        assert len(slots) == len(set(slots)) == min(count, self.capacity - len(self.held))
        assert self.held.isdisjoint(slots), "an address with two owners"
        if self.released is not None and len(self.held) + count < self.capacity:
            assert self.released not in slots, "a free address was passed over for the one just released"
        self.held.update(slots)
        if slots:
            self.cidr.cursor = self.cidr.bounds.clamp(slots[-1] + 1)
            self.released = None

    @precondition(lambda self: self.held and self.released is None)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.held.remove(slot)
        # Only the one that was handed out last is certain to be at the end of the rotation.
        self.released = slot if self.cidr.bounds.clamp(slot + 1) == self.cidr.cursor else None

    @invariant()
    def every_holder_is_inside(self) -> None:
        assert all(self.cidr.bounds.first <= slot <= self.cidr.bounds.last for slot in self.held)


class RotationOfIpv6(Rotation):
    """The same on an IPv6 CIDR, which has one address more."""

    text = "fd00::10/124"


TestRotation = Rotation.TestCase
TestRotationOfIpv6 = RotationOfIpv6.TestCase
