"""Allocations and releases of many owners at once, replays, and callers who meet."""

from __future__ import annotations

import asyncio
from collections import Counter
from ipaddress import IPv4Network
from typing import TypeAlias

import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.errors import Aborted, InvalidArgument, NotFound, ResourceExhausted
from tests.service.ipam.conftest import Home, Place
from tests.service.refusals import refused

Addresses: TypeAlias = "ipam_pb2_grpc.AddressServiceAsyncStub"
Nodes: TypeAlias = "ipam_pb2_grpc.NodeServiceAsyncStub"
Pools: TypeAlias = "ipam_pb2_grpc.PoolServiceAsyncStub"


def batch(node: str, *owners: str, pool: str = "") -> ipam_pb2.AllocateBatchRequest:
    return ipam_pb2.AllocateBatchRequest(node=node, owners=owners, pool=pool)


def one(node: str, owner: str) -> ipam_pb2.AllocateRequest:
    return ipam_pb2.AllocateRequest(node=node, owner=owner)


def holding(address: ipam_pb2.Address) -> ipam_pb2.Holding:
    return ipam_pb2.Holding(owner=address.owner, if_create_time=address.create_time)


async def listed(addresses: Addresses, node: str) -> list[ipam_pb2.Address]:
    found: list[ipam_pb2.Address] = []
    token = ""
    while True:
        request = ipam_pb2.ListAddressesRequest(node=node, page_size=1000, page_token=token)
        page = await addresses.ListAddresses(request)
        found += page.addresses
        token = page.next_page_token
        if not token:
            return found


async def test_a_batch_is_answered_in_the_order_of_its_owners(addresses: Addresses, home: Home) -> None:
    node = home.node.name
    held = await addresses.Allocate(one(node, "b"))
    answer = await addresses.AllocateBatch(batch(node, "c", "b", "a"))
    assert [each.owner for each in answer.addresses] == ["c", "b", "a"]
    assert answer.addresses[1] == held
    assert await addresses.AllocateBatch(batch(node, "c", "b", "a")) == answer
    assert await addresses.Allocate(one(node, "a")) == answer.addresses[2]
    assert len({each.address for each in answer.addresses}) == 3


async def test_a_batch_larger_than_a_cidr_spans_as_many_as_it_takes(
    addresses: Addresses, nodes: Nodes, home: Home
) -> None:
    node = home.node.name
    owners = [f"c{number}" for number in range(1000)]
    answer = await addresses.AllocateBatch(batch(node, *owners))
    assert len({each.address for each in answer.addresses}) == 1000
    per_cidr = Counter(each.cidr for each in answer.addresses)
    now = await nodes.GetNode(ipam_pb2.GetNodeRequest(name=node))
    assert dict(per_cidr) == dict(zip(now.pod_cidrs, (253, 253, 253, 241), strict=True))
    for each in answer.addresses[::100]:
        assert each.router_ipv4 == home.node.router_ipv4
        assert await addresses.Allocate(one(node, each.owner)) == each
    found = await listed(addresses, node)
    assert sorted(each.owner for each in found) == sorted(owners)
    assert all(each in answer.addresses for each in found[::97])

    released = await addresses.ReleaseBatch(
        ipam_pb2.ReleaseBatchRequest(node=node, holdings=map(holding, answer.addresses))
    )
    assert released == ipam_pb2.ReleaseBatchResponse(released=1000)
    assert not await listed(addresses, node)


async def test_a_batch_gets_all_or_nothing_and_says_for_whom_there_was_nothing(
    addresses: Addresses, nodes: Nodes, pools: Pools, place: Place
) -> None:
    small = str(next(place.network.subnets(new_prefix=27)))
    await pools.CreatePool(ipam_pb2.CreatePoolRequest(name=place.name, cidrs=[small], node_mask_size=28))
    node = await nodes.RegisterNode(
        ipam_pb2.RegisterNodeRequest(name=place.name, ipv4=place.underlay(1), pool=place.name)
    )
    first = await addresses.AllocateBatch(batch(node.name, *(f"c{number}" for number in range(10))))
    before = await nodes.GetNode(ipam_pb2.GetNodeRequest(name=node.name))
    error = await refused(
        addresses.AllocateBatch(batch(node.name, "c3", *(f"d{number}" for number in range(17)))),
        ResourceExhausted,
        "POOL_EXHAUSTED",
    )
    # Three of the first CIDR and thirteen of the second would have been there.
    assert error.metadata["owner"] == "d16"
    # The CIDR that was carved for it went back with the rest.
    assert await nodes.GetNode(ipam_pb2.GetNodeRequest(name=node.name)) == before
    assert await listed(addresses, node.name) == list(first.addresses)
    assert error.metadata["held"] == "10"
    await addresses.AllocateBatch(batch(node.name, *(f"d{number}" for number in range(16))))


async def test_failures_of_a_batch_name_an_owner(addresses: Addresses, home: Home) -> None:
    error = await refused(addresses.AllocateBatch(batch("ghost", "a", "b")), NotFound, "NODE_NOT_FOUND")
    assert error.metadata == {"node": "ghost", "owner": "a"}
    invalid = await refused(
        addresses.AllocateBatch(batch(home.node.name, "a", "a")), InvalidArgument, "REQUEST_INVALID"
    )
    assert invalid.violations[0].field == "owners"
    empty = await refused(addresses.AllocateBatch(batch(home.node.name)), InvalidArgument, "REQUEST_INVALID")
    assert empty.violations[0].field == "owners"


