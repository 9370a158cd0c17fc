"""Address choice: what a pod may have, and rotation."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.ipam.addresses import AddressRange, choose_slot, first_gap

SLASH_24 = AddressRange(IPv4Network("10.244.1.0/24"))


def test_network_router_and_broadcast_are_left_out() -> None:
    assert SLASH_24.router == IPv4Address("10.244.1.1")
    assert SLASH_24.capacity == 253
    assert SLASH_24.address(SLASH_24.first) == IPv4Address("10.244.1.2")
    assert SLASH_24.address(SLASH_24.last) == IPv4Address("10.244.1.254")


@pytest.mark.parametrize("text", ["10.244.1.0", "10.244.1.1", "10.244.1.255", "10.244.2.7"])
def test_addresses_no_pod_may_have_have_no_slot(text: str) -> None:
    assert SLASH_24.slot(IPv4Address(text)) is None


def test_a_slot_is_the_distance_from_the_network_address() -> None:
    assert SLASH_24.slot(IPv4Address("10.244.1.77")) == 77


def test_the_smallest_cidr_holds_one_pod() -> None:
    bounds = AddressRange(IPv4Network("10.0.0.4/30"))
    assert bounds.capacity == 1
    assert choose_slot(bounds, bounds.first, []) == 2
    assert choose_slot(bounds, bounds.after(2), [2]) is None


def test_ipv6_has_no_broadcast_address() -> None:
    bounds = AddressRange(IPv6Network("fd00::1:0/112"))
    assert bounds.router == IPv6Address("fd00::1:1")
    assert bounds.address(bounds.last) == IPv6Address("fd00::1:ffff")
    assert bounds.capacity == 65534
    assert [bounds.slot(bounds.network[at]) for at in (0, 1, 2, 65535)] == [None, None, 2, 65535]
    assert bounds.after(bounds.last) == 2


def test_the_smallest_ipv6_cidr_holds_two_pods() -> None:
    bounds = AddressRange(IPv6Network("fd00::/126"))
    assert [choose_slot(bounds, 2, held) for held in ([], [2], [2, 3])] == [2, 3, None]


def test_an_address_of_the_other_family_has_no_slot() -> None:
    assert SLASH_24.slot(IPv6Address("::10.244.1.7")) is None
    assert AddressRange(IPv6Network("::/112")).slot(IPv4Address("0.0.0.7")) is None


def test_a_released_address_is_the_last_to_be_used_again() -> None:
    slot = choose_slot(SLASH_24, SLASH_24.first, [])
    assert slot == 2
    assert choose_slot(SLASH_24, SLASH_24.after(slot), []) == 3


def test_rotation_wraps_at_the_end() -> None:
    assert SLASH_24.after(254) == 2
    assert choose_slot(SLASH_24, 254, [254]) == 2
    assert SLASH_24.rotation(100) == ((100, 254), (2, 99))
    assert SLASH_24.rotation(2) == ((2, 254),)


def test_a_cursor_outside_the_range_starts_at_its_beginning() -> None:
    assert SLASH_24.clamp(0) == SLASH_24.clamp(255) == 2


@given(st.integers(0, 1000), st.sets(st.integers(0, 80)))
def test_first_gap_is_the_least_number_not_held(start: int, offsets: set[int]) -> None:
    held = sorted(start + offset for offset in offsets)
    expected = next(slot for slot in range(start, start + 82) if slot not in held)
    assert first_gap(start, held) == expected


class Allocator(RuleBasedStateMachine):
    """Random allocations and releases on one small CIDR against a model of who holds what."""

    @staticmethod
    def network() -> AddressRange:
        return AddressRange(IPv4Network("10.0.0.0/28"))

    def __init__(self) -> None:
        super().__init__()
        self.bounds = self.network()
        self.cursor = self.bounds.first
        self.holders: dict[int, int] = {}
        self.owners = 0
        self.released: int | None = None

    @rule()
    def allocate(self) -> None:
        slot = choose_slot(self.bounds, self.cursor, sorted(self.holders))
        if slot is None:
            assert len(self.holders) == self.bounds.capacity
            return
        assert slot not in self.holders, "an address with two owners"
        if self.released is not None and len(self.holders) < self.bounds.capacity - 1:
            assert slot != self.released, "a free address was passed over for the one just released"
        self.owners += 1
        self.holders[slot] = self.owners
        self.cursor = self.bounds.after(slot)
        self.released = None

    @precondition(lambda self: self.holders and self.released is None)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.holders)))
        del self.holders[slot]
        # Only the one that was handed out last is certain to be at the end of the rotation.
        self.released = slot if self.bounds.after(slot) == self.cursor else None

    @invariant()
    def every_holder_is_inside(self) -> None:
        assert all(self.bounds.slot(self.bounds.address(slot)) == slot for slot in self.holders)


class AllocatorOfIpv6(Allocator):
    """The same on an IPv6 CIDR, which has one address more."""

    @staticmethod
    def network() -> AddressRange:
        return AddressRange(IPv6Network("fd00::10/124"))


TestAllocator = Allocator.TestCase
TestAllocatorOfIpv6 = AllocatorOfIpv6.TestCase
