"""AddressService over a real socket: allocation, release, lists."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv4Network
from typing import TypeAlias

import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from tests.service.ipam.conftest import Home, Place
from tests.service.refusals import refused

Addresses: TypeAlias = "ipam_pb2_grpc.AddressServiceAsyncStub"


def allocate(node: str, owner: str, address: str = "") -> ipam_pb2.AllocateRequest:
    return ipam_pb2.AllocateRequest(node=node, owner=owner, address=address)


async def test_an_owner_keeps_its_address(addresses: Addresses, home: Home) -> None:
    first = await addresses.Allocate(allocate(home.node.name, "c1/eth0"))
    assert IPv4Address(first.address) == IPv4Network(home.node.pod_cidrs[0])[2]
    assert first.router_ipv4 == home.node.router_ipv4
    assert first.cidr == home.node.pod_cidrs[0]
    assert await addresses.Allocate(allocate(home.node.name, "c1/eth0")) == first
    assert await addresses.Allocate(allocate(home.node.name, "c1/eth0", first.address)) == first


async def test_a_released_address_is_not_the_next_one(addresses: Addresses, home: Home) -> None:
    first = await addresses.Allocate(allocate(home.node.name, "c1/eth0"))
    release = ipam_pb2.ReleaseRequest(node=home.node.name, owner="c1/eth0")
    assert (await addresses.Release(release)).address == first.address
    assert (await addresses.Release(release)).address == ""
    second = await addresses.Allocate(allocate(home.node.name, "c1/eth0"))
    assert second.address != first.address


async def test_concurrent_allocations_get_different_addresses_and_more_than_one_cidr(
    addresses: Addresses, nodes: ipam_pb2_grpc.NodeServiceAsyncStub, home: Home
) -> None:
    node = home.node.name
    granted = await asyncio.gather(
        *(addresses.Allocate(allocate(node, f"c{number}/eth0")) for number in range(253))
    )
    cidr = IPv4Network(home.node.pod_cidrs[0])
    assert {IPv4Address(one.address) for one in granted} == set(cidr.hosts()) - {cidr[1]}
    late = await addresses.Allocate(allocate(node, "late"))
    now = await nodes.GetNode(ipam_pb2.GetNodeRequest(name=node))
    assert [late.cidr] == now.pod_cidrs[1:]
    # The router is the one of the first CIDR whatever an address is out of.
    assert late.router_ipv4 == home.node.router_ipv4
    assert await addresses.Allocate(allocate(node, "c100/eth0")) == granted[100]


async def test_concurrent_calls_of_one_owner_give_one_address(addresses: Addresses, home: Home) -> None:
    granted = await asyncio.gather(*(addresses.Allocate(allocate(home.node.name, "same")) for _ in range(20)))
    assert len({one.address for one in granted}) == 1


async def test_a_wanted_address_is_given_and_passed_over_later(addresses: Addresses, home: Home) -> None:
    third = str(IPv4Network(home.node.pod_cidrs[0])[3])
    assert (await addresses.Allocate(allocate(home.node.name, "fixed", third))).address == third
    others = [
        (await addresses.Allocate(allocate(home.node.name, f"other-{number}"))).address for number in range(3)
    ]
    network = IPv4Network(home.node.pod_cidrs[0])
    assert others == [str(network[2]), str(network[4]), str(network[5])]


async def test_a_wanted_address_with_an_owner_is_refused(addresses: Addresses, home: Home) -> None:
    held = await addresses.Allocate(allocate(home.node.name, "holder"))
    error = await refused(
        addresses.Allocate(allocate(home.node.name, "other", held.address)), AlreadyExists, "ADDRESS_IN_USE"
    )
    assert error.metadata == {"address": held.address, "owner": "holder", "node": home.node.name}


async def test_an_owner_cannot_ask_for_a_second_address(addresses: Addresses, home: Home) -> None:
    held = await addresses.Allocate(allocate(home.node.name, "holder"))
    other = str(IPv4Network(home.node.pod_cidrs[0])[99])
    error = await refused(
        addresses.Allocate(allocate(home.node.name, "holder", other)), AlreadyExists, "OWNER_HOLDS_ANOTHER"
    )
    assert error.metadata["address"] == held.address


@pytest.mark.parametrize("host", [0, 1, 255, 256])
async def test_reserved_and_foreign_addresses_are_refused(
    addresses: Addresses, home: Home, host: int
) -> None:
    wanted = str(IPv4Network(home.node.pod_cidrs[0]).network_address + host)
    error = await refused(
        addresses.Allocate(allocate(home.node.name, "c", wanted)), FailedPrecondition, "ADDRESS_NOT_ON_NODE"
    )
    assert error.metadata == {"address": wanted, "node": home.node.name, "cidr": home.node.pod_cidrs[0]}


@pytest.mark.parametrize("address", ["", "10.9.9.9"])
async def test_an_unknown_node_is_not_found(addresses: Addresses, address: str) -> None:
    error = await refused(
        addresses.Allocate(allocate("ghost", "c1/eth0", address)), NotFound, "NODE_NOT_FOUND"
    )
    assert error.metadata == {"node": "ghost"}


async def test_releasing_on_an_unknown_node_succeeds(addresses: Addresses) -> None:
    assert (await addresses.Release(ipam_pb2.ReleaseRequest(node="ghost", owner="c"))).address == ""


@pytest.mark.parametrize(
    ("node", "owner", "address", "field"),
    [
        ("", "c", "", "node"),
        ("n", "", "", "owner"),
        ("n", "c", "10.0.0", "address"),
        ("n", "o" * 254, "", "owner"),
    ],
)
async def test_bad_requests_name_the_field(
    addresses: Addresses, node: str, owner: str, address: str, field: str
) -> None:
    error = await refused(
        addresses.Allocate(allocate(node, owner, address)), InvalidArgument, "REQUEST_INVALID"
    )
    assert [violation.field for violation in error.violations] == [field]


async def test_addresses_are_listed_by_node_and_number_with_filters(
    addresses: Addresses, nodes: ipam_pb2_grpc.NodeServiceAsyncStub, home: Home, place: Place
) -> None:
    name = home.node.name
    for number in range(9):
        await addresses.Allocate(allocate(name, f"c{number}"))
    other = f"{place.name}-other"
    await nodes.RegisterNode(ipam_pb2.RegisterNodeRequest(name=other, ipv4=place.underlay(2), pool=home.pool))
    await addresses.Allocate(allocate(other, "c3"))

    seen: list[ipam_pb2.Address] = []
    token = ""
    while True:
        page = await addresses.ListAddresses(
            ipam_pb2.ListAddressesRequest(node=name, page_size=4, page_token=token)
        )
        seen += page.addresses
        token = page.next_page_token
        if not token:
            break
    assert [one.owner for one in seen] == [f"c{number}" for number in range(9)]
    assert {one.router_ipv4 for one in seen} == {home.node.router_ipv4}

    of_owner = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(owner="c3", page_size=1000))
    assert {name, other} <= {one.node for one in of_owner.addresses}
    both = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(node=other, owner="c3"))
    assert [one.node for one in both.addresses] == [other]


async def test_a_token_of_another_list_is_refused(addresses: Addresses, home: Home) -> None:
    for owner in ("a", "b"):
        await addresses.Allocate(allocate(home.node.name, owner))
    page = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(node=home.node.name, page_size=1))
    error = await refused(
        addresses.ListAddresses(ipam_pb2.ListAddressesRequest(page_token=page.next_page_token)),
        InvalidArgument,
        "PAGE_INVALID",
    )
    assert error.violations[0].field == "page_token"
