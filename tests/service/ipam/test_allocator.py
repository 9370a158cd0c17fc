"""Random sequences of calls against the allocator, groups of calls, and what the tables themselves refuse."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.errors import Aborted, FimbriaError
from services.ipam.address_release import Holding
from services.ipam.family import FAMILIES, Address, Family, of_family
from services.ipam.model import AddressPair, Allocation
from services.ipam.schema import addresses
from tests.service.ipam.stores import SECOND, World, pair

T = TypeVar("T")
HOLD = 30


@dataclass
class Stores:
    """The stores over one file, driven from synchronous code."""

    runner: asyncio.Runner
    world: World
    numbers: Iterator[int]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    url = f"sqlite:///{tmp_path_factory.mktemp('allocator')}/ipam.db"
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        world = runner.run(stack.enter_async_context(World.open(url, "cluster-pool", hold_seconds=HOLD)))
        yield Stores(runner, world, itertools.count(1))
        runner.run(stack.aclose())


@pytest.fixture
async def world(url: str) -> AsyncIterator[World]:
    async with World.open(url, "cluster-pool") as world:
        yield world


def test_no_address_ever_has_two_owners_nor_an_owner_too_early(stores: Stores) -> None:
    world, clocks = stores.world, stores.world.clocks

    class Calls(RuleBasedStateMachine):
        """Allocations, wanted addresses, releases and clocks on two full-up nodes, against a model.

        The nodes hold both families, the IPv6 CIDRs with room for one pod more than the IPv4 ones, and their
        pool has nothing more for them.
        """

        owners = st.integers(0, 9).map(lambda number: f"c{number}/eth0")
        sides = st.integers(0, 1)

        def __init__(self) -> None:
            super().__init__()
            number = next(stores.numbers)
            pool = f"p{number}"
            stores.run(world.pool(pool, f"fd00:{number:x}::/124", f"10.{number >> 8}.{number & 255}.0/28"))
            self.nodes = [stores.run(world.node(2 * number + side, pool)) for side in (0, 1)]
            self.held: dict[tuple[str, str], Allocation] = {}
            self.past: dict[tuple[str, str], list[int]] = {}
            # When each address was released, as the store should have it.
            self.released: dict[Address, int] = {}

        def tick(self) -> None:
            """No two readings of a real clock are the same."""
            clocks.wall += 1

        def on_hold(self, address: Address) -> bool:
            return address in self.released and self.released[address] + HOLD * SECOND > clocks.wall

        def usable(self, side: int, family: Family) -> list[Address]:
            (cidr,) = of_family(self.nodes[side].pod_cidrs, family)
            return [cidr[host] for host in range(2, 7 if family == 4 else 8)]

        def free(self, side: int, family: Family) -> list[Address]:
            taken = {held.address for one in self.held.values() for held in one.held}
            return [one for one in self.usable(side, family) if one not in taken and not self.on_hold(one)]

        def took(self, allocation: Allocation) -> None:
            """Checks what somebody got."""
            key = (allocation.node, allocation.owner)
            if key in self.held:
                assert self.held[key] == allocation
                return
            taken = {held.address for one in self.held.values() for held in one.held}
            assert len(allocation.held) == 2
            for held in allocation.held:
                assert held.address not in taken, "an address with two owners"
                assert not self.on_hold(held.address), "an address that is on hold"
                self.released.pop(held.address, None)
            assert allocation.created_ns not in self.past.get(key, [])
            self.past.setdefault(key, []).append(allocation.created_ns)
            self.held[key] = allocation

        def refused(self, side: int, missing: dict[Family, int], error: FimbriaError) -> None:
            """Checks why nobody got anything when so many are missing of each family."""
            family: Family = 4 if error.metadata["family"] == "IPv4" else 6
            assert missing[family] > 0
            waiting = [one for one in self.usable(side, family) if self.on_hold(one)]
            assert error.metadata["on_hold"] == str(len(waiting))
            transient = missing[family] <= len(waiting)
            assert error.reason == ("ADDRESSES_ON_HOLD" if transient else "POOL_EXHAUSTED")
            if transient:
                assert error.retry_after is not None
                assert 0 < error.retry_after <= HOLD

        @rule(side=sides, owner=owners, count=st.integers(1, 3))
        def allocate(self, side: int, owner: str, count: int) -> None:
            self.tick()
            node = self.nodes[side].name
            names = [owner, *(f"{owner}-{number}" for number in range(1, count))]

            async def all_at_once() -> list[Any]:
                calls = (world.addresses.allocate(node, name) for name in names)
                return await asyncio.gather(*calls, return_exceptions=True)

            for name, answer in zip(names, stores.run(all_at_once()), strict=True):
                if isinstance(answer, FimbriaError):
                    assert (node, name) not in self.held
                    self.refused(
                        side, {family: 1 - len(self.free(side, family)) for family in FAMILIES}, answer
                    )
                else:
                    self.took(answer)

        @rule(side=sides, names=st.lists(owners, min_size=1, max_size=6, unique=True))
        def allocate_batch(self, side: int, names: list[str]) -> None:
            self.tick()
            node = self.nodes[side].name
            new = [name for name in names if (node, name) not in self.held]
            missing = {family: len(new) - len(self.free(side, family)) for family in FAMILIES}
            try:
                answers = stores.run(world.addresses.allocate_batch(node, names))
            except FimbriaError as error:
                self.refused(side, missing, error)
                family: Family = 4 if error.metadata["family"] == "IPv4" else 6
                assert error.metadata["owner"] == new[len(new) - missing[family]]
                return
            assert max(missing.values()) <= 0
            assert [one.owner for one in answers] == names
            for answer in answers:
                self.took(answer)

        @rule(side=sides, owner=owners, host=st.integers(0, 8), family=st.sampled_from(FAMILIES))
        def allocate_wanted(self, side: int, owner: str, host: int, family: Family) -> None:
            self.tick()
            node = self.nodes[side]
            (cidr,) = of_family(node.pod_cidrs, family)
            wanted = cidr.network_address + host
            wish = AddressPair(wanted) if isinstance(wanted, IPv4Address) else AddressPair(ipv6=wanted)
            mine = self.held.get((node.name, owner))
            other: Family = 6 if family == 4 else 4
            try:
                answer = stores.run(world.addresses.allocate(node.name, owner, wish))
            except FimbriaError as refusal:
                full = not self.free(side, other)
                reasons = {
                    "ADDRESS_NOT_ON_NODE": wanted not in self.usable(side, family),
                    "ADDRESS_IN_USE": wanted in {one.of(family) for one in map(pair, self.held.values())},
                    "ADDRESS_ON_HOLD": self.on_hold(wanted),
                    "OWNER_HOLDS_ANOTHER": mine is not None and pair(mine).of(family) != wanted,
                    "POOL_EXHAUSTED": full,
                    "ADDRESSES_ON_HOLD": full,
                }
                assert reasons[refusal.reason]
                return
            assert pair(answer).of(family) == wanted
            self.took(answer)

        def gave_back(self, key: tuple[str, str]) -> None:
            for held in self.held.pop(key).held:
                self.released[held.address] = clocks.wall

        @rule(side=sides, owner=owners, late=st.booleans())
        def release(self, side: int, owner: str, late: bool) -> None:
            self.tick()
            key = (self.nodes[side].name, owner)
            mine, past = self.held.get(key), self.past.get(key, [])
            created_ns = past[0] if late and past else None
            try:
                released = stores.run(world.addresses.release(*key, created_ns))
            except Aborted as error:
                assert error.reason == "ALLOCATION_CHANGED"
                assert mine is not None
                assert created_ns != mine.created_ns
                return
            assert released == (AddressPair() if mine is None else pair(mine))
            if mine is not None:
                assert created_ns in (None, mine.created_ns)
                self.gave_back(key)

        @rule(side=sides, names=st.lists(owners, min_size=1, max_size=5, unique=True), late=st.booleans())
        def release_batch(self, side: int, names: list[str], late: bool) -> None:
            self.tick()
            keys = [(self.nodes[side].name, name) for name in names]
            stamps = [self.past.get(key, [None])[0] if late else None for key in keys]
            holdings = [Holding(key[1], stamp) for key, stamp in zip(keys, stamps, strict=True)]
            result = stores.run(world.addresses.release_batch(self.nodes[side].name, holdings))
            expected = [0, 0, 0]
            for key, stamp in zip(keys, stamps, strict=True):
                mine = self.held.get(key)
                if mine is None:
                    expected[1] += 1
                elif stamp in (None, mine.created_ns):
                    expected[0] += 1
                    self.gave_back(key)
                else:
                    expected[2] += 1
            assert [result.released, result.absent, result.changed] == expected

        @rule(seconds=st.sampled_from([1, 10, 29, 31]))
        def time_passes(self, seconds: int) -> None:
            clocks.move(seconds)

        @rule(seconds=st.sampled_from([-86_400, -60, -20, -1, 1, 20, 3600]))
        def the_clock_is_set(self, seconds: int) -> None:
            clocks.jump(seconds)

        @rule()
        def sweep(self) -> None:
            stores.run(world.addresses.sweep())
            # What is over is over, wherever the clock goes from here.
            self.released = {
                address: min(released, clocks.wall)
                for address, released in self.released.items()
                if self.on_hold(address)
            }

        @invariant()
        def the_tables_say_what_was_acknowledged(self) -> None:
            for side, node in enumerate(self.nodes):
                listed = stores.run(world.addresses.list(node=node.name, owner="", after=None, limit=100))
                assert {one.owner: one for one in listed} == {
                    owner: one for (at, owner), one in self.held.items() if at == node.name
                }
                waiting = stores.run(
                    world.addresses.list_on_hold(node=node.name, owner="", after=None, limit=100)
                )
                assert {one.address for one in waiting} == {
                    one for family in FAMILIES for one in self.usable(side, family) if self.on_hold(one)
                }
                assert all(one.until_ns <= clocks.wall + HOLD * SECOND for one in waiting)

        def teardown(self) -> None:
            for node in self.nodes:
                stores.run(world.nodes.delete(node.name, force=True, trace=""))

    run_state_machine_as_test(
        Calls, settings=settings(max_examples=20, stateful_step_count=30, deadline=None)
    )


@pytest.mark.parametrize("change", ["owner", "address"])
async def test_the_table_itself_refuses_doubles(world: World, change: str) -> None:
    await world.pool("p", "10.0.0.0/29")
    await world.node(1)
    (held,) = (await world.addresses.allocate("n1", "holder")).held
    double = {"node": "n1", "owner": "holder", "family": 4, "address": held.address.packed}
    if change == "owner":
        double["owner"] = "thief"
    else:
        double["address"] = (held.address + 1).packed

    async def insert_double(connection: AsyncConnection) -> None:
        await connection.execute(insert(addresses), {**double, "cidr": str(held.cidr), "created_ns": 0})

    with pytest.raises(Exception, match=r"(?i)unique"):
        await world.database.write(insert_double)

    async def drop_the_cidr(connection: AsyncConnection) -> None:
        await connection.execute(text("DELETE FROM node_cidrs WHERE cidr = :cidr"), {"cidr": str(held.cidr)})

    with pytest.raises(Exception, match=r"(?i)foreign key"):
        await world.database.write(drop_the_cidr)


async def test_a_large_node_finds_the_gap_behind_many_held_addresses(world: World) -> None:
    await world.pool("p", "100.64.0.0/20", mask=20)
    await world.node(1)
    owners = [f"c{number}" for number in range(4093)]
    granted = await world.addresses.allocate_batch("n1", owners)
    assert {one.held[0].address for one in granted} == {
        IPv4Network("100.64.0.0/20")[slot] for slot in range(2, 4095)
    }
    for number in (2600, 0, 4092):
        await world.addresses.release("n1", f"c{number}")
        late = await world.addresses.allocate("n1", f"late-{number}")
        assert pair(late) == pair(granted[number])


async def test_addresses_of_the_other_family_do_not_get_in_the_way_of_a_search(world: World) -> None:
    # As bytes every address of the IPv6 CIDR lies between 100.80.0.2 and 100.80.0.3.
    await world.pool("p", "100.80.0.0/28", "6450:2::/124", mask=28, mask6=124)
    await world.node(1)
    granted = [pair(one) for one in await world.fill("n1", 13)]
    assert len({one.ipv4 for one in granted}) == len({one.ipv6 for one in granted}) == 13
    for number in (5, 11):
        assert await world.addresses.release("n1", f"c{number}") == granted[number]
        assert pair(await world.addresses.allocate("n1", "late")).ipv4 == granted[number].ipv4
        await world.addresses.release("n1", "late")
        await world.addresses.allocate("n1", f"c{number}", granted[number])


async def test_calls_that_meet_each_get_their_own_answer(world: World) -> None:
    for number in range(1, 4):
        await world.pool(f"p{number}", f"10.{number}.0.0/29")
        await world.node(number, f"p{number}")
    await world.fill("n1", 5)
    allocate = world.addresses.allocate
    wanted = AddressPair(IPv4Address("10.2.0.2"))
    full, any_one, first, second, same, again, ghost, foreign = await asyncio.gather(
        allocate("n1", "late"),
        allocate("n2", "a"),
        allocate("n2", "b", wanted),
        allocate("n2", "c", wanted),
        allocate("n3", "a"),
        allocate("n3", "a"),
        allocate("ghost", "a"),
        allocate("n2", "d", pool="p3"),
        return_exceptions=True,
    )
    reasons = [one.reason for one in (full, second, ghost, foreign) if isinstance(one, FimbriaError)]
    assert reasons == ["POOL_EXHAUSTED", "ADDRESS_IN_USE", "NODE_NOT_FOUND", "POOL_NOT_ALLOWED"]
    assert same == again
    # What is asked for by name is not given to those who take anything.
    granted = [pair(one).ipv4 for one in (any_one, first, same) if isinstance(one, Allocation)]
    assert granted == [IPv4Address(text) for text in ("10.2.0.3", "10.2.0.2", "10.3.0.2")]


async def test_what_was_carved_for_a_batch_that_fails_goes_back(world: World) -> None:
    for number in (1, 2):
        await world.pool(f"p{number}", f"10.{number}.0.0/28")
        await world.node(number, f"p{number}")
    batch = world.addresses.allocate_batch
    large, small, single = await asyncio.gather(
        batch("n1", [f"c{number}" for number in range(11)]),
        batch("n2", [f"c{number}" for number in range(7)]),
        world.addresses.allocate("n1", "a"),
        return_exceptions=True,
    )
    assert isinstance(large, FimbriaError)
    assert large.reason == "POOL_EXHAUSTED"
    assert not isinstance(small, BaseException)
    assert not isinstance(single, BaseException)
    assert len({one.held[0].address for one in small}) == 7
    assert len((await world.nodes.get("n1")).cidrs) == 1
    assert len((await world.nodes.get("n2")).cidrs) == 2
    listed = await world.addresses.list(node="n1", owner="", after=None, limit=9)
    assert list(listed) == [single]
