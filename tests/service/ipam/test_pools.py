"""PoolService over a real socket."""

from __future__ import annotations

from typing import TypeAlias

import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from tests.service.ipam.conftest import Home, Place
from tests.service.refusals import refused

Pools: TypeAlias = "ipam_pb2_grpc.PoolServiceAsyncStub"


def request(name: str, *cidrs: str, mask: int = 24) -> ipam_pb2.CreatePoolRequest:
    return ipam_pb2.CreatePoolRequest(name=name, cidrs=cidrs, node_mask_size=mask)


async def test_the_default_pool_is_there_from_the_start(pools: Pools) -> None:
    pool = await pools.GetPool(ipam_pb2.GetPoolRequest(name="default"))
    assert (list(pool.cidrs), pool.node_mask_size, pool.node_cidrs_total) == (["10.244.0.0/16"], 24, 256)


async def test_creating_a_pool_again_returns_it(pools: Pools, place: Place) -> None:
    first = await pools.CreatePool(request(place.name, str(place.network)))
    assert await pools.CreatePool(request(place.name, str(place.network))) == first
    assert first.node_cidrs_used == 0


async def test_the_same_name_with_other_content_is_a_conflict(pools: Pools, place: Place) -> None:
    await pools.CreatePool(request(place.name, str(place.network)))
    error = await refused(
        pools.CreatePool(request(place.name, str(place.network), mask=25)), AlreadyExists, "POOL_EXISTS"
    )
    assert error.metadata == {
        "pool": place.name,
        "cidrs": str(place.network),
        "node_mask_size": "24",
    }


async def test_overlapping_cidrs_are_refused_naming_both(pools: Pools, place: Place) -> None:
    await pools.CreatePool(request(place.name, str(place.network)))
    inner = str(next(place.network.subnets(new_prefix=20)))
    error = await refused(
        pools.CreatePool(request(f"{place.name}-b", inner)), FailedPrecondition, "CIDR_OVERLAP"
    )
    assert error.metadata["cidr"] == inner
    assert error.metadata["other_cidr"] == str(place.network)
    assert error.metadata["other_pool"] == place.name
    await refused(pools.GetPool(ipam_pb2.GetPoolRequest(name=f"{place.name}-b")), NotFound, "POOL_NOT_FOUND")


async def test_cidrs_of_one_pool_may_not_overlap_each_other(pools: Pools, place: Place) -> None:
    halves = [str(place.network), str(next(place.network.subnets()))]
    error = await refused(pools.CreatePool(request(place.name, *halves)), FailedPrecondition, "CIDR_OVERLAP")
    assert error.metadata["other_pool"] == place.name


@pytest.mark.parametrize(
    ("cidrs", "mask", "field"),
    [
        ([], 24, "cidrs"),
        (["11.250.0.1/16"], 24, "cidrs[0]"),
        (["11.250.0.0/16", "nonsense"], 24, "cidrs[1]"),
        (["11.250.0.0/16"], 31, "node_mask_size"),
        (["11.250.0.0/16"], 15, "node_mask_size"),
    ],
)
async def test_bad_pools_are_refused_by_field(
    pools: Pools, place: Place, cidrs: list[str], mask: int, field: str
) -> None:
    reason = "MASK_SIZE_INVALID" if mask == 15 else "REQUEST_INVALID"
    error = await refused(pools.CreatePool(request(place.name, *cidrs, mask=mask)), InvalidArgument, reason)
    assert error.violations[0].field == field


async def test_a_pool_in_use_stays_and_an_unused_one_goes(
    pools: Pools, nodes: ipam_pb2_grpc.NodeServiceAsyncStub, home: Home
) -> None:
    delete = ipam_pb2.DeletePoolRequest(name=home.pool)
    error = await refused(pools.DeletePool(delete), FailedPrecondition, "POOL_IN_USE")
    assert error.metadata == {"pool": home.pool, "nodes": "1", "node": home.node.name}
    await nodes.DeleteNode(ipam_pb2.DeleteNodeRequest(name=home.node.name))
    await pools.DeletePool(delete)
    await pools.DeletePool(delete)
    await refused(pools.GetPool(ipam_pb2.GetPoolRequest(name=home.pool)), NotFound, "POOL_NOT_FOUND")


async def test_pools_are_listed_in_pages(pools: Pools, place: Place) -> None:
    names = [f"{place.name}-{letter}" for letter in "abc"]
    for name, cidr in zip(names, place.network.subnets(new_prefix=24), strict=False):
        await pools.CreatePool(request(name, str(cidr), mask=28))
    seen: list[str] = []
    token = ""
    while True:
        page = await pools.ListPools(ipam_pb2.ListPoolsRequest(page_size=2, page_token=token))
        assert len(page.pools) <= 2
        seen += [pool.name for pool in page.pools]
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted(seen)
    assert set(names) <= set(seen)
