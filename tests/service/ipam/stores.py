"""The stores of ipam over one database in this process, with clocks that tests move."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Self

from sqlalchemy import delete, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.feed import Feed, FeedEvent
from services.ipam.address_store import AddressStore
from services.ipam.exclusions import parse_all
from services.ipam.family import Network
from services.ipam.give_back import GiveBack
from services.ipam.model import AddressPair, Allocation, LabelSelector, Mode, Node, Pool
from services.ipam.node_rows import NODE_FEED
from services.ipam.node_store import NodeStore
from services.ipam.plan import PoolContent, plan_pool
from services.ipam.pool_store import PoolStore
from services.ipam.schema import addresses, holds, node_cidrs, nodes, pool_cidrs, pools

SECOND = 1_000_000_000


@dataclass
class Clocks:
    """Wall clock in nanoseconds and monotonic clock in seconds; both stand still until they are moved."""

    wall: int = 1_700_000_000 * SECOND
    monotonic: float = 1000.0

    def time_ns(self) -> int:
        """Unix time in nanoseconds."""
        return self.wall

    def seconds(self) -> float:
        """What `time.monotonic` would say."""
        return self.monotonic

    def move(self, seconds: float) -> None:
        """Time that passes."""
        self.wall += round(seconds * SECOND)
        self.monotonic += seconds

    def jump(self, seconds: float) -> None:
        """The wall clock is set anew."""
        self.wall += round(seconds * SECOND)


@dataclass
class World:
    """The stores, wired as the process wires them."""

    database: Database
    feed: Feed
    pools: PoolStore
    nodes: NodeStore
    addresses: AddressStore
    give_back: GiveBack
    clocks: Clocks
    made: dict[str, int] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        mode: Mode = "multi-pool",
        *,
        hold_seconds: float = 0.0,
        idle_seconds: float = 60.0,
        clocks: Clocks | None = None,
    ) -> AsyncIterator[Self]:
        """The stores over `url`, whose schema is brought up to date; `clocks` those of another replica."""
        async with await Database.open(url, "services.ipam.migrations") as database:
            clocks = clocks or Clocks()
            feed = Feed(database, NODE_FEED)
            now, monotonic = clocks.time_ns, clocks.seconds

            yield cls(
                database,
                feed,
                PoolStore(database, now, feed, hold_seconds=hold_seconds),
                NodeStore(database, feed, now, mode=mode),
                AddressStore(database, feed, now, mode=mode, hold_seconds=hold_seconds),
                GiveBack(database, feed, idle_seconds, monotonic),
                clocks,
            )

    async def pool(
        self,
        name: str,
        *cidrs: str,
        mask: int = 29,
        mask6: int = 125,
        excluded: Sequence[str] = (),
        pod: LabelSelector | None = None,
    ) -> Pool:
        """Makes a pool whose nodes get networks of five IPv4 and six IPv6 addresses."""
        networks = nets(*cidrs)
        return await self.pools.create(
            plan_pool(
                name,
                networks,
                mask if any(network.version == 4 for network in networks) else 0,
                mask6 if any(network.version == 6 for network in networks) else 0,
                excluded=parse_all(excluded, "excluded"),
                pod_selector=pod,
            )
        )

    async def update(self, name: str, *cidrs: str, excluded: Sequence[str] = (), revision: int = 0) -> Pool:
        """Lets the pool have these CIDRs."""
        content = PoolContent(nets(*cidrs), parse_all(excluded, "excluded"))
        return await self.pools.update(name, content, expected_revision=revision)

    async def node(self, number: int, pool: str = "p", *given: str) -> Node:
        """Registers the node of that number: "n1" with underlay address 172.31.0.1."""
        return await self.nodes.register(
            f"n{number}",
            IPv4Address(f"172.31.{number >> 8}.{number & 255}"),
            pool,
            pod_cidrs=nets(*given),
            trace="",
        )

    async def fill(self, node: str, count: int, pool: str = "") -> list[Allocation]:
        """Allocates for `count` new owners, one after the other."""
        present = await self.addresses.list(node=node, owner="", after=None, limit=10_000)
        first = self.made.setdefault(node, len(present))
        self.made[node] += count
        return [
            await self.addresses.allocate(node, f"c{number}", pool=pool)
            for number in range(first, first + count)
        ]

    async def events(self, after: int) -> list[FeedEvent]:
        """The events of the node feed past revision `after`, as a watcher gets them."""
        if await self._revision() == after:
            return []
        async for batch in self.feed.watch(after):
            return list(batch.events)
        raise AssertionError("a watch does not end")

    async def _revision(self) -> int:
        async with self.database.read() as connection:
            return await self.feed.revision_at(connection)


def nets(*texts: str) -> tuple[Network, ...]:
    """The networks written as `texts`."""
    return tuple(ip_network(text) for text in texts)


def texts(node: Node) -> list[str]:
    """The node's CIDRs as they are written, those that drain with a minus sign before."""
    return [("-" if cidr.draining else "") + str(cidr.network) for cidr in node.cidrs]


def pair(allocation: Allocation) -> AddressPair:
    """The addresses of an allocation."""
    by_family = {held.address.version: held.address for held in allocation.held}
    ipv4, ipv6 = by_family.get(4), by_family.get(6)
    assert not isinstance(ipv4, IPv6Address)
    assert not isinstance(ipv6, IPv4Address)
    return AddressPair(ipv4, ipv6)


async def empty(url: str) -> None:
    """Takes everything out of the store, the history of its feed too."""
    tables = (addresses, holds, node_cidrs, nodes, pool_cidrs, pools)
    async with await Database.open(url, "services.ipam.migrations") as database:

        async def operation(connection: AsyncConnection) -> None:
            for table in tables:
                await connection.execute(delete(table))
            for name in ("feed_event", "feed_state"):
                await connection.execute(text(f"DELETE FROM {name}"))

        await database.write(operation)
