# SPDX-License-Identifier: Apache-2.0
"""Several processes of this service over one store: what each of them tells the others about its nodes.

Policies and identities reach every replica by their feeds. What nodes say reaches one replica only, the one
that they are subscribed to. It stores that, and the others read it: the ports that pods declare as they
change, because entries depend on them; how far nodes have come when somebody asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from services.chassis.errors import FimbriaError, OutOfRange
from services.chassis.feed import Feed
from services.chassis.logs import get_logger
from services.policy import problems
from services.policy.declared_ports import DeclaredPorts
from services.policy.distribution import Distributor
from services.policy.enforcement import Enforcement
from services.policy.engine import Subject
from services.policy.node_store import NodeStore, StoredNode, ports_of
from services.policy.saver import Saver
from services.policy.stored import StoredPolicy

HEARTBEAT_SECONDS = 3.0
RETRY_SECONDS = 0.5
# What only people look at may be this late in the store.
LATE_SECONDS = 1.0
# How many changes of declared ports are kept for other replicas to follow.
KEEP = 1000
COMPACT_EVERY = 500

log = get_logger(__name__)


class Replica:
    """This process among the replicas. `clock` returns Unix time in nanoseconds; made by `open`."""

    def __init__(
        self, store: NodeStore, ports_feed: Feed, clock: Callable[[], int], known: Mapping[str, StoredNode]
    ) -> None:
        self._store = store
        self._feed = ports_feed
        self._ports_revision = 0
        self._nodes = Saver("nodes", self._save_nodes)
        self._watched = Saver("watched subjects", self._save_watched, LATE_SECONDS)
        self._ports = Saver("declared ports", self._save_ports)
        self.enforcement = Enforcement(
            {name: node.acknowledged for name, node in known.items()},
            self._nodes.mark,
            clock,
            self.refresh,
            self._watched.mark,
        )
        self.enforcement.take(known, store.replica)

    @classmethod
    async def open(
        cls,
        store: NodeStore,
        ports_feed: Feed,
        policies: tuple[Sequence[StoredPolicy], int],
        clock: Callable[[], int],
    ) -> Replica:
        """With what the store has of nodes and their ports; `policies` and their revision are as loaded."""
        await store.heartbeat()
        replica = cls(store, ports_feed, clock, await store.load())
        ports, replica._ports_revision = await store.load_ports()
        known, revision = policies
        replica.distributor = Distributor(
            known,
            revision,
            DeclaredPorts(ports, replica._ports.mark),
            replica.enforcement.advanced,
        )
        return replica

    distributor: Distributor

    async def refresh(self, watched: bool = True) -> None:
        """Know what other replicas have stored, with or without what their nodes watch. The stream of a node
        that has gone to one of them ends.
        """
        subjects: dict[str, frozenset[Subject]] | None = None
        if watched:
            subjects = await self._store.load_watched()
            self.distributor.watched_elsewhere(subjects)
        stored = await self._store.load()
        self._end(self.enforcement.take(stored, self._store.replica, subjects))

    def tasks(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """What has to run as long as the process does."""
        for saver in (self._nodes, self._watched, self._ports):
            yield "saver", saver.run()
        yield "heartbeat", self._beat()
        yield "ports", self._follow_ports()

    async def leave(self) -> None:
        """Store what is not stored yet, and let the others know that this replica is gone."""
        for saver in (self._nodes, self._watched, self._ports):
            await saver.flush()
        with suppress(FimbriaError):
            await self._store.leave()

    # -- inside

    def _end(self, names: Iterable[str]) -> None:
        for name in names:
            log.info("node has gone to another replica", node=name)
            self.distributor.end(name, problems.subscription_replaced(name))

    async def _beat(self) -> NoReturn:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                await self._store.heartbeat()
                await self.refresh()
            except FimbriaError as error:
                log.warning("heartbeat failed", reason=error.reason, error=str(error))

    async def _save_nodes(self, names: list[str]) -> None:
        saves = self.enforcement.to_save(names)
        lost = await self._store.save(saves)
        self.enforcement.saved(saves)
        self._end(save.name for save in saves if save.name in lost and self.enforcement.is_here(save.name))
        for save in saves:
            if not save.subscribed:
                await self._reread_ports(save.name)

    async def _save_watched(self, names: list[str]) -> None:
        # Also how far the identities have come there, which alone is not worth a write.
        await self._store.save(self.enforcement.to_save(names))
        left = [name for name in names if not self.enforcement.is_here(name)]
        await self._store.save_watched({name: self.distributor.watched_by(name) for name in names})
        for name in left:
            self.distributor.watched_is_stored(name)

    async def _save_ports(self, names: list[str]) -> None:
        # The store takes a node's ports from the replica that it knows the node to be on.
        claims = [save for save in self.enforcement.to_save(names) if save.claim]
        if claims:
            await self._store.save(claims)
            self.enforcement.saved(claims)
        for name in names:
            await self._store.save_ports(name, self.distributor.ports.by_node(name))

    async def _reread_ports(self, name: str) -> None:
        """A node has left: what it declared last may have been said to another replica, while it was here."""
        if not await self._ports.flush():
            return
        declared = await self._store.load_ports_of(name)
        if not self.enforcement.is_here(name):
            self.distributor.take_ports(name, declared)

    async def _follow_ports(self) -> NoReturn:
        """Hand over what pods on nodes of other replicas declare."""
        while True:
            try:
                await self._follow_ports_once()
            except OutOfRange:
                known, self._ports_revision = await self._store.load_ports()
                for name in {*known, *self.distributor.ports.nodes()}:
                    if not self.enforcement.is_here(name):
                        self.distributor.take_ports(name, known.get(name, ()))
            except FimbriaError as error:
                log.warning("cannot follow declared ports", reason=error.reason, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow_ports_once(self) -> None:
        since_compaction = 0
        async for batch in self._feed.watch(self._ports_revision):
            for event in batch.events:
                writer, declared = ports_of(event)
                if writer != self._store.replica and not self.enforcement.is_here(event.key):
                    self.distributor.take_ports(event.key, declared)
            self._ports_revision = batch.revision
            since_compaction += len(batch.events)
            if since_compaction >= COMPACT_EVERY:
                since_compaction = 0
                await self._feed.compact(KEEP)