async def test_releases_of_a_batch_are_counted_by_what_became_of_them(
    addresses: Addresses, home: Home
) -> None:
    node = home.node.name
    first = (await addresses.AllocateBatch(batch(node, "a", "b", "c"))).addresses
    await addresses.Release(ipam_pb2.ReleaseRequest(node=node, owner="b"))
    again = await addresses.Allocate(one(node, "b"))
    released = await addresses.ReleaseBatch(
        ipam_pb2.ReleaseBatchRequest(
            node=node,
            holdings=[*map(holding, first), ipam_pb2.Holding(owner="ghost"), ipam_pb2.Holding(owner="a")],
        )
    )
    assert released == ipam_pb2.ReleaseBatchResponse(released=2, absent=2, changed=1)
    assert await listed(addresses, node) == [again]


async def test_a_late_release_never_frees_the_owners_next_allocation(
    addresses: Addresses, home: Home
) -> None:
    node = home.node.name
    old = await addresses.Allocate(one(node, "c/eth0"))
    late = ipam_pb2.ReleaseRequest(node=node, owner="c/eth0", if_create_time=old.create_time)
    assert (await addresses.Release(late)).address == old.address
    # Once more, with nothing there.
    assert (await addresses.Release(late)).address == ""
    new = await addresses.Allocate(one(node, "c/eth0"))
    assert new.create_time != old.create_time
    error = await refused(addresses.Release(late), Aborted, "ALLOCATION_CHANGED")
    assert error.metadata["addresses"] == new.address
    assert await listed(addresses, node) == [new]
    # Containers of one pod differ in their owners: the DEL of the old one is none of the new one's business.
    other = await addresses.Allocate(one(node, "d/eth0"))
    assert (await addresses.Release(ipam_pb2.ReleaseRequest(node=node, owner="c/eth0"))).address
    assert await listed(addresses, node) == [other]


async def test_a_node_declared_gone_frees_all_and_late_releases_of_it_nothing(
    addresses: Addresses, nodes: Nodes, home: Home, place: Place
) -> None:
    gone = await addresses.Allocate(one(home.node.name, "c"))
    await nodes.DeleteNode(ipam_pb2.DeleteNodeRequest(name=home.node.name, force=True))
    node = await nodes.RegisterNode(
        ipam_pb2.RegisterNodeRequest(name=home.node.name, ipv4=place.underlay(1), pool=home.pool)
    )
    new = await addresses.Allocate(one(node.name, "c"))
    assert new.address == gone.address
    late = ipam_pb2.ReleaseRequest(node=node.name, owner="c", if_create_time=gone.create_time)
    await refused(addresses.Release(late), Aborted, "ALLOCATION_CHANGED")
    assert await listed(addresses, node.name) == [new]


async def test_one_owner_in_batches_and_calls_at_once_has_one_address(
    addresses: Addresses, home: Home
) -> None:
    node = home.node.name
    owners = [f"c{number}" for number in range(20)]
    calls = [addresses.AllocateBatch(batch(node, *owners[at:], *owners[:at])) for at in range(0, 20, 4)]
    unary = [addresses.Allocate(one(node, owner)) for owner in owners for _ in range(3)]
    answers, singles = await asyncio.gather(asyncio.gather(*calls), asyncio.gather(*unary))
    granted = {(each.owner, each.address) for answer in answers for each in answer.addresses}
    assert granted == {(each.owner, each.address) for each in singles}
    assert len(granted) == len({address for _, address in granted}) == 20


@pytest.mark.parametrize("pairs", [12])
async def test_many_callers_never_share_an_address(
    addresses: Addresses, nodes: Nodes, home: Home, place: Place, pairs: int
) -> None:
    other = await nodes.RegisterNode(
        ipam_pb2.RegisterNodeRequest(name=f"{place.name}-other", ipv4=place.underlay(2), pool=home.pool)
    )
    holders: dict[str, str] = {}

    def take(address: ipam_pb2.Address) -> None:
        key = f"{address.node}/{address.owner}"
        assert holders.setdefault(address.address, key) == key, "an address with two owners"

    async def churn(caller: int) -> None:
        node = (home.node, other)[caller % 2].name
        for turn in range(pairs):
            if caller % 4 == 3:
                owners = [f"b{caller}-{turn}-{number}" for number in range(9)]
                answer = await addresses.AllocateBatch(batch(node, *owners))
            else:
                answer = ipam_pb2.AllocateBatchResponse(
                    addresses=[await addresses.Allocate(one(node, f"c{caller}-{turn}"))]
                )
            for each in answer.addresses:
                take(each)
            if turn % 3:
                # On hold from here on: nobody else may be given it while this test runs.
                await addresses.ReleaseBatch(
                    ipam_pb2.ReleaseBatchRequest(node=node, holdings=map(holding, answer.addresses))
                )

    await asyncio.gather(*(churn(caller) for caller in range(32)))
    found = [*await listed(addresses, home.node.name), *await listed(addresses, other.name)]
    for each in found:
        assert holders[each.address] == f"{each.node}/{each.owner}"
    assert len(found) == (24 + 8 * 9) * pairs // 3
    assert len(holders) == (24 + 8 * 9) * pairs
    inside = IPv4Network(place.network)
    assert all(IPv4Network(each.cidr).subnet_of(inside) for each in found)
