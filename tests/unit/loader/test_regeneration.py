"""Requests coalesce, the most urgent comes first, failures come back, and one endpoint is worked on once at a
time.
"""

from __future__ import annotations

import asyncio

import pytest

from services.chassis.errors import Internal, NotFound
from services.loader.endpoints.engine import MOST_RETRY_SECONDS, Programs, Regenerator
from services.loader.endpoints.history import KEPT, Histories
from services.loader.endpoints.regeneration import Cause, Job, Level, Progress
from services.loader.interfaces import DatapathError, DatapathRefused
from services.loader.streams.backoff import Backoff
from tests.unit.loader.waiting import until


class Work:
    """Notes what is done; ``gate`` holds it up, ``failures`` is how often it still fails. Each job takes
    ``turns`` of the event loop.
    """

    def __init__(self) -> None:
        self.histories = Histories()
        self.regenerator = Regenerator(
            self.work,
            self.fail,
            rebuild=self.rebuild,
            histories=self.histories,
            workers=3,
            chance=lambda: 1.0,
        )
        self.done: list[tuple[int, Level]] = []
        self.jobs: list[Job] = []
        self.failed: list[tuple[int, str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures = 0
        self.rebuilds = 0
        self.turns = 0
        self.at_once = self.most_at_once = 0

    async def work(self, job: Job, programs: Programs) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            with self.histories.recorded((job.endpoint,), job.level, job.causes):
                await self.gate.wait()
                level = await programs()
                for _ in range(self.turns):
                    await asyncio.sleep(0)
                if self.failures:
                    self.failures -= 1
                    raise DatapathError("the kernel refused")
                self.jobs.append(job)
                self.done.append((job.endpoint, level))
        finally:
            self.at_once -= 1

    async def rebuild(self) -> None:
        await asyncio.sleep(0)
        self.rebuilds += 1

    def fail(self, endpoint: int, cause: str) -> None:
        self.failed.append((endpoint, cause))


async def test_requests_that_wait_become_one_at_the_highest_level_with_all_causes() -> None:
    work = Work()
    work.gate.clear()
    first = asyncio.ensure_future(work.regenerator.request(1, Level.POLICY))
    await until(lambda: work.at_once == 1)
    others = [
        asyncio.ensure_future(work.regenerator.request(1, level, cause))
        for level, cause in (
            (Level.POLICY, Cause.REFRESH),
            (Level.RELOAD, Cause.DEVICE),
            (Level.POLICY, Cause.REFRESH),
        )
    ]
    await asyncio.sleep(0)
    waiting = work.regenerator.pending(1)
    assert waiting is not None
    assert (waiting.progress, waiting.cause) == (Progress.QUEUED, "refresh, device")
    work.gate.set()
    await asyncio.gather(first, *others)
    assert work.done == [(1, Level.POLICY), (1, Level.RELOAD)]
    assert [entry.cause for entry in work.histories.of(1)] == ["refresh, device", "operator"]


async def test_a_rebuild_is_one_of_the_whole_node() -> None:
    work = Work()
    work.gate.clear()
    asked = [work.regenerator.request(number, Level.REBUILD) for number in range(1, 8)]
    asked += [work.regenerator.request(8, Level.RELOAD), work.regenerator.request(9, Level.POLICY)]
    waiting = [asyncio.ensure_future(each) for each in asked]
    await until(lambda: work.at_once == 3)
    work.gate.set()
    await asyncio.gather(*waiting)
    assert work.rebuilds == 1
    levels = dict(work.done)
    assert sorted(levels.values(), reverse=True) == [Level.REBUILD, *[Level.POLICY] * 8]
    await work.regenerator.request(1, Level.REBUILD)
    assert work.rebuilds == 2, "who asks after it began gets one of his own"
    await work.regenerator.request(2, Level.RELOAD)
    assert work.done[-1] == (2, Level.RELOAD)


async def test_the_most_urgent_comes_first() -> None:
    work = Work()
    work.gate.clear()
    for number in (1, 2, 3):
        work.regenerator.submit(number, Level.RELOAD, Cause.REFRESH)
    await until(lambda: work.at_once == 3)
    for number, cause in (
        (4, Cause.REFRESH),
        (5, Cause.RETRY),
        (6, Cause.DEVICE),
        (7, Cause.POLICY),
        (8, Cause.OPERATOR),
        (4, Cause.LABELS),
    ):
        work.regenerator.submit(number, Level.POLICY, cause)
    work.gate.set()
    await until(lambda: len(work.done) == 8)
    assert [job.endpoint for job in work.jobs[3:]] == [8, 4, 7, 6, 5] or [
        job.endpoint for job in work.jobs[3:]
    ] == [8, 7, 4, 6, 5]


async def test_a_failure_is_told_to_who_asked_and_tried_again_until_it_succeeds() -> None:
    work = Work()
    work.failures = 2
    with pytest.raises(Internal, match="the kernel refused"):
        await work.regenerator.request(1, Level.RELOAD)
    assert work.failed == [(1, "the kernel refused")]
    waiting = work.regenerator.pending(1)
    assert waiting is not None
    assert (waiting.cause, waiting.attempt) == ("operator, retry", 2)
    assert waiting.retry_time > 0
    (failed,) = work.histories.of(1)
    assert (failed.progress, failed.error) == (Progress.FAILED, "the kernel refused")
    assert failed.retry_time == pytest.approx(waiting.retry_time, abs=0.05)
    await until(lambda: bool(work.done))
    assert work.done == [(1, Level.RELOAD)]
    assert [entry.attempt for entry in work.histories.of(1)] == [3, 2, 1]
    await work.regenerator.request(1, Level.RELOAD)
    assert work.histories.of(1)[0].attempt == 1, "a success starts over"


async def test_who_asks_while_a_retry_waits_does_not_wait_for_it() -> None:
    work = Work()
    work.failures = 5
    for _ in range(5):
        with pytest.raises(Internal):
            await work.regenerator.request(1, Level.POLICY)
    await work.regenerator.request(1, Level.POLICY)
    assert work.done == [(1, Level.POLICY)]
    assert work.histories.of(1)[0].cause == "operator, retry"


async def test_retries_are_never_further_apart_than_half_a_minute() -> None:
    backoff = Backoff(0.5, MOST_RETRY_SECONDS)
    waits = [backoff.next() for _ in range(50)]
    assert max(waits) <= 30
    assert min(waits[10:]) >= 15


async def test_what_is_broken_beyond_the_kernel_is_tried_again_too() -> None:
    work = Work()
    broken = [ValueError("that should not be")]

    async def rebuild() -> None:
        if broken:
            raise broken.pop()

    work.regenerator._rebuild = rebuild
    with pytest.raises(Internal, match="that should not be"):
        await work.regenerator.request(1, Level.REBUILD)
    await until(lambda: work.done == [(1, Level.REBUILD)])


async def test_programs_that_are_refused_are_not_made_again_and_again() -> None:
    work = Work()
    tries = 0

    async def rebuild() -> None:
        nonlocal tries
        tries += 1
        raise DatapathRefused("bpf_lxc.c:1: no")

    work.regenerator._rebuild = rebuild
    with pytest.raises(Internal, match="no"):
        await work.regenerator.request(1, Level.REBUILD)
    await until(lambda: work.done == [(1, Level.RELOAD)])
    assert tries == 1


async def test_an_endpoint_that_is_gone_is_not_tried_again() -> None:
    work = Work()
    work.gate.clear()
    work.regenerator.submit(1, Level.POLICY, Cause.DEVICE)
    await until(lambda: work.at_once == 1)
    waiter = asyncio.ensure_future(work.regenerator.request(1, Level.POLICY))
    await asyncio.sleep(0)
    work.regenerator.forget(1)
    with pytest.raises(NotFound):
        await waiter
    assert work.regenerator.pending(1) is None


async def test_workers_are_bounded() -> None:
    work = Work()
    work.gate.clear()
    requests = [asyncio.ensure_future(work.regenerator.request(n, Level.RELOAD)) for n in range(10)]
    await until(lambda: work.at_once == 3)
    work.gate.set()
    await asyncio.gather(*requests)
    assert work.most_at_once == 3
    assert len(work.done) == 10


async def test_while_an_endpoint_is_made_the_others_have_one_worker() -> None:
    work = Work()
    work.turns = 3
    work.gate.clear()
    with work.regenerator.creating():
        for number in range(110):
            work.regenerator.submit(number, Level.RELOAD, Cause.REFRESH)
        await until(lambda: work.at_once == 1)
        work.gate.set()
        await until(lambda: len(work.done) > 5)
        assert work.most_at_once == 1
    await until(lambda: len(work.done) == 110)
    assert work.most_at_once == 3


async def test_the_last_sixteen_are_remembered_the_newest_first() -> None:
    work = Work()
    for _ in range(KEPT + 4):
        await work.regenerator.request(1, Level.POLICY)
    await work.regenerator.request(1, Level.RELOAD)
    assert len(work.histories.of(1)) == KEPT
    assert work.histories.of(1)[0].level is Level.RELOAD
    work.histories.forget(1)
    assert work.histories.of(1) == ()
