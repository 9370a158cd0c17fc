"""Nodes that run out get another CIDR, pools change while they are in use, empty CIDRs go back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Network, ip_network

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Operation
from services.chassis.errors import (
    Aborted,
    FailedPrecondition,
    FimbriaError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from services.ipam.growth import grow, read_selectors
from services.ipam.model import AddressPair, LabelSelector, Node, PoolUsage, Workload
from services.ipam.node_rows import decode_node
from services.ipam.schema import node_cidrs, nodes
from tests.service.ipam.stores import World, nets, pair, texts


@pytest.fixture
async def world(url: str) -> AsyncIterator[World]:
    async with World.open(url) as world:
        yield world


def ipv4(text: str) -> IPv4Address:
    return IPv4Address(text)


async def told(world: World, after: int) -> list[tuple[str, list[str]]]:
    """Nodes and their CIDRs as watchers are told, in order, past revision `after`."""
    events = await world.events(after)
    return [(event.key, texts(decode_node(event.key, event.payload, event.revision))) for event in events]


async def test_a_node_that_runs_out_gets_another_cidr_and_watchers_learn_of_it(world: World) -> None:
    await world.pool("p", "10.0.0.0/28", "fd00::/120")
    node = await world.node(1)
    assert texts(node) == ["10.0.0.0/29", "fd00::/125"]
    await world.fill("n1", 5)
    sixth = (await world.fill("n1", 1))[0]
    (held, _) = sixth.held
    assert str(held.cidr) == "10.0.0.8/29"
    now = await world.nodes.get("n1")
    assert texts(now) == ["10.0.0.0/29", "fd00::/125", "10.0.0.8/29"]
    assert now.router(4) == ipv4("10.0.0.1"), "the first CIDR has the router address"
    assert held.router == ipv4("10.0.0.1")
    assert await told(world, node.revision) == [("n1", texts(now))]
    assert now.revision == node.revision + 1
    await world.fill("n1", 4)
    with pytest.raises(ResourceExhausted) as caught:
        await world.fill("n1", 1)
    assert caught.value.reason == "POOL_EXHAUSTED"
    pool = await world.pools.get("p")
    assert (pool.used, pool.capacity) == (1, 2)
    # Room for five each in two IPv4 CIDRs, for six each in two IPv6 ones.
    assert pool.usage == (
        PoolUsage(4, 2, 2, capacity=10, held=10, on_hold=0, excluded=0),
        PoolUsage(6, 32, 2, capacity=12, held=10, on_hold=0, excluded=0),
    )


async def test_a_pool_that_is_extended_gives_at_once(world: World) -> None:
    await world.pool("p", "10.0.0.0/29")
    await world.node(1)
    await world.fill("n1", 5)
    with pytest.raises(ResourceExhausted):
        await world.fill("n1", 1)
    with pytest.raises(ResourceExhausted):
        await world.node(2)
    pool = await world.update("p", "10.0.0.0/29", "10.9.0.0/28", revision=1)
    assert (pool.cidrs, pool.capacity, pool.revision) == (nets("10.0.0.0/29", "10.9.0.0/28"), 3, 2)
    (sixth,) = await world.fill("n1", 1)
    assert pair(sixth).ipv4 == ipv4("10.9.0.2")
    assert texts(await world.node(2)) == ["10.9.0.8/29"]


async def test_a_cidr_drains_while_it_is_used_and_goes_when_it_is_empty(world: World) -> None:
    await world.pool("p", "10.0.0.0/28", "10.9.0.0/28", excluded=["10.0.0.12", "10.9.0.13"])
    for number in (1, 2):
        await world.node(number)
    held = await world.fill("n1", 3)
    before = (await world.nodes.get("n2")).revision
    pool = await world.update("p", "10.9.0.0/28", excluded=["10.0.0.12", "10.9.0.13"])
    assert [(str(one.network), one.node_cidrs, one.addresses) for one in pool.draining] == [
        ("10.0.0.0/28", 2, 3)
    ]
    assert (await world.pools.list(after="", limit=9))[0].draining == pool.draining
    assert await told(world, before) == [("n1", ["-10.0.0.0/29"]), ("n2", ["-10.0.0.8/29"])]
    # Who has an address keeps it, and gets it again; who is new gets one of another CIDR.
    assert await world.addresses.allocate("n1", "c0") == held[0]
    (fresh,) = await world.fill("n1", 1)
    assert pair(fresh).ipv4 == ipv4("10.9.0.2")
    with pytest.raises(FailedPrecondition) as caught:
        await world.addresses.allocate("n1", "wish", AddressPair(ipv4("10.0.0.6")))
    assert caught.value.reason == "ADDRESS_DRAINING"
    # The router address stays with the first CIDR until the loader registers again.
    assert (await world.nodes.get("n1")).router(4) == ipv4("10.0.0.1")
    assert await world.give_back.turn() == []
    assert texts(await world.node(1)) == ["-10.0.0.0/29", "10.9.0.0/29"], "three addresses are held"
    for number in range(3):
        await world.addresses.release("n1", f"c{number}")
    assert texts(await world.node(1)) == ["10.9.0.0/29"], "what it holds already takes over"
    assert (await world.nodes.get("n1")).router(4) == ipv4("10.9.0.1")
    assert texts(await world.node(2)) == ["10.9.0.8/29"], "a new one is carved"
    pool = await world.pools.get("p")
    assert (pool.draining, pool.revision) == ((), 3)
    assert [span.text for span in pool.excluded] == ["10.9.0.13"]


async def test_what_a_replica_of_the_version_before_carves_of_a_draining_cidr_drains_too(
    world: World,
) -> None:
    await world.pool("p", "10.0.0.0/28", "10.9.0.0/28")
    await world.node(1)
    await world.update("p", "10.9.0.0/28")
    node = await world.node(2)

    async def carve(connection: AsyncConnection) -> None:
        row = {"cidr": "10.0.0.8/29", "node": "n2", "pool": "p", "position": 1, "family": 4}
        await connection.execute(insert(node_cidrs), {**row, "next_address": ipv4("10.0.0.10").packed})

    await world.database.write(carve)
    # It knows nothing of draining, and registering the first node again gives the first part back.
    await world.node(1)
    assert [str(one.network) for one in (await world.pools.get("p")).draining] == ["10.0.0.0/28"]
    assert await world.give_back.turn() == []
    assert ("n2", ["10.9.0.0/29", "-10.0.0.8/29"]) in await told(world, node.revision)
    assert await world.give_back.turn() == ["10.0.0.8/29"]
    assert (await world.pools.get("p")).draining == ()
    revision = await world.events(node.revision)
    assert await world.give_back.turn() == []
    assert await world.events(node.revision) == revision


async def test_naming_a_draining_cidr_again_puts_it_back_into_service(world: World) -> None:
    await world.pool("p", "10.0.0.0/29", "10.9.0.0/29")
    node = await world.node(1)
    held = await world.fill("n1", 1)
    await world.update("p", "10.9.0.0/29")
    assert texts(await world.nodes.get("n1")) == ["-10.0.0.0/29"]
    pool = await world.update("p", "10.9.0.0/29", "10.0.0.0/29")
    assert (pool.cidrs, pool.draining) == (nets("10.9.0.0/29", "10.0.0.0/29"), ())
    assert [cidrs for _, cidrs in await told(world, node.revision)] == [["-10.0.0.0/29"], ["10.0.0.0/29"]]
    (next_one,) = await world.fill("n1", 1)
    assert pair(next_one).ipv4 == ipv4("10.0.0.3")
    assert await world.addresses.allocate("n1", "c0") == held[0]


async def test_a_cidr_that_nobody_uses_is_gone_at_once(world: World) -> None:
    await world.pool("p", "10.0.0.0/29", "10.9.0.0/29")
    pool = await world.update("p", "10.9.0.0/29")
    assert (pool.cidrs, pool.draining) == (nets("10.9.0.0/29"), ())
    # Its addresses are anybody's again.
    await world.pool("q", "10.0.0.0/28")


async def test_a_change_of_nothing_changes_no_revision(world: World) -> None:
    await world.pool("p", "10.0.0.0/29")
    node = await world.node(1)
    assert (await world.update("p", "10.0.0.0/29")).revision == 1
    assert await told(world, node.revision) == []


async def test_a_change_of_a_pool_that_was_changed_meanwhile_is_refused(world: World) -> None:
    await world.pool("p", "10.0.0.0/29")
    await world.update("p", "10.0.0.0/29", "10.9.0.0/29", revision=1)
    with pytest.raises(Aborted) as caught:
        await world.update("p", "10.0.0.0/29", revision=1)
    assert caught.value.reason == "POOL_CHANGED"
    assert caught.value.metadata == {"pool": "p", "expected_revision": "1", "revision": "2"}
    assert (await world.pools.get("p")).cidrs == nets("10.0.0.0/29", "10.9.0.0/29")


@pytest.mark.parametrize(
    ("cidrs", "error", "reason"),
    [
        (("10.0.0.0/28", "10.5.0.0/29"), FailedPrecondition, "CIDR_OVERLAP"),
        (("10.0.0.0/29",), FailedPrecondition, "CIDR_OVERLAP"),
        (("10.0.0.0/28", "10.7.0.0/28", "10.7.0.0/29"), FailedPrecondition, "CIDR_OVERLAP"),
        (("10.0.0.0/28", "10.7.0.0/28", "10.7.0.0/28"), FailedPrecondition, "CIDR_OVERLAP"),
        (("10.0.0.0/28", "10.1.0.0/29"), FailedPrecondition, "CIDR_OVERLAP"),
        (("10.0.0.0/28", "10.7.0.0/30"), InvalidArgument, "MASK_SIZE_INVALID"),
        (("10.0.0.0/28", "fd00::/64"), InvalidArgument, "MASK_SIZE_INVALID"),
    ],
)
async def test_a_change_that_cannot_be_leaves_the_pool_as_it_was(
    world: World, cidrs: tuple[str, ...], error: type[FimbriaError], reason: str
) -> None:
    await world.pool("other", "10.5.0.0/28")
    await world.pool("p", "10.0.0.0/28", "10.1.0.0/28")
    await world.node(1)
    await world.node(2)
    await world.node(3)
    # 10.1.0.0/28 drains: a node holds a part of it.
    before = await world.update("p", "10.0.0.0/28")
    assert [str(one.network) for one in before.draining] == ["10.1.0.0/28"]
    with pytest.raises(error) as caught:
        await world.update("p", *cidrs)
    assert caught.value.reason == reason
    assert await world.pools.get("p") == before


async def test_pools_that_are_not_there_or_reserved_cannot_be_changed(world: World) -> None:
    with pytest.raises(NotFound, match="'p'"):
        await world.update("p", "10.0.0.0/29")
    for call in (world.update("kubernetes", "10.0.0.0/29"), world.pool("kubernetes", "10.0.0.0/29")):
        with pytest.raises(InvalidArgument) as caught:
            await call
        assert caught.value.reason == "POOL_NAME_RESERVED"


async def test_an_empty_cidr_goes_back_once_it_has_been_so_for_long_enough(world: World) -> None:
    await world.pool("p", "10.0.0.0/27")
    node = await world.node(1)
    await world.fill("n1", 6)
    assert await world.give_back.turn() == []
    await world.addresses.release("n1", "c5")
    assert await world.give_back.turn() == []
    world.clocks.jump(10_000)
    assert await world.give_back.turn() == [], "the wall clock says nothing about how long"
    world.clocks.move(59)
    assert await world.give_back.turn() == []
    # An address that comes and goes between two turns starts it anew.
    await world.addresses.allocate("n1", "short")
    await world.addresses.release("n1", "short")
    world.clocks.move(59)
    assert await world.give_back.turn() == []
    revision = (await world.nodes.get("n1")).revision
    world.clocks.move(60)
    assert await world.give_back.turn() == ["10.0.0.8/29"]
    assert await told(world, revision) == [("n1", ["10.0.0.0/29"])]
    assert (await world.events(revision))[0].trace == ""
    assert texts(await world.nodes.get("n1")) == texts(node)
    # Never the first one, however empty.
    for number in range(5):
        await world.addresses.release("n1", f"c{number}")
    for _ in range(3):
        world.clocks.move(100)
        assert await world.give_back.turn() == []


async def test_a_cidr_with_addresses_on_hold_stays(url: str) -> None:
    async with World.open(url, hold_seconds=30, idle_seconds=0) as world:
        await world.pool("p", "10.0.0.0/27")
        await world.node(1)
        await world.fill("n1", 6)
        await world.addresses.release("n1", "c5")
        assert await world.give_back.turn() == []
        (usage,) = (await world.pools.get("p")).usage
        assert (usage.held, usage.on_hold, usage.node_cidrs_used) == (5, 1, 2)
        world.clocks.move(31)
        (usage,) = (await world.pools.get("p")).usage
        assert (usage.held, usage.on_hold) == (5, 0), "over, though nothing has swept it away yet"
        await world.addresses.sweep()
        assert await world.give_back.turn() == ["10.0.0.8/29"]


async def test_what_a_turn_saw_is_verified_again_in_the_write(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.pool("p", "10.0.0.0/27")
    await world.node(1)
    await world.fill("n1", 6)
    await world.addresses.release("n1", "c5")
    await world.give_back.turn()
    world.clocks.move(61)
    write = world.database.write

    async def late(operation: Operation[list[str]]) -> list[str]:
        monkeypatch.setattr(world.database, "write", write)
        await world.addresses.allocate("n1", "in-between")
        return await write(operation)

    monkeypatch.setattr(world.database, "write", late)
    assert await world.give_back.turn() == []
    assert texts(await world.nodes.get("n1")) == ["10.0.0.0/29", "10.0.0.8/29"]


async def test_cidrs_of_other_pools_come_with_the_first_allocation_and_all_go_back(world: World) -> None:
    await world.pool("p", "10.0.0.0/28", "fd00::/120")
    await world.pool("red", "10.5.0.0/28", "fd05::/120", pod=LabelSelector((("color", "red"),)))
    await world.pool("blue", "10.6.0.0/28")
    await world.node(1)
    async with world.database.read() as connection:
        assert [one.pool for one in await read_selectors(connection)] == ["red"]
    red = await world.addresses.allocate("n1", "r", workload=Workload(labels={"color": "red"}))
    assert [str(held.cidr) for held in red.held] == ["10.5.0.0/29", "fd05::/125"]
    named = Workload(annotations={"ipam.cilium.io/ip-pool": "blue"})
    blue = await world.addresses.allocate("n1", "b", workload=named)
    # One family only: the pool has no other.
    assert [str(held.cidr) for held in blue.held] == ["10.6.0.0/29"]
    node = await world.nodes.get("n1")
    assert [(str(one.network), one.pool) for one in node.cidrs] == [
        ("10.0.0.0/29", "p"),
        ("fd00::/125", "p"),
        ("10.5.0.0/29", "red"),
        ("fd05::/125", "red"),
        ("10.6.0.0/29", "blue"),
    ]
    with pytest.raises(FailedPrecondition) as caught:
        await world.pools.delete("red")
    assert caught.value.reason == "POOL_IN_USE"
    assert (await world.pools.get("red")).used == 1
    for owner in "rb":
        await world.addresses.release("n1", owner)
    await world.give_back.turn()
    world.clocks.move(61)
    assert len(await world.give_back.turn()) == 3
    assert texts(await world.nodes.get("n1")) == ["10.0.0.0/29", "fd00::/125"]
    await world.pools.delete("red")


async def test_excluded_addresses_make_no_router_and_no_useless_cidr(world: World) -> None:
    # The first network's router, all of the second one, and a single address of the third.
    excluded = ["10.0.0.0-10.0.0.1", "10.0.0.10-10.0.0.14", "10.0.0.20"]
    await world.pool("p", "10.0.0.0/27", excluded=excluded)
    assert texts(await world.node(1)) == ["10.0.0.16/29"]
    assert [str(pair(one).ipv4) for one in await world.fill("n1", 4)] == [
        f"10.0.0.{host}" for host in (18, 19, 21, 22)
    ]
    # As another CIDR of the node the first one is good enough: its router address is not used.
    (fifth,) = await world.fill("n1", 1)
    assert pair(fifth).ipv4 == ipv4("10.0.0.2")
    assert texts(await world.nodes.get("n1")) == ["10.0.0.16/29", "10.0.0.0/29"]
    (usage,) = (await world.pools.get("p")).usage
    assert (usage.capacity, usage.held, usage.excluded) == (9, 5, 1)
    with pytest.raises(FailedPrecondition) as caught:
        await world.addresses.allocate("n1", "wish", AddressPair(ipv4("10.0.0.20")))
    assert caught.value.reason == "ADDRESS_EXCLUDED"


async def test_what_is_excluded_while_held_stays_until_it_is_released(world: World) -> None:
    await world.pool("p", "10.0.0.0/29")
    await world.node(1)
    held = await world.fill("n1", 2)
    pool = await world.update("p", "10.0.0.0/29", excluded=["10.0.0.2-10.0.0.3"])
    assert pool.usage[0] == PoolUsage(4, 1, 1, capacity=3, held=0, on_hold=0, excluded=2)
    assert await world.addresses.allocate("n1", "c0") == held[0]
    await world.addresses.release("n1", "c0")
    assert str(pair(await world.addresses.allocate("n1", "c0")).ipv4) == "10.0.0.4"


async def test_a_family_that_the_pool_gives_up_goes_from_its_nodes(world: World) -> None:
    await world.pool("p", "10.0.0.0/28", "fd00::/120")
    await world.node(1)
    (both,) = await world.fill("n1", 1)
    await world.update("p", "10.0.0.0/28")
    (one,) = await world.fill("n1", 1)
    assert [held.address.version for held in one.held] == [4]
    assert texts(await world.node(2)) == ["10.0.0.8/29"]
    assert texts(await world.node(1)) == ["10.0.0.0/29", "-fd00::/125"]
    await world.addresses.release("n1", both.owner)
    assert texts(await world.node(1)) == ["10.0.0.0/29"]
    assert (await world.pools.get("p")).draining == ()


async def test_a_node_that_is_deleted_by_force_gives_all_back(url: str) -> None:
    async with World.open(url, hold_seconds=30) as world:
        await world.pool("p", "10.0.0.0/28", "10.9.0.0/28")
        await world.node(1)
        await world.fill("n1", 7)
        await world.addresses.release("n1", "c0")
        await world.update("p", "10.9.0.0/28")
        with pytest.raises(FailedPrecondition):
            await world.nodes.delete("n1", force=False, trace="")
        assert len((await world.pools.get("p")).draining) == 1
        await world.nodes.delete("n1", force=True, trace="")
        pool = await world.pools.get("p")
        assert (pool.used, pool.draining) == (0, ())
        assert (await world.events(0))[-1].deleted


async def test_growth_is_part_of_the_write_that_it_is_called_in(world: World) -> None:
    await world.pool("p", "10.0.0.0/28")
    node = await world.node(1)

    async def fails(connection: AsyncConnection) -> None:
        assert await grow(connection, world.feed, "n1", "p", 4, "") == ip_network("10.0.0.8/29")
        assert await grow(connection, world.feed, "n1", "p", 4, "") is None
        assert await grow(connection, world.feed, "n1", "p", 6, "") is None
        raise ResourceExhausted("no", reason="NO")

    with pytest.raises(ResourceExhausted, match="no"):
        await world.database.write(fails)
    assert await world.nodes.get("n1") == node
    assert await told(world, node.revision) == []
    with pytest.raises(NotFound):
        await world.database.write(lambda connection: grow(connection, world.feed, "n1", "x", 4, ""))


async def test_a_batch_gets_all_the_cidrs_that_it_needs_with_one_event(world: World) -> None:
    # Of the third CIDR one address is left, of the fourth none, which makes it of no use.
    await world.pool("p", "10.0.0.0/24", excluded=["10.0.0.19-10.0.0.31"])
    node = await world.node(1)
    given = await world.addresses.allocate_batch("n1", [f"b{number}" for number in range(17)])
    now = await world.nodes.get("n1")
    assert texts(now) == [f"10.0.0.{host}/29" for host in (0, 8, 16, 32, 40)]
    assert len({one.held[0].address for one in given}) == 17
    assert await told(world, node.revision) == [("n1", texts(now))]


async def test_carving_from_a_pool_with_many_nodes_costs_little(world: World) -> None:
    await world.pool("p", "10.0.0.0/14", mask=28)
    taken = list(IPv4Network("10.0.0.0/14").subnets(new_prefix=28))[:10_000]

    async def fill(connection: AsyncConnection) -> None:
        await connection.execute(
            insert(nodes),
            [
                {"name": f"x{at}", "ipv4": str(IPv4Address(at)), "pool": "p", "created_ns": 0, "revision": 0}
                for at in range(len(taken))
            ],
        )
        await connection.execute(
            insert(node_cidrs),
            [
                {
                    "cidr": str(cidr),
                    "node": f"x{at}",
                    "pool": "p",
                    "position": 0,
                    "next_address": (cidr.network_address + 2).packed,
                    "family": 4,
                }
                for at, cidr in enumerate(taken)
            ],
        )

    await world.database.write(fill)
    node = await world.node(1)
    assert node.pod_cidrs == nets("10.2.113.0/28")
    assert (await world.pools.get("p")).usage[0].node_cidrs_used == 10_001
    # Every node of it is told, in one write.
    await world.update("p", "10.8.0.0/14")
    last: list[Node] = []
    async for batch in world.feed.watch(node.revision):
        last += [decode_node(event.key, event.payload, event.revision) for event in batch.events]
        if len(last) == 10_001:
            break
    assert all(one.cidrs[0].draining for one in last)
