"""Random sequences of calls against the real stores over one SQLite file."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.errors import FimbriaError
from services.chassis.feed import Feed
from services.ipam.address_store import AddressStore
from services.ipam.family import FAMILIES, Family, of_family
from services.ipam.model import AddressPair, Allocation, Pool
from services.ipam.node_store import NodeStore
from services.ipam.pool_store import PoolStore
from services.ipam.schema import addresses

T = TypeVar("T")


class Stores:
    """The stores over one file, driven from synchronous code."""

    def __init__(self, runner: asyncio.Runner, path: str) -> None:
        self.runner = runner
        self.database = self.run(Database.open(f"sqlite:///{path}", "services.ipam.migrations"))
        self.pools = PoolStore(self.database, time.time_ns)
        self.nodes = NodeStore(self.database, Feed(self.database, "nodes"), time.time_ns)
        self.addresses = AddressStore(self.database, Feed(self.database, "nodes"), time.time_ns)
        self.numbers = itertools.count()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)


def pair(allocation: Allocation) -> AddressPair:
    """The addresses of an allocation."""
    addresses = {held.address.version: held.address for held in allocation.held}
    ipv4, ipv6 = addresses.get(4), addresses.get(6)
    assert not isinstance(ipv4, IPv6Address)
    assert not isinstance(ipv6, IPv4Address)
    return AddressPair(ipv4, ipv6)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with asyncio.Runner() as runner:
        stores = Stores(runner, str(tmp_path_factory.mktemp("allocator") / "ipam.db"))
        yield stores
        stores.run(stores.database.close())


def test_no_address_ever_has_two_owners(stores: Stores) -> None:
    class Calls(RuleBasedStateMachine):
        """Allocations, wanted addresses and releases on two small nodes, against a model.

        The nodes hold both families, the IPv6 CIDRs with room for one pod more than the IPv4 ones.
        """

        owners = st.integers(0, 9).map(lambda number: f"c{number}/eth0")
        sides = st.integers(0, 1)

        def __init__(self) -> None:
            super().__init__()
            self.number = next(stores.numbers)
            networks = (
                IPv6Network(f"fd00:{self.number:x}::/123"),
                IPv4Network(f"10.{self.number >> 8}.{self.number & 255}.0/27"),
            )
            pool = f"p{self.number}"
            stores.run(stores.pools.create(Pool(pool, networks, 29, 125)))
            self.nodes = [
                stores.run(
                    stores.nodes.register(
                        f"n{self.number}-{side}",
                        IPv4Address(f"172.{16 + side}.{self.number >> 8}.{self.number & 255}"),
                        pool,
                        trace="",
                    )
                )
                for side in (0, 1)
            ]
            self.held: dict[tuple[str, str], AddressPair] = {}

        @rule(side=sides, owner=owners, batch=st.integers(1, 3))
        def allocate(self, side: int, owner: str, batch: int) -> None:
            node = self.nodes[side]
            names = [owner, *(f"{owner}-{number}" for number in range(1, batch))]

            async def all_at_once() -> list[Any]:
                calls = (stores.addresses.allocate(node.name, name) for name in names)
                return await asyncio.gather(*calls, return_exceptions=True)

            for name, answer in zip(names, stores.run(all_at_once()), strict=True):
                if isinstance(answer, FimbriaError):
                    assert answer.reason == "CIDR_EXHAUSTED"
                    assert answer.metadata["family"] == "IPv4"
                    assert (node.name, name) not in self.held
                    assert sum(1 for where, _ in self.held if where == node.name) == 5
                    continue
                known = self.held.setdefault((node.name, name), pair(answer))
                assert known == pair(answer)

        @rule(side=sides, owner=owners, host=st.integers(0, 8), family=st.sampled_from(FAMILIES))
        def allocate_wanted(self, side: int, owner: str, host: int, family: Family) -> None:
            node = self.nodes[side]
            (cidr,) = of_family(node.pod_cidrs, family)
            wanted = cidr.network_address + host
            wish = AddressPair(wanted) if isinstance(wanted, IPv4Address) else AddressPair(ipv6=wanted)
            mine = self.held.get((node.name, owner))
            try:
                answer = stores.run(stores.addresses.allocate(node.name, owner, wish))
            except FimbriaError as refusal:
                reasons = {
                    "ADDRESS_NOT_ON_NODE": host not in range(2, 7 if family == 4 else 8),
                    "ADDRESS_IN_USE": wanted in {one.of(family) for one in self.held.values()},
                    "OWNER_HOLDS_ANOTHER": mine is not None and mine.of(family) != wanted,
                    "CIDR_EXHAUSTED": family == 6 and sum(1 for at, _ in self.held if at == node.name) == 5,
                }
                assert reasons[refusal.reason]
                return
            assert pair(answer).of(family) == wanted
            assert self.held.setdefault((node.name, owner), pair(answer)) == pair(answer)

        @rule(side=sides, owner=owners)
        def release(self, side: int, owner: str) -> None:
            node = self.nodes[side]
            released = stores.run(stores.addresses.release(node.name, owner))
            assert released == self.held.pop((node.name, owner), AddressPair())

        @invariant()
        def the_table_says_what_was_acknowledged(self) -> None:
            listed = [
                one
                for node in self.nodes
                for one in stores.run(stores.addresses.list(node=node.name, owner="", after=None, limit=100))
            ]
            assert {(one.node, one.owner): pair(one) for one in listed} == self.held
            assert len({one.address for each in listed for one in each.held}) == 2 * len(listed)

        def teardown(self) -> None:
            for node in self.nodes:
                stores.run(stores.nodes.delete(node.name, force=True, trace=""))

    run_state_machine_as_test(
        Calls, settings=settings(max_examples=15, stateful_step_count=25, deadline=None)
    )


@pytest.mark.parametrize("change", ["owner", "address"])
def test_the_table_itself_refuses_doubles(stores: Stores, change: str) -> None:
    name = f"constraint-{change}"
    third = 200 + (change == "owner")
    stores.run(stores.pools.create(Pool(name, (IPv4Network(f"192.168.{third}.0/24"),), 24)))
    stores.run(stores.nodes.register(name, IPv4Address(f"172.30.0.{third}"), name, trace=""))
    (held,) = stores.run(stores.addresses.allocate(name, "holder")).held
    double = {"node": name, "owner": "holder", "family": 4, "address": held.address.packed}
    if change == "owner":
        double["owner"] = "thief"
    else:
        double["address"] = (held.address + 1).packed

    async def insert_double(connection: AsyncConnection) -> None:
        await connection.execute(insert(addresses), {**double, "cidr": str(held.cidr), "created_ns": 0})

    with pytest.raises(Exception, match="UNIQUE"):
        stores.run(stores.database.write(insert_double))

    async def drop_the_cidr(connection: AsyncConnection) -> None:
        await connection.execute(text("DELETE FROM node_cidrs WHERE cidr = :cidr"), {"cidr": str(held.cidr)})

    with pytest.raises(Exception, match="FOREIGN KEY"):
        stores.run(stores.database.write(drop_the_cidr))


def test_a_large_node_finds_the_gap_behind_many_held_addresses(stores: Stores) -> None:
    stores.run(stores.pools.create(Pool("wide", (IPv4Network("100.64.0.0/20"),), 20)))
    node = stores.run(stores.nodes.register("wide", IPv4Address("172.30.1.1"), "wide", trace=""))

    async def fill() -> list[IPv4Address | None]:
        calls = [stores.addresses.allocate("wide", f"c{number}") for number in range(4093)]
        # No more at once than the store lets wait.
        chunks = [await asyncio.gather(*calls[start : start + 1000]) for start in range(0, 4093, 1000)]
        return [pair(one).ipv4 for chunk in chunks for one in chunk]

    granted = stores.run(fill())
    assert len(set(granted)) == 4093 == node.pod_cidrs[0].num_addresses - 3
    stores.run(stores.addresses.release("wide", "c2600"))
    assert pair(stores.run(stores.addresses.allocate("wide", "late"))).ipv4 == granted[2600]


def test_addresses_of_the_other_family_do_not_get_in_the_way_of_a_search(stores: Stores) -> None:
    # As bytes every address of the IPv6 CIDR lies between 100.80.0.2 and 100.80.0.3.
    cidrs = (IPv4Network("100.80.0.0/28"), IPv6Network("6450:2::/124"))
    stores.run(stores.pools.create(Pool("mixed", cidrs, 28, 124)))
    stores.run(stores.nodes.register("mixed", IPv4Address("172.30.2.1"), "mixed", trace=""))
    granted = [pair(stores.run(stores.addresses.allocate("mixed", f"c{number}"))) for number in range(13)]
    assert len({one.ipv4 for one in granted}) == len({one.ipv6 for one in granted}) == 13
    for number in (5, 11):
        assert stores.run(stores.addresses.release("mixed", f"c{number}")) == granted[number]
        assert pair(stores.run(stores.addresses.allocate("mixed", "late"))).ipv4 == granted[number].ipv4
        stores.run(stores.addresses.release("mixed", "late"))
        stores.run(stores.addresses.allocate("mixed", f"c{number}", granted[number]))


def test_what_is_missing_of_an_owner_is_given(stores: Stores) -> None:
    cidrs = (IPv4Network("100.81.0.0/28"), IPv6Network("fd81::/124"))
    stores.run(stores.pools.create(Pool("half", cidrs, 28, 124)))
    stores.run(stores.nodes.register("half", IPv4Address("172.30.3.1"), "half", trace=""))
    whole = pair(stores.run(stores.addresses.allocate("half", "c")))

    async def lose_ipv6(connection: AsyncConnection) -> None:
        await connection.execute(text("DELETE FROM addresses WHERE node = 'half' AND family = 6"))

    for wish in (AddressPair(), AddressPair(ipv6=IPv6Address("fd81::9"))):
        stores.run(stores.database.write(lose_ipv6))
        now = pair(stores.run(stores.addresses.allocate("half", "c", wish)))
        assert now.ipv4 == whole.ipv4
        assert now.ipv6 is not None
        assert now.ipv6 == (wish.ipv6 or now.ipv6)
