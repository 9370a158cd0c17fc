"""A clock that jumps frees nothing, gives nothing twice, and holds nobody up for longer than it jumped."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from services.chassis.db import Database
from services.chassis.errors import ResourceExhausted
from services.chassis.feed import Feed
from services.ipam.address_store import AddressStore
from services.ipam.node_store import NodeStore
from services.ipam.plan import plan_pool
from services.ipam.pool_store import PoolStore
from tests.faults.checker import check_keys, check_single_owners, holding
from tests.faults.history import History, Refused
from tests.patience import patient

HOLD_SECONDS: Final = 0.2
JUMP_SECONDS: Final = 1.5
DAY, HOUR = 86_400, 3600


@dataclass
class JumpingClock:
    """The time, and what somebody has set it off by, in seconds."""

    offset: float = 0.0

    def __call__(self) -> int:
        return time.time_ns() + round(self.offset * 1e9)


@dataclass
class Node:
    """A node with addresses, by a clock that jumps."""

    store: AddressStore
    clock: JumpingClock


@asynccontextmanager
async def node_with(url: str, cidr: str) -> AsyncIterator[Node]:
    clock = JumpingClock()
    async with await Database.open(url, "services.ipam.migrations") as database:
        feed = Feed(database, "nodes")
        network = ipaddress.ip_network(cidr)
        await PoolStore(database, clock, feed).create(plan_pool("default", [network], network.prefixlen, 0))
        nodes = NodeStore(database, feed, clock)
        await nodes.register("n", ipaddress.IPv4Address("172.31.0.1"), "default", trace="")
        yield Node(AddressStore(database, feed, clock, hold_seconds=HOLD_SECONDS), clock)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ipam.db"
    return str(request.getfixturevalue("database_url"))


async def test_nothing_is_given_twice_while_the_clock_jumps(url: str, seed: int) -> None:
    history = History()
    async with node_with(url, "10.0.0.0/26") as node:
        end = time.monotonic() + JUMP_SECONDS

        async def work(number: int) -> None:
            chance = random.Random(f"{seed}-{number}")
            while time.monotonic() < end:
                owner = f"{number}-{chance.randrange(4)}"
                if chance.random() < 0.5:
                    with history.operation("take", owner) as done:
                        try:
                            done.result = str((await node.store.allocate("n", owner)).held[0].address)
                        except ResourceExhausted:
                            raise Refused from None
                else:
                    with history.operation("free", owner) as done:
                        done.result = str((await node.store.release("n", owner)).ipv4 or "")
                await asyncio.sleep(chance.random() * 0.02)

        async def jump() -> None:
            chance = random.Random(seed)
            while time.monotonic() < end:
                node.clock.offset = chance.choice([-DAY, -HOUR, -1, 0, 1, HOUR, DAY])
                await node.store.sweep()
                await asyncio.sleep(0.03)

        await asyncio.gather(jump(), *(work(number) for number in range(12)))
        listed = await node.store.list(node="", owner="", after=None, limit=1000)
        found = {each.owner: str(each.held[0].address) for each in listed}
    history.finally_read(found, {each.key for each in history.operations})
    check_keys(history.operations, holding)
    assert check_single_owners(history.operations) > 50
    assert len(set(found.values())) == len(found)


async def test_a_clock_set_back_by_a_day_does_not_hold_addresses_back_for_a_day(url: str) -> None:
    async with node_with(url, "10.0.0.0/29") as node:
        owners = [str(number) for number in range(5)]
        for owner in owners:
            await node.store.allocate("n", owner)
        for owner in owners:
            await node.store.release("n", owner)
        node.clock.offset = -DAY
        deadline = time.monotonic() + patient(10)
        while True:
            try:
                await node.store.sweep()
                await node.store.allocate("n", "another")
                return
            except ResourceExhausted as exc:
                assert exc.reason == "ADDRESSES_ON_HOLD" and time.monotonic() < deadline
                await asyncio.sleep(0.05)
