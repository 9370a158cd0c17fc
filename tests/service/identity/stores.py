"""The parts of identity over a store of their own, in this process, under a clock that tests advance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import MetaData, delete, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed, feed_tables
from services.chassis.labels import LabelSet
from services.identity.collector import Collector, LeaseKeeper
from services.identity.ipcache_store import IpCacheStore
from services.identity.numbers import CLUSTER, Space
from services.identity.prefix_store import PrefixStore
from services.identity.remembered import memory_seconds
from services.identity.reserved import CLUSTER_FIRST, PREFIX_FIRST
from services.identity.schema import (
    holders,
    identities,
    identity_cursor,
    identity_uses,
    ipcache,
    label_filter,
    prefix_cursor,
    prefixes,
    usage_samples,
)
from services.identity.store import IdentityStore
from services.identity.unused_store import UnusedStore
from services.identity.use_store import UseStore
from tests.postgres import fresh_database

MIGRATIONS = "services.identity.migrations"
GRACE, LEASE = 100.0, 300.0
SECOND_NS = 1_000_000_000


class Clock:
    """Seconds that pass when a test says so; the wall clock may be set as well, and nothing goes by it."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.unix_ns = 1_700_000_000 * SECOND_NS

    def monotonic(self) -> float:
        return self.seconds

    def time_ns(self) -> int:
        return self.unix_ns

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        self.unix_ns += round(seconds * SECOND_NS)


def app(name: str) -> LabelSet:
    return LabelSet([f"k8s:app={name}"])


@contextmanager
def url_of(kind: str, directory: Path) -> Iterator[str]:
    """The URL of a new store of the kind, one of `tests.postgres.STORES`."""
    if kind == "sqlite":
        yield f"sqlite:///{directory}/identity.db"
        return
    with fresh_database("identity") as url:
        yield url


async def empty(url: str) -> None:
    """Makes a store as it was when it was new: quicker than a new one."""

    async def operation(connection: AsyncConnection) -> None:
        for table in (identities, prefixes, ipcache, holders, identity_uses, usage_samples):
            await connection.execute(delete(table))
        for table in feed_tables(MetaData()):
            await connection.execute(delete(table))
        await connection.execute(update(identity_cursor).values(next_id=CLUSTER_FIRST))
        await connection.execute(update(prefix_cursor).values(next_id=PREFIX_FIRST))
        await connection.execute(update(label_filter).values(patterns="[]", revision=1))

    async with await Database.open(url, MIGRATIONS) as database:
        await database.write(operation)


@dataclass
class Replica:
    """What one identity process does, call by call."""

    store: IdentityStore
    prefixes: PrefixStore
    uses: UseStore
    ipcache: IpCacheStore
    unused: UnusedStore
    collector: Collector
    keeper: LeaseKeeper
    feed: Feed

    @classmethod
    def over(cls, database: Database, clock: Clock, space: Space = CLUSTER, grace: float = GRACE) -> Replica:
        feed = Feed(database, "identities")
        remember = memory_seconds(grace)
        store = IdentityStore(
            database,
            feed,
            clock.time_ns,
            space=space,
            remember_seconds=remember,
            monotonic=clock.monotonic,
            prospect=lambda space: collector.prospect(space),
        )
        prefixes = PrefixStore(
            database, feed, clock.time_ns, remember_seconds=remember, monotonic=clock.monotonic
        )
        memories = (store.memory, prefixes.memory)
        uses = UseStore(database, feed, clock.time_ns)
        unused = UnusedStore(database, feed)
        collector = Collector(unused, memories, grace, clock=clock.time_ns, monotonic=clock.monotonic)
        keeper = LeaseKeeper(uses, memories, LEASE, monotonic=clock.monotonic)
        ipcache = IpCacheStore(database, Feed(database, "ipcache"))
        return cls(store, prefixes, uses, ipcache, unused, collector, keeper, feed)

    async def number(self, name: str, holder: str = "") -> int:
        return (await self.store.resolve(app(name), holder=holder, trace="")).number

    async def report(self, holder: str, *numbers: int) -> tuple[int, ...]:
        reported = await self.uses.report(holder, numbers)
        for memory in (self.store.memory, self.prefixes.memory):
            memory.forget_uses(holder, reported.ended)
        return reported.unknown

    async def numbers(self) -> set[int]:
        """Those that stand for something."""
        found, _ = await self.store.list(after=0, limit=None)
        return {identity.number for identity in found}


async def pass_time(clock: Clock, seconds: float, *replicas: Replica) -> None:
    """Lets time go by in steps, with the looks that each replica takes meanwhile."""
    left = seconds
    while left > 0:
        # No longer than a gap between two looks may count.
        step = min(left, 10.0)
        clock.advance(step)
        left -= step
        for replica in replicas:
            await replica.keeper.sweep()
            await replica.collector.sweep()
