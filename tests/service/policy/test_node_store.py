# SPDX-License-Identifier: Apache-2.0
"""What replicas write about nodes: only the one that a node came to last has a say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.chassis.db import Database
from services.chassis.feed import Feed
from services.policy.engine import Subject
from services.policy.node_store import (
    PORTS_FEED,
    REPLICA_SECONDS,
    Acknowledged,
    NodeSave,
    NodeStore,
    StoredNode,
    ports_of,
)
from services.policy.rules import NamedPort, Protocol
from tests.postgres import STORES, fresh_database

WEB = Subject(300, (NamedPort("http", Protocol.TCP, 8080),))
NODE = Subject(1, (), ("k8s:role=edge",))


class Clock:
    ns = 10**18

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/policy.db"
        return
    with fresh_database("policy") as url:
        yield url


@pytest.fixture
async def stores(url: str, clock: Clock) -> AsyncIterator[list[NodeStore]]:
    async with await Database.open(url, "services.policy.migrations") as database:
        found = [NodeStore(database, Feed(database, PORTS_FEED), name, clock) for name in "ab"]
        for store in found:
            await store.heartbeat()
        yield found


def save(policy: int, *, subscribed: bool = True, claim: bool = False) -> NodeSave:
    return NodeSave("n", Acknowledged(policy, 1, "", 7), frozenset((WEB,)), subscribed, claim)


async def test_a_node_is_that_replica_s_which_claimed_it_last(stores: list[NodeStore]) -> None:
    a, b = stores
    assert await a.save([save(1)]) == {"n"}
    assert await a.load() == {}
    assert await a.save([save(1, claim=True)]) == set()
    assert await b.load() == {"n": StoredNode(Acknowledged(1, 1, "", 7), "a", frozenset((WEB,)))}
    assert await b.save([save(2)]) == {"n"}
    assert await b.save([save(2, claim=True)]) == set()
    # What the first still had to say, its stream's end included, changes nothing.
    assert await a.save([save(3)]) == {"n"}
    assert await a.save([save(3, subscribed=False)]) == {"n"}
    assert await a.save([save(3, subscribed=False, claim=True)]) == {"n"}
    assert (await a.load())["n"].replica == "b"
    assert await b.save([save(4, subscribed=False)]) == set()
    assert (await a.load())["n"] == StoredNode(Acknowledged(4, 1, "", 7), "", frozenset((WEB,)))


async def test_what_nodes_watch_is_read_by_the_other_replica(stores: list[NodeStore]) -> None:
    a, b = stores
    await a.save([save(1, claim=True)])
    await a.save_watched({"n": [WEB, NODE]})
    await b.save_watched({"n": []})
    assert await b.load_watched() == {"n": frozenset((WEB, NODE))}
    assert await a.load_watched() == {}
    await a.save([save(1, subscribed=False)])
    await a.save_watched({"n": [NODE]})
    assert await a.load_watched() == await b.load_watched() == {"n": frozenset((NODE,))}


async def test_a_replica_that_was_not_heard_of_for_long_has_no_nodes(
    stores: list[NodeStore], clock: Clock
) -> None:
    a, b = stores
    await a.save([save(1, claim=True)])
    clock.ns += int(REPLICA_SECONDS * 1e9) + 1
    await b.heartbeat()
    assert (await b.load())["n"].replica == ""
    # It itself knows better, and says so at its next heartbeat.
    assert (await a.load())["n"].replica == "a"
    await a.heartbeat()
    assert (await b.load())["n"].replica == "a"
    await a.leave()
    assert (await b.load())["n"].replica == ""


async def test_declared_ports_are_told_to_the_others_by_whom_the_node_is_on(stores: list[NodeStore]) -> None:
    a, b = stores
    await a.save([save(1, claim=True)])
    await a.save_ports("n", [WEB])
    await b.save_ports("n", [])
    assert await b.load_ports_of("n") == [WEB]
    known, revision = await b.load_ports()
    assert (known, revision) == ({"n": [WEB]}, 1)
    await b.forget("n")
    assert await a.load_ports() == ({}, 2)
    events = [event async for event in first_events(a, 2)]
    assert events == [("a", [WEB]), ("", [])]


async def first_events(store: NodeStore, count: int) -> AsyncIterator[tuple[str, list[Subject]]]:
    async for batch in store._ports.watch(0):
        for event in batch.events:
            yield ports_of(event)
            count -= 1
        if count <= 0:
            return
