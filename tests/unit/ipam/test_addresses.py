"""Which addresses of a CIDR pods may have."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from services.ipam.addresses import AddressRange

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


@pytest.mark.parametrize(
    ("network", "capacity"), [(IPv4Network("10.0.0.4/30"), 1), (IPv6Network("fd00::/126"), 2)]
)
def test_the_smallest_cidrs_hold_a_pod(network: IPv4Network | IPv6Network, capacity: int) -> None:
    bounds = AddressRange(network)
    assert (bounds.first, bounds.capacity) == (2, capacity)


def test_ipv6_has_no_broadcast_address() -> None:
    bounds = AddressRange(IPv6Network("fd00::1:0/112"))
    assert bounds.router == IPv6Address("fd00::1:1")
    assert bounds.address(bounds.last) == IPv6Address("fd00::1:ffff")
    assert bounds.capacity == 65534
    assert [bounds.slot(bounds.network[at]) for at in (0, 1, 2, 65535)] == [None, None, 2, 65535]


def test_an_address_of_the_other_family_has_no_slot() -> None:
    assert SLASH_24.slot(IPv6Address("::10.244.1.7")) is None
    assert AddressRange(IPv6Network("::/112")).slot(IPv4Address("0.0.0.7")) is None
