"""Leases and garbage collection over both kinds of store, under a clock that the tests advance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.errors import NotFound, ResourceExhausted
from services.identity.ipcache import Entry
from services.identity.numbers import CLUSTER, Space
from services.identity.schema import identities
from tests.postgres import STORES
from tests.service.identity.stores import (
    GRACE,
    LEASE,
    MIGRATIONS,
    Clock,
    Replica,
    app,
    empty,
    pass_time,
    url_of,
)


@pytest.fixture(scope="module", params=STORES)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with url_of(request.param, tmp_path_factory.mktemp("store")) as url:
        yield url


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    await empty(url)
    async with await Database.open(url, MIGRATIONS) as database:
        yield database


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def replica(database: Database, clock: Clock) -> Replica:
    return Replica.over(database, clock)


async def test_what_nobody_uses_goes_after_the_grace_period(replica: Replica, clock: Clock) -> None:
    web = await replica.number("web")
    await replica.prefixes.resolve(["10.0.0.0/8"], trace="")
    await replica.collector.sweep()
    await pass_time(clock, GRACE - 1, replica)
    assert len(await replica.numbers()) == 2
    await pass_time(clock, 6, replica)
    assert await replica.numbers() == set()
    # What it meant is free to be another number now, and the old one rests.
    assert await replica.number("web") == web + 1
    with pytest.raises(NotFound):
        await replica.store.get(web, "id")


async def test_each_end_is_an_event_and_each_number_comes_back_after_all_others(
    database: Database, clock: Clock
) -> None:
    replica = Replica.over(database, clock, Space("cluster", 256, 259, "help"))
    first = [await replica.number(name) for name in "ab"]
    await replica.collector.sweep()
    await pass_time(clock, GRACE + 5, replica)
    events = []
    async for batch in replica.feed.watch(0):
        events += [(int(event.key), event.deleted) for event in batch.events]
        if len(events) == 4:
            break
    assert events[:2] == [(256, False), (257, False)]
    assert {*events[2:]} == {(256, True), (257, True)}
    assert first == [256, 257]
    assert [await replica.number(name) for name in "cdef"] == [258, 259, 256, 257]


async def test_a_holder_keeps_its_identities_as_long_as_it_reports(replica: Replica, clock: Clock) -> None:
    web, db = await replica.number("web", "node/a"), await replica.number("db")
    (prefix,) = await replica.prefixes.resolve(["10.0.0.0/8"], holder="policy", trace="")
    for _ in range(12):
        await pass_time(clock, LEASE / 3, replica)
        assert await replica.report("node/a", web) == ()
        assert await replica.report("policy", prefix.number) == ()
    assert await replica.numbers() == {web, prefix.number}
    assert await replica.number("web", "node/a") == web
    # What it has left out is no longer in use, and what it says that there is not, it is told.
    assert await replica.report("node/a", db, 300, 70_000) == (db, 300, 70_000)
    await pass_time(clock, GRACE + 10, replica)
    assert await replica.numbers() == {prefix.number}


async def test_a_lease_that_is_not_renewed_ends(replica: Replica, clock: Clock) -> None:
    web = await replica.number("web", "node/a")
    await replica.number("db", "node/b")
    await pass_time(clock, LEASE - 10, replica)
    await replica.report("node/a", web)
    await pass_time(clock, 20, replica)
    (holder,) = await replica.uses.list(after="", limit=10)
    assert (holder.name, holder.identities) == ("node/a", 1)
    assert await replica.uses.count() == 1
    await pass_time(clock, GRACE + 10, replica)
    assert await replica.numbers() == {web}


async def test_a_lease_can_be_ended_at_once_and_by_anybody(replica: Replica, clock: Clock) -> None:
    web = await replica.number("web", "node/a")
    assert await replica.uses.end("node/a") == (web,)
    assert await replica.uses.end("node/a") == ()
    assert await replica.uses.end("node/never") == ()
    assert await replica.uses.list(after="", limit=10) == []
    await replica.collector.sweep()
    await pass_time(clock, GRACE + 5, replica)
    assert await replica.numbers() == set()


async def test_grace_begins_when_the_last_use_ends_even_if_no_look_saw_it(
    replica: Replica, clock: Clock
) -> None:
    web = await replica.number("web")
    await replica.collector.sweep()
    await pass_time(clock, GRACE - 10, replica)
    # Between two looks: used, and no longer used.
    await replica.report("node/a", web)
    await replica.report("node/a")
    await pass_time(clock, GRACE - 10, replica)
    assert await replica.numbers() == {web}
    await replica.ipcache.publish("a", [Entry("10.0.0.1/32", web, "a")], replace_node=False, trace="")
    await replica.ipcache.withdraw("a", ["10.0.0.1/32"], trace="")
    await pass_time(clock, GRACE - 10, replica)
    assert await replica.numbers() == {web}
    await pass_time(clock, 20, replica)
    assert await replica.numbers() == set()


async def test_an_ipcache_entry_keeps_its_identity(replica: Replica, clock: Clock) -> None:
    web, db = await replica.number("web"), await replica.number("db")
    entry = Entry("10.0.0.1/32", web, "a")
    await replica.ipcache.publish("a", [entry], replace_node=False, trace="")
    await replica.collector.sweep()
    await pass_time(clock, 3 * GRACE, replica)
    assert await replica.numbers() == {web}
    with pytest.raises(NotFound):
        await replica.ipcache.publish("a", [Entry("10.0.0.2/32", db, "a")], replace_node=False, trace="")
    await replica.ipcache.publish("a", [], replace_node=True, trace="")
    await pass_time(clock, GRACE + 10, replica)
    assert await replica.numbers() == set()


async def test_resolving_from_memory_of_another_replica_is_never_too_late(
    database: Database, clock: Clock
) -> None:
    one, other = Replica.over(database, clock), Replica.over(database, clock)
    web = await one.number("web")
    for _ in range(40):
        # The other replica alone collects, and sees only what is touched in the store.
        await pass_time(clock, 10, other)
        assert await one.number("web") == web
        assert web in await other.numbers()
    await pass_time(clock, GRACE + 10, other)
    assert await one.number("web") != web


async def test_a_process_that_stood_still_ends_nothing(replica: Replica, clock: Clock) -> None:
    web, db = await replica.number("web", "node/a"), await replica.number("db")
    await replica.keeper.sweep()
    await replica.collector.sweep()
    clock.advance(10 * LEASE)
    await replica.keeper.sweep()
    await replica.collector.sweep()
    assert await replica.numbers() == {web, db}
    assert await replica.report("node/a", web) == ()


async def test_a_wall_clock_that_jumps_ends_nothing(replica: Replica, clock: Clock) -> None:
    web = await replica.number("web", "node/a")
    await replica.number("db")
    for jump in (10**18, -2 * 10**18):
        clock.unix_ns += jump
        await pass_time(clock, 10, replica)
    assert len(await replica.numbers()) == 2
    assert await replica.report("node/a", web) == ()


async def test_replicas_collect_each_identity_once(database: Database, clock: Clock) -> None:
    replicas = [Replica.over(database, clock) for _ in range(2)]
    for number in range(50):
        await replicas[number % 2].number(f"n{number}")
    for replica in replicas:
        await replica.collector.sweep()
    await pass_time(clock, GRACE + 5, *replicas)
    assert await replicas[0].numbers() == set()
    assert sum(replica.collector.status().collected for replica in replicas) == 50
    assert (await replicas[0].store.list(after=0, limit=None))[1] == 100


async def test_a_holder_without_a_lease_is_told_of_numbers_that_came_up_since(
    database: Database, clock: Clock
) -> None:
    replica = Replica.over(database, clock, Space("cluster", 256, 257, "help"))
    web, kept = await replica.number("web", "node/a"), await replica.number("kept", "node/b")
    for _ in range(5):
        await pass_time(clock, LEASE / 3, replica)
        await replica.report("node/b", kept)
    # Its number means something else now, which it cannot know.
    assert await replica.number("other", "node/b") == web
    assert await replica.report("node/a", web, kept) == (web,)
    # After that it speaks of what it has resolved since.
    again = await replica.number("other", "node/a")
    assert await replica.report("node/a", again, kept) == ()


async def test_an_exhausted_space_says_how_full_it_is_and_what_would_help(
    database: Database, clock: Clock
) -> None:
    replica = Replica.over(database, clock, Space("cluster", 256, 258, "let fewer labels count"))
    used = [await replica.number(name, "node/a") for name in "ab"]
    await replica.number("c")
    with pytest.raises(ResourceExhausted) as caught:
        await replica.number("d")
    assert caught.value.reason == "IDENTITIES_EXHAUSTED"
    assert caught.value.metadata["transient"] == "false"
    # Once the look at the unused ones has shown one of them, there is something to wait for.
    await replica.collector.sweep()
    await pass_time(clock, 20, replica)
    with pytest.raises(ResourceExhausted) as caught:
        await replica.number("d")
    assert {key: caught.value.metadata[key] for key in ("capacity", "used", "unused", "transient")} == {
        "capacity": "3",
        "used": "3",
        "unused": "1",
        "transient": "true",
    }
    assert caught.value.retry_after is not None
    assert GRACE - 25 < caught.value.retry_after < GRACE
    for _ in range(2):
        await replica.report("node/a", *used)
        await pass_time(clock, GRACE, replica)
    assert await replica.number("d", "node/b") == 258
    # Nobody may wait for those that are in use.
    with pytest.raises(ResourceExhausted) as caught:
        await replica.number("e")
    assert caught.value.metadata["transient"] == "false"
    assert caught.value.metadata["help"] == "let fewer labels count"
    assert caught.value.retry_after is None
    # Known ones still resolve.
    assert await replica.number("a") == used[0]


async def test_the_last_numbers_cost_no_search_each(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a nearly full space, the free ones are looked up once for all that ask."""
    replica = Replica.over(database, clock, Space("cluster", 256, 4255, "help"))
    other = Replica.over(database, clock, Space("cluster", 256, 4255, "help"))
    rows = [
        {"id": number, "digest": number.to_bytes(32), "labels": "[]", "revision": 1, "created_ns": 0}
        for number in range(256, 4256)
        if number % 100
    ]

    async def fill(connection: AsyncConnection) -> None:
        await connection.execute(insert(identities), rows)

    await database.write(fill)
    searches = 0
    search = replica.store.numbers._search

    async def counted(connection: AsyncConnection, taken: set[int]) -> list[int]:
        nonlocal searches
        searches += 1
        return await search(connection, taken)

    monkeypatch.setattr(replica.store.numbers, "_search", counted)
    got = [await (other if at % 10 == 9 else replica).number(f"new{at}") for at in range(40)]
    assert got == list(range(300, 4300, 100))[:40]
    assert searches <= 2
    for _ in range(3):
        with pytest.raises(ResourceExhausted):
            await replica.number("too-many")
    assert searches <= 2


