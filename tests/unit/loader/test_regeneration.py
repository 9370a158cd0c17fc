"""Requests coalesce, failures come back, and one endpoint is worked on once at a time."""

from __future__ import annotations

import asyncio

import pytest

from services.chassis.errors import Internal
from services.loader.endpoints.regeneration import Level, Regenerator
from services.loader.interfaces import DatapathError
from tests.unit.loader.waiting import until


class Work:
    """Counts what is done; ``gate`` holds it up, ``failures`` is how often it still fails."""

    def __init__(self) -> None:
        self.done: list[tuple[int, Level]] = []
        self.failed: list[tuple[int, str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures = 0
        self.at_once = self.most_at_once = 0

    async def __call__(self, endpoint: int, level: Level) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            if self.failures:
                self.failures -= 1
                raise DatapathError("the kernel refused")
            self.done.append((endpoint, level))
        finally:
            self.at_once -= 1

    def fail(self, endpoint: int, cause: str) -> None:
        self.failed.append((endpoint, cause))


async def test_requests_that_wait_become_one_at_the_highest_level() -> None:
    work = Work()
    regenerator = Regenerator(work, work.fail)
    work.gate.clear()
    first = asyncio.ensure_future(regenerator.request(1, Level.POLICY))
    await asyncio.sleep(0.01)
    others = [
        asyncio.ensure_future(regenerator.request(1, level))
        for level in (Level.POLICY, Level.REBUILD, Level.RELOAD)
    ]
    await asyncio.sleep(0)
    work.gate.set()
    await asyncio.gather(first, *others)
    assert work.done == [(1, Level.POLICY), (1, Level.REBUILD)]


async def test_a_failure_is_told_to_who_asked_and_tried_again() -> None:
    work = Work()
    work.failures = 1
    regenerator = Regenerator(work, work.fail)
    with pytest.raises(Internal, match="the kernel refused"):
        await regenerator.request(1, Level.RELOAD)
    assert work.failed == [(1, "the kernel refused")]
    await until(lambda: bool(work.done))
    assert work.done == [(1, Level.RELOAD)]


async def test_workers_are_bounded() -> None:
    work = Work()
    regenerator = Regenerator(work, work.fail, workers=3)
    work.gate.clear()
    requests = [asyncio.ensure_future(regenerator.request(n, Level.RELOAD)) for n in range(10)]
    await asyncio.sleep(0.01)
    work.gate.set()
    await asyncio.gather(*requests)
    assert work.most_at_once == 3
    assert len(work.done) == 10
