"""How the number spaces stand: what is taken, what nobody uses, and until when that can go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger
from services.identity.collector import Collection, Collector
from services.identity.forecast import Forecast, forecast
from services.identity.numbers import Space
from services.identity.unused_store import UnusedStore
from services.identity.usage_store import SAMPLE_SECONDS, UsageStore
from services.identity.use_store import UseStore

# What is kept of holders that are gone, in nanoseconds: a node that comes back later than this is a new one.
KEEP_ENDED_NS = 30 * 24 * 3600 * 1_000_000_000

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SpaceUsage:
    """A space, how many of its numbers are taken and how many of those unused, and its forecast."""

    space: Space
    taken: int
    unused: int
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Status:
    """What GetIdentityStatus tells."""

    spaces: Sequence[SpaceUsage]
    collection: Collection
    holders: int


class StatusReader:
    """Reads and samples the spaces. `taken` is how many numbers were so at the last sample, by space."""

    def __init__(
        self,
        spaces: Sequence[Space],
        usage: UsageStore,
        unused: UnusedStore,
        uses: UseStore,
        collector: Collector,
    ) -> None:
        self._spaces = spaces
        self._usage = usage
        self._unused = unused
        self._uses = uses
        self._collector = collector
        self.taken: dict[str, int] = {}

    async def read(self) -> Status:
        """How everything stands now."""
        found = []
        for space in self._spaces:
            samples, now = await self._usage.read(space)
            unused = 0
            async for _ in self._unused.find(space.name):
                unused += 1
            found.append(SpaceUsage(space, now.taken, unused, forecast(samples, now, space.capacity)))
        return Status(found, self._collector.status(), await self._uses.count())

    async def run(self) -> NoReturn:
        """Takes samples for ever."""
        while True:
            try:
                await self._usage.sample()
                for space in self._spaces:
                    _, now = await self._usage.read(space)
                    self.taken[space.name] = now.taken
                    await self._uses.forget_ended(now.at_ns - KEEP_ENDED_NS)
            except FimbriaError as error:
                log.warning("cannot sample the number spaces", reason=error.reason, error=str(error))
            await asyncio.sleep(SAMPLE_SECONDS)