async def test_the_status_counts_what_is_late(replica: Replica, clock: Clock) -> None:
    for number in range(5):
        await replica.number(f"n{number}")
    await replica.collector.sweep()
    status = replica.collector.status()
    assert (status.collected, status.backlog, status.lag, status.grace) == (0, 0, 0.0, GRACE)
    await pass_time(clock, GRACE - 5, replica)
    # Time in which nothing is collected shows as backlog, as far as a gap between looks may count.
    clock.advance(15)
    status = replica.collector.status()
    assert status.backlog == 5
    assert 0 < status.lag <= 15
    await replica.collector.sweep()
    status = replica.collector.status()
    assert (status.collected, status.backlog, status.lag) == (5, 0, 0.0)
    assert status.rate > 0
    assert replica.collector.unused(CLUSTER) == 0


async def test_two_reports_with_nothing_new_change_nothing_but_the_lease(
    replica: Replica, database: Database
) -> None:
    web = await replica.number("web", "node/a")
    await replica.report("node/a", web)
    before = dict(await replica.uses.renewals())
    revision = (await replica.store.list(after=0, limit=1))[1]
    await replica.report("node/a", web)
    assert dict(await replica.uses.renewals()) == {"node/a": before["node/a"] + 1}
    assert (await replica.store.list(after=0, limit=1))[1] == revision
    assert (await replica.store.resolve(app("web"), holder="node/a", trace="")).number == web
    assert dict(await replica.uses.renewals()) == {"node/a": before["node/a"] + 1}
