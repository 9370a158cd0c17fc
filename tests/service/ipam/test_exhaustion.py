"""What an allocation is refused for, and what it is told: exhaustion, pools, fixed addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

import pytest

from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    FimbriaError,
    NotFound,
    ResourceExhausted,
)
from services.ipam.address_take import ANY
from services.ipam.model import AddressPair, LabelSelector, Workload
from tests.service.ipam.stores import World, nets, pair

E = TypeVar("E", bound=FimbriaError)


@pytest.fixture
async def world(url: str) -> AsyncIterator[World]:
    async with World.open(url) as world:
        yield world


def ipv4(text: str) -> AddressPair:
    return AddressPair(IPv4Address(text))


def ipv6(text: str) -> AddressPair:
    return AddressPair(ipv6=IPv6Address(text))


async def refusal(
    world: World,
    expected: type[E],
    reason: str,
    wanted: AddressPair = ANY,
    *,
    owner: str = "late",
    pool: str = "",
) -> E:
    """The error that an allocation on node n1 fails with, having changed nothing."""
    before = await everything(world)
    with pytest.raises(expected) as caught:
        await world.addresses.allocate("n1", owner, wanted, pool=pool)
    assert caught.value.reason == reason
    assert await everything(world) == before
    return caught.value


async def everything(world: World) -> object:
    """The node and all that is held on it."""
    held = await world.addresses.list(node="n1", owner="", after=None, limit=1000)
    return held, (await world.nodes.get("n1")).cidrs


async def test_a_full_pool_says_how_full_since_when_and_what_would_help(world: World) -> None:
    await world.pool("p", "10.0.0.0/28", excluded=["10.0.0.3", "10.0.0.11-10.0.0.12"])
    await world.node(1)
    await world.fill("n1", 5)
    world.clocks.move(60)
    await world.fill("n1", 2)
    world.clocks.move(60)
    error = await refusal(world, ResourceExhausted, "POOL_EXHAUSTED")
    assert error.metadata == {
        "pool": "p",
        "family": "IPv4",
        "node": "n1",
        "cidrs": "10.0.0.0/29, 10.0.0.8/29",
        "capacity": "7",
        "held": "7",
        "on_hold": "0",
        "excluded": "3",
        "since": "2023-11-14T22:14:20.000Z",
        "transient": "false",
        "help": "add a CIDR to the pool: fimbria pool extend p CIDR;"
        " or look for leaked addresses: fimbria ipam check",
    }
    assert error.retry_after is None
    for words in ("no free IPv4 address", "7 of 7 held", "3 excluded", "fimbria pool extend p CIDR"):
        assert words in str(error)
    # An owner with an address is answered all the same.
    assert await world.addresses.allocate("n1", "c3") == (await world.addresses.allocate("n1", "c3"))
    await world.update("p", "10.0.0.0/28", "10.0.1.0/28", excluded=["10.0.0.3", "10.0.0.11-10.0.0.12"])
    assert pair(await world.addresses.allocate("n1", "late")) == ipv4("10.0.1.2")


async def test_in_mode_kubernetes_the_nodes_cidrs_are_all_there_is(url: str) -> None:
    async with World.open(url, "kubernetes") as world:
        await world.nodes.register(
            "n1", IPv4Address("172.31.0.1"), "", pod_cidrs=nets("10.0.0.0/30", "10.0.1.0/30"), trace=""
        )
        first = [pair(one) for one in await world.fill("n1", 2)]
        assert first == [ipv4("10.0.0.2"), ipv4("10.0.1.2")]
        error = await refusal(world, ResourceExhausted, "CIDR_EXHAUSTED")
        said = {key: error.metadata[key] for key in ("pool", "cidrs", "capacity", "held", "transient")}
        assert said == {
            "pool": "kubernetes",
            "cidrs": "10.0.0.0/30, 10.0.1.0/30",
            "capacity": "2",
            "held": "2",
            "transient": "false",
        }
        assert "pod_cidr" in error.metadata["help"]
        await refusal(world, FailedPrecondition, "POOL_NOT_ALLOWED", pool="other")


async def test_a_pool_that_drains_wholly_says_that_there_is_nothing(world: World) -> None:
    await world.pool("p", "10.0.0.0/29")
    await world.node(1)
    await world.fill("n1", 1)
    await world.update("p", "10.0.1.0/29")
    await world.pool("full", "10.2.0.0/29")
    await world.node(2, "full")
    error = await refusal(world, ResourceExhausted, "POOL_EXHAUSTED", pool="full")
    assert (error.metadata["cidrs"], error.metadata["capacity"], error.metadata["since"]) == ("", "0", "")
    assert "has no IPv4 CIDR of pool 'full'" in str(error)
    # Its own pool has another for it.
    late = await world.addresses.allocate("n1", "late")
    assert pair(late) == ipv4("10.0.1.2")
    # The router stays where it is, in the first CIDR, though that drains.
    assert str(late.held[0].router) == "10.0.0.1"


async def test_the_family_that_is_out_is_named_and_nothing_taken_of_the_other(world: World) -> None:
    await world.pool("p", "10.0.0.0/29", "fd00::/124")
    await world.node(1)
    await world.fill("n1", 5)
    error = await refusal(world, ResourceExhausted, "POOL_EXHAUSTED")
    assert (error.metadata["family"], error.metadata["capacity"]) == ("IPv4", "5")
    await refusal(world, ResourceExhausted, "POOL_EXHAUSTED", ipv6("fd00::7"))
    await world.addresses.release("n1", "c0")
    assert pair(await world.addresses.allocate("n1", "late")) == AddressPair(
        IPv4Address("10.0.0.2"), IPv6Address("fd00::7")
    )


async def test_an_owner_has_the_families_that_node_and_pool_have_in_common(world: World) -> None:
    await world.pool("both", "10.0.0.0/28", "fd00::/124")
    await world.pool("six", "fd06::/124")
    await world.pool("four", "10.4.0.0/28")
    await world.node(1, "both")
    await world.node(2, "six")
    assert pair(await world.addresses.allocate("n1", "a", pool="six")) == ipv6("fd06::a")
    assert pair(await world.addresses.allocate("n1", "b", pool="four")) == ipv4("10.4.0.2")
    whole = await world.addresses.allocate("n1", "c")
    assert pair(whole) == AddressPair(IPv4Address("10.0.0.2"), IPv6Address("fd00::2"))
    # Whatever is asked for later, an owner has what it has.
    assert await world.addresses.allocate("n1", "a", pool="four") == await world.addresses.allocate("n1", "a")
    assert (await world.addresses.allocate("n1", "a")).pool == "six"
    with pytest.raises(FailedPrecondition) as caught:
        await world.addresses.allocate("n2", "d", pool="four")
    assert caught.value.reason == "POOL_FAMILY_MISMATCH"
    assert caught.value.metadata == {
        "pool": "four",
        "node": "n2",
        "pool_families": "IPv4",
        "node_families": "IPv6",
    }
    listed = await world.addresses.list(node="n1", owner="", after=None, limit=10)
    assert [(one.owner, one.pool, pair(one)) for one in listed] == [
        ("c", "both", pair(whole)),
        ("b", "four", ipv4("10.4.0.2")),
        ("a", "six", ipv6("fd06::a")),
    ]
    for at, one in enumerate(listed):
        after = (one.node, one.held[0].address)
        rest = await world.addresses.list(node="", owner="", after=after, limit=1)
        assert list(rest) == list(listed[at + 1 : at + 2])
        for held in one.held:
            found = await world.addresses.list(node="", owner="", address=held.address, after=None, limit=9)
            assert list(found) == [one]
    assert [one.owner for one in await world.addresses.list(node="", owner="b", after=None, limit=9)] == ["b"]


async def test_an_unknown_pool_is_not_found(world: World) -> None:
    await world.pool("p", "10.0.0.0/29")
    await world.node(1)
    error = await refusal(world, NotFound, "POOL_NOT_FOUND", pool="ghost")
    assert error.metadata["pool"] == "ghost"


async def test_a_workload_chooses_the_pool(world: World) -> None:
    await world.pool("p", "10.0.0.0/28")
    await world.pool("q", "10.1.0.0/28", pod=LabelSelector((("app", "web"),)))
    await world.node(1)
    web = Workload("ns", "pod", labels={"app": "web"})
    annotated = Workload("ns", "pod", labels={"app": "web"}, annotations={"fimbria.io/ip-pool": "p"})
    for owner, workload, pool in (("a", web, "q"), ("b", annotated, "p"), ("c", Workload("ns", "x"), "p")):
        assert (await world.addresses.allocate("n1", owner, workload=workload)).pool == pool
    # The request's own word is the last.
    assert (await world.addresses.allocate("n1", "d", pool="p", workload=web)).pool == "p"


async def test_fixed_addresses_that_nobody_may_have(world: World) -> None:
    await world.pool("p", "10.0.0.0/28", "fd00::/124", excluded=["10.0.0.4", "fd00::4-fd00::5"])
    await world.pool("q", "10.1.0.0/28")
    await world.node(1)
    await world.addresses.allocate("n1", "other", pool="q")
    await world.addresses.allocate("n1", "holder", ipv4("10.0.0.5"))
    excluded = await refusal(world, FailedPrecondition, "ADDRESS_EXCLUDED", ipv4("10.0.0.4"))
    assert excluded.metadata["excluded"] == "10.0.0.4"
    await refusal(world, FailedPrecondition, "ADDRESS_EXCLUDED", ipv6("fd00::5"))
    await refusal(world, AlreadyExists, "ADDRESS_IN_USE", ipv4("10.0.0.5"))
    await refusal(world, AlreadyExists, "OWNER_HOLDS_ANOTHER", ipv4("10.0.0.6"), owner="holder")
    for elsewhere in ("10.0.0.1", "10.0.0.7", "10.0.0.9", "192.0.2.1"):
        await refusal(world, FailedPrecondition, "ADDRESS_NOT_ON_NODE", ipv4(elsewhere))
    await refusal(world, FailedPrecondition, "ADDRESS_NOT_ON_NODE", ipv4("10.1.0.3"), pool="p")
    both = AddressPair(IPv4Address("10.0.0.6"), IPv6Address("fd00::4"))
    await refusal(world, FailedPrecondition, "ADDRESS_EXCLUDED", both)
    # One family held, the other asked for.
    await refusal(world, AlreadyExists, "OWNER_HOLDS_ANOTHER", ipv6("fd00::6"), owner="other")


async def test_a_fixed_address_brings_its_pool_and_one_of_the_other_family(world: World) -> None:
    await world.pool("p", "10.0.0.0/28", "fd00::/124")
    await world.pool("q", "10.1.0.0/28", "fd01::/124")
    await world.node(1)
    await world.addresses.allocate("n1", "a", pool="q")
    fixed = await world.addresses.allocate("n1", "b", ipv4("10.1.0.6"))
    assert fixed.pool == "q"
    assert pair(fixed) == AddressPair(IPv4Address("10.1.0.6"), IPv6Address("fd01::3"))
    wanted = AddressPair(IPv4Address("10.0.0.6"), IPv6Address("fd00::6"))
    assert pair(await world.addresses.allocate("n1", "c", wanted)) == wanted
    assert pair(await world.addresses.allocate("n1", "c", wanted)) == wanted


async def test_excluded_addresses_and_draining_cidrs_are_passed_over(world: World) -> None:
    await world.pool("p", "10.0.0.0/29", "10.0.1.0/29", excluded=["10.0.0.2-10.0.0.3", "10.0.1.6"])
    await world.node(1)
    granted = [pair(one) for one in await world.fill("n1", 4)]
    assert granted == [ipv4(f"10.0.{at}") for at in ("0.4", "0.5", "0.6", "1.2")]
    await world.addresses.release("n1", "c1")
    await world.update("p", "10.0.1.0/29", excluded=["10.0.1.6"])
    await refusal(world, FailedPrecondition, "ADDRESS_DRAINING", ipv4("10.0.0.5"))
    assert [pair(one) for one in await world.fill("n1", 3)] == [ipv4(f"10.0.1.{at}") for at in (3, 4, 5)]
    error = await refusal(world, ResourceExhausted, "POOL_EXHAUSTED")
    assert (error.metadata["cidrs"], error.metadata["capacity"]) == ("10.0.1.0/29", "4")


async def test_what_was_held_when_it_was_excluded_stays_with_its_owner(world: World) -> None:
    await world.pool("p", "10.0.0.0/29")
    await world.node(1)
    (held,) = await world.fill("n1", 1)
    await world.update("p", "10.0.0.0/29", excluded=["10.0.0.2-10.0.0.4"])
    assert await world.addresses.allocate("n1", "c0") == held
    await world.addresses.release("n1", "c0")
    assert [pair(one) for one in await world.fill("n1", 2)] == [ipv4("10.0.0.5"), ipv4("10.0.0.6")]
