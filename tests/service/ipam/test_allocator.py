"""Random sequences of calls against the real stores over one SQLite file."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine, Iterator
from ipaddress import IPv4Address, IPv4Network
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
from services.ipam.model import Pool
from services.ipam.schema import addresses
from services.ipam.store import NodeStore, PoolStore

T = TypeVar("T")


class Stores:
    """The stores over one file, driven from synchronous code."""

    def __init__(self, runner: asyncio.Runner, path: str) -> None:
        self.runner = runner
        self.database = self.run(Database.open(f"sqlite:///{path}", "services.ipam.migrations"))
        self.pools = PoolStore(self.database, time.time_ns)
        self.nodes = NodeStore(self.database, Feed(self.database, "nodes"), time.time_ns)
        self.addresses = AddressStore(self.database, time.time_ns)
        self.numbers = itertools.count()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with asyncio.Runner() as runner:
        stores = Stores(runner, str(tmp_path_factory.mktemp("allocator") / "ipam.db"))
        yield stores
        stores.run(stores.database.close())


def test_no_address_ever_has_two_owners(stores: Stores) -> None:
    class Calls(RuleBasedStateMachine):
        """Allocations, wanted addresses and releases on two small nodes, against a model."""

        owners = st.integers(0, 9).map(lambda number: f"c{number}/eth0")
        sides = st.integers(0, 1)

        def __init__(self) -> None:
            super().__init__()
            self.number = next(stores.numbers)
            network = IPv4Network(f"10.{self.number >> 8}.{self.number & 255}.0/27")
            pool = f"p{self.number}"
            stores.run(stores.pools.create(Pool(pool, (network,), 29)))
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
            self.held: dict[tuple[str, str], IPv4Address] = {}

        @rule(side=sides, owner=owners, batch=st.integers(1, 3))
        def allocate(self, side: int, owner: str, batch: int) -> None:
            node = self.nodes[side]
            names = [owner, *(f"{owner}-{number}" for number in range(1, batch))]

            async def all_at_once() -> list[Any]:
                calls = (stores.addresses.allocate(node.name, name, None) for name in names)
                return await asyncio.gather(*calls, return_exceptions=True)

            for name, answer in zip(names, stores.run(all_at_once()), strict=True):
                if isinstance(answer, FimbriaError):
                    assert answer.reason == "CIDR_EXHAUSTED"
                    assert (node.name, name) not in self.held
                    assert sum(1 for where, _ in self.held if where == node.name) == 5
                    continue
                known = self.held.setdefault((node.name, name), answer.address)
                assert known == answer.address

        @rule(side=sides, owner=owners, host=st.integers(0, 8))
        def allocate_wanted(self, side: int, owner: str, host: int) -> None:
            node = self.nodes[side]
            wanted = node.pod_cidrs[0].network_address + host
            try:
                answer = stores.run(stores.addresses.allocate(node.name, owner, wanted))
            except FimbriaError as refusal:
                reasons = {
                    "ADDRESS_NOT_ON_NODE": host not in range(2, 7),
                    "ADDRESS_IN_USE": wanted in self.held.values(),
                    "OWNER_HOLDS_ANOTHER": self.held.get((node.name, owner), wanted) != wanted,
                }
                assert reasons[refusal.reason]
                return
            assert answer.address == wanted
            assert self.held.setdefault((node.name, owner), wanted) == wanted

        @rule(side=sides, owner=owners)
        def release(self, side: int, owner: str) -> None:
            node = self.nodes[side]
            released = stores.run(stores.addresses.release(node.name, owner))
            assert released == self.held.pop((node.name, owner), None)

        @invariant()
        def the_table_says_what_was_acknowledged(self) -> None:
            listed = [
                one
                for node in self.nodes
                for one in stores.run(stores.addresses.list(node=node.name, owner="", after=None, limit=100))
            ]
            assert {(one.node, one.owner): one.address for one in listed} == self.held
            assert len({one.address for one in listed}) == len(listed)

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
    held = stores.run(stores.addresses.allocate(name, "holder", None))
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

    async def fill() -> list[IPv4Address]:
        calls = (stores.addresses.allocate("wide", f"c{number}", None) for number in range(4093))
        return [one.address for one in await asyncio.gather(*calls)]

    granted = stores.run(fill())
    assert len(set(granted)) == 4093 == node.pod_cidrs[0].num_addresses - 3
    stores.run(stores.addresses.release("wide", "c2600"))
    assert stores.run(stores.addresses.allocate("wide", "late", None)).address == granted[2600]
