"""Garbage collection of identities, and the ends of leases: both go by what has been seen for how long.

Why no number is collected that anybody can still believe in:

- A candidate has no use and no ipcache entry, and its `touched` has not changed, for the whole grace period,
  as this process has seen it at every look. Resolving an identity touches it, and so does every end of a use.
- What any replica remembers of an identity is younger than a part of that period (`remembered`).
- The write that removes it looks again; writes are one after the other, in whichever replica they begin.
- Time is this process's own monotonic clock, and a gap between looks counts for two intervals at most: the
  machine's clock may jump, and the process may be stopped, without anything being collected early.

Every replica collects; what one has removed the others no longer find.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from services.chassis.errors import FimbriaError
from services.chassis.feed import Feed
from services.chassis.logs import get_logger
from services.identity.numbers import CLUSTER, PREFIXES, Prospect, Space
from services.identity.remembered import Memory
from services.identity.sightings import Sightings
from services.identity.unused_store import UnusedStore
from services.identity.use_store import UseStore

# Identities that one transaction removes.
BATCH = 1000
# Over how many seconds the rate of collection is told.
RATE_SECONDS = 60.0
LONGEST_PAUSE = 15.0
SHORTEST_PAUSE = 0.05
RETRY_SECONDS = 0.5

log = get_logger(__name__)


def pause_of(seconds: float) -> float:
    """How long to wait between two looks for what lasts that long."""
    return min(max(seconds / 20, SHORTEST_PAUSE), LONGEST_PAUSE)


@dataclass(frozen=True, slots=True)
class Collection:
    """How garbage collection stands; see CollectionStatus in the API. Times are seconds, `swept_ns` is Unix
    time, 0 before the first look has ended.
    """

    collected: int
    rate: float
    backlog: int
    lag: float
    grace: float
    swept_ns: int


class Collector:
    """Looks for unused identities again and again, and removes those that have been so for `grace` seconds.

    With a grace of 0 it only looks. `clock` returns Unix nanoseconds, which are only shown.
    """

    def __init__(
        self,
        store: UnusedStore,
        memories: Sequence[Memory[Any]],
        grace: float,
        *,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._memories = memories
        self._grace = grace
        self._clock = clock
        self._monotonic = monotonic
        self._pause = pause_of(grace) if grace else LONGEST_PAUSE
        self._seen: dict[str, Sightings[int]] = {
            space.name: Sightings(monotonic, 2 * self._pause) for space in (CLUSTER, PREFIXES)
        }
        self._collected = 0
        self._started = monotonic()
        self._recent: deque[tuple[float, int]] = deque()
        self._swept_ns = 0

    async def run(self) -> NoReturn:
        """Collects for ever."""
        while True:
            try:
                await self.sweep()
            except FimbriaError as error:
                # What has been seen stays; the next look goes on from there.
                log.warning("cannot collect identities", reason=error.reason, error=str(error))
            await asyncio.sleep(self._pause)

    async def sweep(self) -> int:
        """One look at all identities, and the removal of those that are due; returns how many are gone."""
        for space, seen in self._seen.items():
            seen.look([found async for found in self._store.find(space)])
        self._swept_ns = self._clock()
        gone = 0
        for space, seen in self._seen.items():
            due = seen.over(self._grace) if self._grace else []
            for start in range(0, len(due), BATCH):
                gone += await self._remove(space, seen, due[start : start + BATCH])
        if gone:
            log.info("identities collected", identities=gone)
        return gone

    def prospect(self, space: Space) -> Prospect:
        """What is about to come free of a space, as of the last look."""
        ages = self._seen[space.name].ages() if self._grace else []
        if not ages:
            return Prospect()
        return Prospect(len(ages), max(self._grace - max(ages), 0.0) + self._pause)

    def unused(self, space: Space) -> int:
        """How many identities of a space nobody used at the last look."""
        return len(self._seen[space.name])

    def status(self) -> Collection:
        """How it stands now."""
        late = [age - self._grace for age in self._ages() if age > self._grace] if self._grace else []
        now = self._monotonic()
        while self._recent and now - self._recent[0][0] > RATE_SECONDS:
            self._recent.popleft()
        over = min(max(now - self._started, 1.0), RATE_SECONDS)
        return Collection(
            collected=self._collected,
            rate=sum(count for _, count in self._recent) / over,
            backlog=len(late),
            lag=max(late, default=0.0),
            grace=self._grace,
            swept_ns=self._swept_ns,
        )

    def _ages(self) -> Iterable[float]:
        for seen in self._seen.values():
            yield from seen.ages()

    async def _remove(self, space: str, seen: Sightings[int], due: Sequence[tuple[int, int]]) -> int:
        gone = await self._store.remove(space, due)
        for memory in self._memories:
            memory.forget(gone)
        # Also those that turned out to be in use, or collected by another replica: they begin anew.
        seen.forget(number for number, _ in due)
        self._collected += len(gone)
        self._recent.append((self._monotonic(), len(gone)))
        return len(gone)


class LeaseKeeper:
    """Ends the leases of holders that have not been heard of for `lease` seconds."""

    def __init__(
        self,
        uses: UseStore,
        memories: Sequence[Memory[Any]],
        lease: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uses = uses
        self._memories = memories
        self._lease = lease
        self._pause = pause_of(lease)
        self._seen: Sightings[str] = Sightings(monotonic, 2 * self._pause)

    async def run(self) -> NoReturn:
        """Watches over the leases for ever."""
        while True:
            try:
                await self.sweep()
            except FimbriaError as error:
                log.warning("cannot look at leases", reason=error.reason, error=str(error))
            await asyncio.sleep(self._pause)

    async def sweep(self) -> list[str]:
        """One look at all holders; returns those whose lease has ended with it."""
        self._seen.look(await self._uses.renewals())
        over = []
        for holder, renewals in self._seen.over(self._lease):
            ended = await self._uses.expire(holder, renewals)
            self._seen.forget([holder])
            if ended is None:
                continue
            over.append(holder)
            for memory in self._memories:
                memory.forget_uses(holder, ended)
            log.warning("lease ended", holder=holder, identities=len(ended), lease_seconds=self._lease)
        return over


async def forget_collected(feed: Feed, memories: Sequence[Memory[Any]]) -> NoReturn:
    """Lets go of what other replicas collect, for ever. Age alone would do; this is only sooner."""
    while True:
        try:
            async for batch in feed.watch(feed.revision):
                gone = [int(event.key) for event in batch.events if event.deleted]
                for memory in memories:
                    memory.forget(gone)
        except FimbriaError as error:
            log.warning("cannot follow identities", reason=error.reason, error=str(error))
        await asyncio.sleep(RETRY_SECONDS)
