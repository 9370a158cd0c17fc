"""Pools, nodes and addresses of IPv6, and of both families together, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from tests.service.ipam.conftest import Place
from tests.service.processes import WATCH_SECONDS
from tests.service.refusals import refused

Nodes: TypeAlias = "ipam_pb2_grpc.NodeServiceAsyncStub"
Pools: TypeAlias = "ipam_pb2_grpc.PoolServiceAsyncStub"
Addresses: TypeAlias = "ipam_pb2_grpc.AddressServiceAsyncStub"
Allocate = ipam_pb2.AllocateRequest
MakeNode: TypeAlias = "Callable[..., Awaitable[ipam_pb2.Node]]"


@pytest.fixture
def v6(place: Place) -> IPv6Network:
    return IPv6Network(f"fd00:{place.number:x}::/48")


@pytest.fixture
def make_node(pools: Pools, nodes: Nodes, place: Place) -> MakeNode:
    """Registers the first node of a new pool of the CIDRs given."""

    async def make(*cidrs: object, mask: int = 0, mask6: int = 0) -> ipam_pb2.Node:
        await pools.CreatePool(
            ipam_pb2.CreatePoolRequest(
                name=place.name, cidrs=map(str, cidrs), node_mask_size=mask, node_mask_size_ipv6=mask6
            )
        )
        return await nodes.RegisterNode(register(place, 1))

    return make


def register(place: Place, host: int, ipv6: str = "") -> ipam_pb2.RegisterNodeRequest:
    return ipam_pb2.RegisterNodeRequest(
        name=f"{place.name}-{host}", ipv4=place.underlay(host), ipv6=ipv6, pool=place.name
    )


async def test_a_node_gets_a_cidr_of_each_family_ipv4_first(
    make_node: MakeNode, nodes: Nodes, pools: Pools, place: Place, v6: IPv6Network
) -> None:
    node = await make_node(v6, place.network, mask=24)
    assert list(node.pod_cidrs) == [
        str(next(place.network.subnets(new_prefix=24))),
        f"{v6.network_address}/112",
    ]
    assert node.router_ipv4 == str(place.network[1])
    assert node.router_ipv6 == str(v6[1])
    assert await nodes.RegisterNode(register(place, 1)) == node
    second = await nodes.RegisterNode(register(place, 2))
    assert second.pod_cidrs[1] == f"{v6.network_address + 0x10000}/112"
    pool = await pools.GetPool(ipam_pb2.GetPoolRequest(name=place.name))
    assert (pool.node_mask_size, pool.node_mask_size_ipv6) == (24, 112)
    assert (pool.node_cidrs_total, pool.node_cidrs_used) == (256, 2)


async def test_an_ipv6_only_pool_leaves_the_ipv4_fields_empty(
    make_node: MakeNode, pools: Pools, addresses: Addresses, v6: IPv6Network
) -> None:
    node = await make_node(v6)
    assert list(node.pod_cidrs) == [f"{v6.network_address}/112"]
    assert (node.router_ipv4, node.router_ipv6) == ("", str(v6[1]))
    address = await addresses.Allocate(Allocate(node=node.name, owner="c1"))
    assert (address.address, address.cidr, address.router_ipv4) == ("", "", "")
    assert (address.ipv6, address.cidr_ipv6) == (str(v6[2]), node.pod_cidrs[0])
    assert address.router_ipv6 == node.router_ipv6
    pool = await pools.GetPool(ipam_pb2.GetPoolRequest(name=node.pool))
    # 2^64 node CIDRs, one more than the field can say.
    assert (pool.node_mask_size, pool.node_cidrs_total) == (0, (1 << 64) - 1)
    error = await refused(
        addresses.Allocate(Allocate(node=node.name, owner="c2", address="10.0.0.7")),
        FailedPrecondition,
        "ADDRESS_NOT_ON_NODE",
    )
    assert "no IPv4 CIDR" in str(error)


async def test_an_ipv4_only_node_leaves_the_ipv6_fields_empty(
    make_node: MakeNode, addresses: Addresses, place: Place
) -> None:
    node = await make_node(place.network, mask=24)
    assert (node.ipv6, node.router_ipv6) == ("", "")
    address = await addresses.Allocate(Allocate(node=node.name, owner="c1"))
    assert address.address == str(place.network[2])
    assert (address.ipv6, address.cidr_ipv6, address.router_ipv6) == ("", "", "")
    error = await refused(
        addresses.Allocate(Allocate(node=node.name, owner="c2", ipv6="fd00::7")),
        FailedPrecondition,
        "ADDRESS_NOT_ON_NODE",
    )
    assert "no IPv6 CIDR" in str(error)
    listed = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(node=node.name))
    assert list(listed.addresses) == [address]


async def test_a_pools_cidrs_are_shown_in_canonical_form(pools: Pools, place: Place) -> None:
    request = ipam_pb2.CreatePoolRequest(name=place.name, cidrs=[f"FD00:{place.number:X}:0::/48"])
    pool = await pools.CreatePool(request)
    assert list(pool.cidrs) == [f"fd00:{place.number:x}::/48"]
    assert await pools.CreatePool(request) == pool
    error = await refused(
        pools.CreatePool(
            ipam_pb2.CreatePoolRequest(name=place.name, cidrs=request.cidrs, node_mask_size_ipv6=96)
        ),
        AlreadyExists,
        "POOL_EXISTS",
    )
    assert error.metadata == {"pool": place.name, "cidrs": pool.cidrs[0], "node_mask_size_ipv6": "112"}
    inner = f"fd00:{place.number:x}::/64"
    overlap = await refused(
        pools.CreatePool(ipam_pb2.CreatePoolRequest(name=f"{place.name}-b", cidrs=[inner])),
        FailedPrecondition,
        "CIDR_OVERLAP",
    )
    assert (overlap.metadata["cidr"], overlap.metadata["other_cidr"]) == (inner, pool.cidrs[0])


@pytest.mark.parametrize(
    ("cidrs", "masks", "field", "reason"),
    [
        (["fd00::1/48"], (0, 112), "cidrs[0]", "REQUEST_INVALID"),
        (["fd00::/48"], (24, 112), "node_mask_size", "MASK_SIZE_INVALID"),
        (["fd00::/48"], (0, 127), "node_mask_size_ipv6", "REQUEST_INVALID"),
        (["fd00::/48"], (0, 113), "node_mask_size_ipv6", "MASK_SIZE_INVALID"),
        (["11.250.0.0/16"], (0, 0), "node_mask_size", "MASK_SIZE_INVALID"),
        (["11.250.0.0/16"], (24, 112), "node_mask_size_ipv6", "MASK_SIZE_INVALID"),
    ],
)
async def test_bad_pools_are_refused_by_field(
    pools: Pools, place: Place, cidrs: list[str], masks: tuple[int, int], field: str, reason: str
) -> None:
    request = ipam_pb2.CreatePoolRequest(
        name=place.name, cidrs=cidrs, node_mask_size=masks[0], node_mask_size_ipv6=masks[1]
    )
    error = await refused(pools.CreatePool(request), InvalidArgument, reason)
    assert error.violations[0].field == field


async def test_the_family_that_a_pool_is_out_of_is_named_and_nothing_taken(
    make_node: MakeNode, nodes: Nodes, pools: Pools, place: Place, v6: IPv6Network
) -> None:
    small = next(v6.subnets(new_prefix=112))
    await make_node(place.network, small, mask=24)
    error = await refused(nodes.RegisterNode(register(place, 2)), ResourceExhausted, "POOL_EXHAUSTED")
    said = {key: error.metadata[key] for key in ("pool", "family", "cidrs", "capacity", "held", "node")}
    assert said == {
        "pool": place.name,
        "family": "IPv6",
        "cidrs": str(small),
        "capacity": "1",
        "held": "1",
        "node": f"{place.name}-2",
    }
    assert error.metadata["node_mask_size_ipv6"] == "112"
    assert "no IPv6 /112" in str(error)
    pool = await pools.GetPool(ipam_pb2.GetPoolRequest(name=place.name))
    assert (pool.node_cidrs_total, pool.node_cidrs_used) == (1, 1)


async def test_an_owner_has_one_address_of_each_family_until_it_gives_both_back(
    make_node: MakeNode, addresses: Addresses, place: Place, v6: IPv6Network
) -> None:
    node = await make_node(place.network, v6, mask=24)
    request = Allocate(node=node.name, owner="c1/eth0")
    first = await addresses.Allocate(request)
    assert first == ipam_pb2.Address(
        address=str(place.network[2]),
        node=node.name,
        owner="c1/eth0",
        cidr=node.pod_cidrs[0],
        router_ipv4=node.router_ipv4,
        create_time=first.create_time,
        ipv6=str(v6[2]),
        cidr_ipv6=node.pod_cidrs[1],
        router_ipv6=node.router_ipv6,
        pool=place.name,
    )
    for ipv4, ipv6 in (("", ""), (first.address, ""), ("", first.ipv6), (first.address, first.ipv6)):
        again = Allocate(node=node.name, owner="c1/eth0", address=ipv4, ipv6=ipv6)
        assert await addresses.Allocate(again) == first
    release = ipam_pb2.ReleaseRequest(node=node.name, owner="c1/eth0")
    assert await addresses.Release(release) == ipam_pb2.ReleaseResponse(
        address=first.address, ipv6=first.ipv6
    )
    assert await addresses.Release(release) == ipam_pb2.ReleaseResponse()
    second = await addresses.Allocate(request)
    assert (second.address, second.ipv6) == (str(place.network[3]), str(v6[3]))


async def test_concurrent_calls_share_neither_family(
    make_node: MakeNode, addresses: Addresses, place: Place, v6: IPv6Network
) -> None:
    node = await make_node(place.network, v6, mask=24)
    granted = await asyncio.gather(
        *(addresses.Allocate(Allocate(node=node.name, owner=f"c{at % 50}")) for at in range(100))
    )
    assert len({(one.owner, one.address, one.ipv6) for one in granted}) == 50
    assert len({one.address for one in granted}) == len({one.ipv6 for one in granted}) == 50


async def test_fixed_addresses_are_given_together_or_not_at_all(
    make_node: MakeNode, addresses: Addresses, place: Place, v6: IPv6Network
) -> None:
    node = await make_node(place.network, v6, mask=24)
    ipv4, ipv6 = str(place.network[77]), str(v6[0x77])
    fixed = await addresses.Allocate(Allocate(node=node.name, owner="fixed", address=ipv4, ipv6=ipv6.upper()))
    assert (fixed.address, fixed.ipv6) == (ipv4, ipv6)
    free = str(place.network[78])
    error = await refused(
        addresses.Allocate(Allocate(node=node.name, owner="thief", address=free, ipv6=ipv6)),
        AlreadyExists,
        "ADDRESS_IN_USE",
    )
    assert error.metadata == {"address": ipv6, "owner": "fixed", "node": node.name}
    listed = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(node=node.name))
    assert list(listed.addresses) == [fixed]
    half = await addresses.Allocate(Allocate(node=node.name, owner="half", ipv6=str(v6[0x78])))
    assert (half.address, half.ipv6) == (str(place.network[2]), str(v6[0x78]))
    error = await refused(
        addresses.Allocate(Allocate(node=node.name, owner="half", ipv6=str(v6[0x79]))),
        AlreadyExists,
        "OWNER_HOLDS_ANOTHER",
    )
    assert (error.metadata["address"], error.metadata["requested_address"]) == (half.ipv6, str(v6[0x79]))


@pytest.mark.parametrize(("host", "usable"), [(0, False), (1, False), (0xFFFF, True), (0x10000, False)])
async def test_network_and_router_are_reserved_and_the_last_ipv6_address_is_not(
    make_node: MakeNode, addresses: Addresses, v6: IPv6Network, host: int, usable: bool
) -> None:
    node = await make_node(v6)
    call = addresses.Allocate(Allocate(node=node.name, owner="c", ipv6=str(v6[host])))
    if usable:
        assert (await call).ipv6 == str(v6[host])
        return
    error = await refused(call, FailedPrecondition, "ADDRESS_NOT_ON_NODE")
    assert error.metadata == {"address": str(v6[host]), "node": node.name, "cidr": node.pod_cidrs[0]}
    assert "broadcast" not in str(error)


async def test_the_family_that_a_node_is_out_of_is_named_and_nothing_taken(
    make_node: MakeNode, addresses: Addresses, place: Place, v6: IPv6Network
) -> None:
    node = await make_node(place.network, next(v6.subnets(new_prefix=125)), mask=24, mask6=125)
    held = [await addresses.Allocate(Allocate(node=node.name, owner=f"c{at}")) for at in range(6)]
    assert [one.ipv6 for one in held] == [str(v6[at]) for at in range(2, 8)]
    error = await refused(
        addresses.Allocate(Allocate(node=node.name, owner="late")), ResourceExhausted, "POOL_EXHAUSTED"
    )
    assert (error.metadata["family"], error.metadata["capacity"]) == ("IPv6", "6")
    assert "no free IPv6 address" in str(error)
    listed = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(node=node.name))
    assert list(listed.addresses) == held
    assert await addresses.Allocate(Allocate(node=node.name, owner="c3")) == held[3]
    # The failed call took no IPv4 address either, or the rotation would be past this one.
    fixed = Allocate(node=node.name, owner="fixed", address=str(place.network[8]))
    await refused(addresses.Allocate(fixed), ResourceExhausted, "POOL_EXHAUSTED")
    await addresses.Release(ipam_pb2.ReleaseRequest(node=node.name, owner="c3"))
    await refused(addresses.Allocate(fixed), ResourceExhausted, "ADDRESSES_ON_HOLD")
    listed = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(node=node.name))
    assert [one.owner for one in listed.addresses] == ["c0", "c1", "c2", "c4", "c5"]


async def test_owners_are_listed_once_in_pages_and_found_by_either_address(
    make_node: MakeNode, addresses: Addresses, place: Place, v6: IPv6Network
) -> None:
    node = await make_node(place.network, v6, mask=24)
    granted = [await addresses.Allocate(Allocate(node=node.name, owner=f"c{at}")) for at in range(7)]
    seen: list[ipam_pb2.Address] = []
    token = ""
    while True:
        page = await addresses.ListAddresses(
            ipam_pb2.ListAddressesRequest(node=node.name, page_size=3, page_token=token)
        )
        seen += page.addresses
        token = page.next_page_token
        if not token:
            break
    assert seen == granted
    for address in (granted[4].address, granted[4].ipv6, granted[4].ipv6.upper()):
        found = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(address=address))
        assert list(found.addresses) == [granted[4]]
    for address in (node.router_ipv6, "192.0.2.1"):
        found = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(address=address))
        assert not found.addresses
    error = await refused(
        addresses.ListAddresses(ipam_pb2.ListAddressesRequest(address="fd00")),
        InvalidArgument,
        "REQUEST_INVALID",
    )
    assert error.violations[0].field == "address"


async def test_ipv6_addresses_are_listed_in_pages_by_number(
    make_node: MakeNode, addresses: Addresses, v6: IPv6Network
) -> None:
    node = await make_node(v6)
    for at in (0x100, 0x9, 0x10):
        await addresses.Allocate(Allocate(node=node.name, owner=f"c{at}", ipv6=str(v6[at])))
    seen: list[str] = []
    token = ""
    while True:
        page = await addresses.ListAddresses(
            ipam_pb2.ListAddressesRequest(node=node.name, page_size=1, page_token=token)
        )
        seen += [one.ipv6 for one in page.addresses]
        token = page.next_page_token
        if not token:
            break
    assert seen == [str(v6[at]) for at in (0x9, 0x10, 0x100)]


async def test_an_underlay_ipv6_address_comes_and_goes_and_is_nobody_elses(
    make_node: MakeNode, nodes: Nodes, place: Place
) -> None:
    bare = await make_node(place.network, mask=24)
    ipv6 = f"fd99::{place.number:x}"
    watch = nodes.WatchNodes(ipam_pb2.WatchNodesRequest(from_revision=bare.revision), timeout=WATCH_SECONDS)
    both = await nodes.RegisterNode(register(place, 1, f"FD99:0::{place.number:X}"))
    assert both.ipv6 == ipv6
    assert both.revision > bare.revision
    assert await nodes.RegisterNode(register(place, 1, ipv6)) == both
    error = await refused(nodes.RegisterNode(register(place, 2, ipv6)), FailedPrecondition, "ADDRESS_IN_USE")
    assert error.metadata == {"address": ipv6, "node": both.name, "requested_by": f"{place.name}-2"}
    gone = await nodes.RegisterNode(register(place, 1))
    assert gone.ipv6 == ""
    assert gone.pod_cidrs == both.pod_cidrs
    assert (await nodes.RegisterNode(register(place, 2, ipv6))).ipv6 == ipv6
    mine: list[ipam_pb2.Node] = []
    async for message in watch:
        mine += [event.node for event in message.events if event.node.name == both.name]
        if len(mine) == 2:
            break
    assert mine == [both, gone]
    watch.cancel()
    invalid = await refused(
        nodes.RegisterNode(register(place, 3, "10.0.0.1")), InvalidArgument, "REQUEST_INVALID"
    )
    assert invalid.violations[0].field == "ipv6"


async def test_a_deleted_node_gives_both_cidrs_back(
    make_node: MakeNode, nodes: Nodes, addresses: Addresses, place: Place, v6: IPv6Network
) -> None:
    node = await make_node(IPv4Network((place.network.network_address, 24)), v6, mask=24)
    await addresses.Allocate(Allocate(node=node.name, owner="c"))
    error = await refused(
        nodes.DeleteNode(ipam_pb2.DeleteNodeRequest(name=node.name)), FailedPrecondition, "NODE_IN_USE"
    )
    assert error.metadata["addresses"] == "2"
    await nodes.DeleteNode(ipam_pb2.DeleteNodeRequest(name=node.name, force=True))
    assert (await nodes.RegisterNode(register(place, 2))).pod_cidrs == node.pod_cidrs
