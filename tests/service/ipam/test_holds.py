"""Addresses on hold after their release."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address

import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.errors import FimbriaError, ResourceExhausted, Unavailable
from services.ipam.address_release import Holding
from services.ipam.address_take import ANY
from services.ipam.holds import sweep_regularly
from services.ipam.model import AddressPair
from tests.patience import patient
from tests.service.ipam.conftest import Home
from tests.service.ipam.stores import SECOND, World, pair
from tests.service.refusals import refused

HOLD = 30


@pytest.fixture
async def world(url: str) -> AsyncIterator[World]:
    async with World.open(url, "cluster-pool", hold_seconds=HOLD) as world:
        yield world


def ipv4(host: int) -> IPv4Address:
    return IPv4Address("10.0.0.0") + host


async def given(world: World, owner: str, wanted: AddressPair = ANY) -> IPv4Address | None:
    """What `owner` gets on node n1 of IPv4."""
    return pair(await world.addresses.allocate("n1", owner, wanted)).ipv4


async def failure(world: World, owner: str, wanted: AddressPair = ANY) -> FimbriaError:
    """Why `owner` gets nothing on node n1."""
    with pytest.raises(FimbriaError) as caught:
        await world.addresses.allocate("n1", owner, wanted)
    return caught.value


async def on_hold(world: World) -> list[IPv4Address | IPv6Address]:
    found = await world.addresses.list_on_hold(node="", owner="", after=None, limit=100)
    return [hold.address for hold in found]


async def test_nobody_gets_an_address_while_it_is_on_hold(world: World) -> None:
    await world.pool("p", "10.0.0.0/29")
    await world.node(1)
    await world.fill("n1", 5)
    for number in (1, 3):
        await world.addresses.release("n1", f"c{number}")
        world.clocks.move(5)
    error = await failure(world, "late")
    assert isinstance(error, ResourceExhausted)
    assert error.reason == "ADDRESSES_ON_HOLD"
    assert error.retry_after == pytest.approx(20)
    said = {key: error.metadata[key] for key in ("transient", "capacity", "held", "on_hold", "free_at")}
    assert said == {
        "transient": "true",
        "capacity": "5",
        "held": "3",
        "on_hold": "2",
        "free_at": "2023-11-14T22:13:50.000Z",
    }
    assert error.metadata["help"].startswith("wait until 2023-11-14T22:13:50.000Z")
    world.clocks.move(19.9)
    assert (await failure(world, "late")).reason == "ADDRESSES_ON_HOLD"
    world.clocks.move(0.1)
    # Without a sweep: a hold is over when the clock says so.
    assert await given(world, "late") == ipv4(3)
    assert (await failure(world, "later")).reason == "ADDRESSES_ON_HOLD"
    assert await on_hold(world) == [ipv4(5)]


async def test_a_batch_is_told_when_there_are_enough_for_all_of_it(world: World) -> None:
    await world.pool("p", "10.0.0.0/29")
    await world.node(1)
    await world.fill("n1", 5)
    for number in range(3):
        await world.addresses.release("n1", f"c{number}")
        world.clocks.move(1)
    with pytest.raises(ResourceExhausted) as caught:
        await world.addresses.allocate_batch("n1", ["a", "b"])
    assert caught.value.reason == "ADDRESSES_ON_HOLD"
    assert caught.value.retry_after == pytest.approx(HOLD - 2)
    with pytest.raises(ResourceExhausted) as caught:
        await world.addresses.allocate_batch("n1", ["a", "b", "c", "d"])
    assert caught.value.reason == "POOL_EXHAUSTED"
    assert caught.value.retry_after is None


async def test_another_cidr_comes_before_waiting(world: World) -> None:
    await world.pool("p", "10.0.0.0/28")
    await world.node(1)
    await world.fill("n1", 5)
    await world.addresses.release("n1", "c0")
    assert await given(world, "late") == ipv4(10)
    node = await world.nodes.get("n1")
    assert [str(network) for network in node.pod_cidrs] == ["10.0.0.0/29", "10.0.0.8/29"]
    # What comes off hold is given before a third CIDR would be asked for.
    world.clocks.move(HOLD)
    later = [await given(world, f"later-{number}") for number in range(5)]
    assert set(later) == {ipv4(2), *map(ipv4, range(11, 15))}


async def test_a_requested_address_on_hold_is_refused_until_it_is_over(world: World) -> None:
    await world.pool("p", "10.0.0.0/28", "fd00::/124", mask=28, mask6=124)
    await world.node(1)
    both = AddressPair(ipv4(7), IPv6Address("fd00::7"))
    await world.addresses.allocate("n1", "old", both)
    await world.addresses.release("n1", "old")
    for wanted in (both, AddressPair(ipv4(7)), AddressPair(ipv6=both.ipv6)):
        error = await failure(world, "new", wanted)
        assert isinstance(error, ResourceExhausted)
        assert error.reason == "ADDRESS_ON_HOLD"
        assert error.retry_after == pytest.approx(HOLD)
        assert error.metadata["owner"] == "old"
        assert error.metadata["address"] == str(wanted.ipv4 or wanted.ipv6)
        assert (error.metadata["on_hold"], error.metadata["transient"]) == ("1", "true")
    assert not await world.addresses.list(node="n1", owner="", after=None, limit=9)
    world.clocks.move(HOLD)
    assert pair(await world.addresses.allocate("n1", "new", both)) == both
    assert not await on_hold(world)


async def test_a_sweep_removes_what_is_over_and_nothing_else(world: World) -> None:
    await world.pool("p", "10.0.0.0/24", mask=24)
    await world.node(1)
    await world.fill("n1", 6)
    for number in range(3):
        await world.addresses.release("n1", f"c{number}")
        world.clocks.move(10)
    assert await world.addresses.sweep() == 1
    assert await world.addresses.sweep() == 0
    assert await on_hold(world) == [ipv4(3), ipv4(4)]
    world.clocks.move(20)
    assert await world.addresses.sweep() == 2
    assert not await on_hold(world)
    assert await world.addresses.sweep() == 0


async def test_many_holds_are_swept_in_parts(world: World) -> None:
    await world.pool("p", "10.0.0.0/20", mask=20)
    await world.node(1)
    owners = [f"c{number}" for number in range(1200)]
    await world.addresses.allocate_batch("n1", owners)
    await world.addresses.release_batch("n1", [Holding(owner) for owner in owners])
    world.clocks.move(HOLD)
    assert await world.addresses.sweep() == 1200


async def test_a_clock_set_back_makes_a_hold_last_at_most_once_more(world: World) -> None:
    await world.pool("p", "10.0.0.0/29")
    await world.node(1)
    await world.fill("n1", 5)
    await world.addresses.release("n1", "c0")
    world.clocks.move(10)
    world.clocks.jump(-3600)
    error = await failure(world, "late")
    assert error.reason == "ADDRESSES_ON_HOLD"
    assert error.retry_after == pytest.approx(HOLD)
    assert await world.addresses.sweep() == 1
    world.clocks.move(HOLD - 1)
    assert await world.addresses.sweep() == 0
    assert (await failure(world, "late")).reason == "ADDRESSES_ON_HOLD"
    world.clocks.move(1)
    assert await given(world, "late") == ipv4(2)


async def test_a_sweep_that_fails_is_made_up_for_by_the_next(world: World) -> None:
    turns = 0
    twice = asyncio.Event()

    async def sweep() -> int:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise Unavailable("the disk is away", reason="DATABASE_IO")
        twice.set()
        return await world.addresses.sweep()

    task = asyncio.create_task(sweep_regularly(sweep, 0.001))
    async with asyncio.timeout(patient(10)):
        await twice.wait()
    assert not task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_without_holding_an_address_is_free_at_once(url: str) -> None:
    async with World.open(url, "cluster-pool", hold_seconds=0) as world:
        await world.pool("p", "10.0.0.0/29")
        await world.node(1)
        await world.fill("n1", 5)
        assert (await failure(world, "late")).reason == "POOL_EXHAUSTED"
        await world.addresses.release("n1", "c4")
        assert await given(world, "late") == ipv4(6)
        assert not await on_hold(world)


async def test_holds_end_with_their_cidr(world: World) -> None:
    await world.pool("p", "10.0.0.0/29")
    await world.node(1)
    await world.fill("n1", 2)
    await world.addresses.release("n1", "c0")
    await world.nodes.delete("n1", force=True, trace="")
    assert not await on_hold(world)
    await world.node(2)
    assert pair(await world.addresses.allocate("n2", "other")).ipv4 == ipv4(2)


async def test_holds_are_listed_by_node_and_number_in_pages_with_filters(
    addresses: ipam_pb2_grpc.AddressServiceAsyncStub, home: Home
) -> None:
    node = home.node.name
    owners = [f"c{number}" for number in range(7)]
    batch = await addresses.AllocateBatch(ipam_pb2.AllocateBatchRequest(node=node, owners=owners))
    for owner in reversed(owners[:5]):
        await addresses.Release(ipam_pb2.ReleaseRequest(node=node, owner=owner))
    seen: list[ipam_pb2.Address] = []
    token = ""
    while True:
        page = await addresses.ListAddresses(
            ipam_pb2.ListAddressesRequest(node=node, on_hold=True, page_size=2, page_token=token)
        )
        seen += page.addresses
        token = page.next_page_token
        if not token:
            break
    assert [(one.owner, one.address) for one in seen] == [
        (one.owner, one.address) for one in batch.addresses[:5]
    ]
    for one in seen:
        assert (one.pool, one.cidr, one.node) == (home.pool, home.node.pod_cidrs[0], node)
        left = one.hold_until.ToNanoseconds() - batch.addresses[0].create_time.ToNanoseconds()
        assert HOLD * SECOND <= left < (HOLD + 60) * SECOND
    for wanted in (
        ipam_pb2.ListAddressesRequest(node=node, on_hold=True, owner="c3"),
        ipam_pb2.ListAddressesRequest(on_hold=True, address=seen[3].address),
    ):
        assert list((await addresses.ListAddresses(wanted)).addresses) == [seen[3]]
    in_use = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(node=node))
    assert [one.owner for one in in_use.addresses] == ["c5", "c6"]
    error = await refused(
        addresses.Allocate(ipam_pb2.AllocateRequest(node=node, owner="new", address=seen[0].address)),
        ResourceExhausted,
        "ADDRESS_ON_HOLD",
    )
    assert error.retry_after is not None
    assert 0 < error.retry_after <= HOLD
