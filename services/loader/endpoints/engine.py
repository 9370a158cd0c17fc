"""The regeneration engine: who is regenerated when, and again when it failed.

Requests for one endpoint that wait become one, at the highest level that was asked for and with all their
causes. They are worked off by priority, a bounded number at a time, one endpoint once at a time, and by one
worker alone while an endpoint is being made: a new pod does not wait for a hundred that run already. A
failure is tried again until it succeeds; the waits double and are never longer than half a minute.

A rebuild is one of the whole node: it moves every device to the new programs, so whoever asked for one, or
for a reload, before it began has only map entries left to be seen to.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from services.chassis.errors import FimbriaError, Internal, NotFound
from services.chassis.logs import get_logger
from services.loader import measure_points
from services.loader.endpoints.history import Histories
from services.loader.endpoints.regeneration import Cause, Job, Level, Priority, Progress, Regeneration, joined
from services.loader.interfaces import DatapathError, DatapathRefused
from services.loader.streams.backoff import Backoff

WORKERS: Final = 4
FIRST_RETRY_SECONDS: Final = 0.5
MOST_RETRY_SECONDS: Final = 30.0

_log = get_logger(__name__)

# Sees to the node's programs as the job asks for; returns what is left to be done for the endpoint.
Programs = Callable[[], Awaitable[Level]]
Work = Callable[[Job, Programs], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Request:
    """What waits for an endpoint. ``since`` is its place among all requests; ``timer`` is set while it waits
    for its next try.
    """

    level: Level
    priority: Priority
    since: int
    asked: float
    context: contextvars.Context
    causes: tuple[Cause, ...] = ()
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Regenerations that wait for a worker, that run, and that have failed and wait for their next try."""

    queued: int
    running: int
    retrying: int


class Regenerator:
    """Runs ``work(job, programs)`` for what is asked for. ``failed(endpoint, problem)`` is told of every
    failure; ``rebuild`` compiles and loads the node's programs anew and moves all of its devices to them.
    """

    def __init__(
        self,
        work: Work,
        failed: Callable[[int, str], None],
        *,
        rebuild: Callable[[], Awaitable[None]],
        histories: Histories,
        workers: int = WORKERS,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._work = work
        self._failed = failed
        self._rebuild = rebuild
        self._histories = histories
        self._workers = workers
        self._chance = chance
        self._requests: dict[int, _Request] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._waiting: list[tuple[Priority, int, int]] = []
        self._backoffs: dict[int, Backoff] = {}
        self._creating = 0
        self._asked = 0
        self._rebuilding = asyncio.Lock()
        # Requests from before this one have the programs of the last rebuild.
        self._rebuilt = 0
        self._closed = False

    async def request(self, endpoint: int, level: Level, cause: Cause = Cause.OPERATOR) -> None:
        """Returns when a regeneration that was begun after this call has succeeded.

        Raises Internal (DATAPATH_FAILED) when it has failed, NotFound when the endpoint has gone meanwhile.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._submit(endpoint, level, cause).waiters.append(future)
        await future

    def submit(self, endpoint: int, level: Level, cause: Cause) -> None:
        """Asks for a regeneration without waiting for it."""
        self._submit(endpoint, level, cause)

    def pending(self, endpoint: int) -> Regeneration | None:
        """What waits for an endpoint, if anything does."""
        request = self._requests.get(endpoint)
        if request is None:
            return None
        found = Regeneration(request.level, Progress.QUEUED, request.causes)
        found.attempt = self._histories.attempt(endpoint)
        if request.timer is not None:
            found.retry_time = time.time() + max(request.timer.when() - self._now(), 0.0)
        return found

    def load(self) -> Load:
        """How much there is to do. May be called from any thread."""
        requests = list(self._requests.values())
        retrying = sum(request.timer is not None for request in requests)
        return Load(len(requests) - retrying, len(self._running), retrying)

    @contextmanager
    def creating(self) -> Iterator[None]:
        """While an endpoint is being made, all others together have one worker."""
        self._creating += 1
        try:
            yield
        finally:
            self._creating -= 1
            self._start()

    def forget(self, endpoint: int) -> None:
        """The endpoint is gone: nothing more is tried for it."""
        self._backoffs.pop(endpoint, None)
        request = self._requests.pop(endpoint, None)
        if request is not None:
            if request.timer is not None:
                request.timer.cancel()
            gone = NotFound(f"endpoint {endpoint} has been removed", reason="ENDPOINT_NOT_FOUND")
            _settle(request, gone)

    async def close(self) -> None:
        """Ends what is running, and tries nothing again."""
        self._closed = True
        for request in self._requests.values():
            if request.timer is not None:
                request.timer.cancel()
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _submit(self, endpoint: int, level: Level, cause: Cause) -> _Request:
        self._asked += 1
        request = self._requests.get(endpoint)
        if request is None:
            # What is done for somebody belongs to his trace.
            request = _Request(level, cause.priority, self._asked, self._now(), contextvars.copy_context())
            self._requests[endpoint] = request
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None
        request.since = self._asked
        request.level = max(request.level, level)
        request.priority = min(request.priority, cause.priority)
        request.causes = joined(request.causes, (cause,))
        self._enqueue(endpoint, request)
        return request

    def _enqueue(self, endpoint: int, request: _Request) -> None:
        # One that is there already with a lower priority finds nothing to do when its turn comes.
        heapq.heappush(self._waiting, (request.priority, request.since, endpoint))
        self._start()

    def _start(self) -> None:
        while self._waiting and not self._closed:
            if len(self._running) >= (1 if self._creating else self._workers):
                return
            _, _, endpoint = heapq.heappop(self._waiting)
            request = self._requests.get(endpoint)
            if request is None or request.timer is not None or endpoint in self._running:
                continue
            del self._requests[endpoint]
            self._running[endpoint] = asyncio.create_task(
                self._run(endpoint, request), name=f"regenerate-{endpoint}", context=request.context
            )

    async def _run(self, endpoint: int, request: _Request) -> None:
        problem: Exception | None = None
        try:
            waited = max(self._now() - request.asked, 0.0)
            measure_points.regenerated(request.level.name.lower(), "queue", waited)
            job = Job(endpoint, request.level, request.causes, self._histories.attempt(endpoint))
            await self._work(job, lambda: self._programs(request))
        except (DatapathError, OSError, FimbriaError) as refused:
            problem = refused
        except Exception as unexpected:
            _log.error("endpoint.regeneration_broken", endpoint=endpoint, exc_info=unexpected)
            problem = unexpected
        finally:
            del self._running[endpoint]
            if problem is not None and not self._closed:
                self._again(endpoint, request, problem)
            elif not self._closed:
                self._backoffs.pop(endpoint, None)
            _settle(request, problem)
            waiting = self._requests.get(endpoint)
            if waiting is not None and waiting.timer is None:
                self._enqueue(endpoint, waiting)
            self._start()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _programs(self, request: _Request) -> Level:
        if request.level is Level.REBUILD and request.since > self._rebuilt:
            async with self._rebuilding:
                if request.since > self._rebuilt:
                    begun = self._asked
                    await self._rebuild()
                    self._rebuilt = begun
                    return Level.REBUILD
        return Level.POLICY if request.since <= self._rebuilt else request.level

    def _again(self, endpoint: int, request: _Request, problem: Exception) -> None:
        self._failed(endpoint, str(problem) or type(problem).__name__)
        measure_points.retried(request.level.name.lower())
        level = request.level
        if level is Level.REBUILD and isinstance(problem, DatapathRefused):
            # Programs that do not compile do not do so later either, and the old ones are in force.
            level = Level.RELOAD
        waiting = self._requests.get(endpoint)
        if waiting is not None:
            # Somebody asked meanwhile: that is the next try, at once.
            waiting.level = max(waiting.level, level)
            waiting.causes = joined(request.causes, (Cause.RETRY,), waiting.causes)
            return
        backoff = self._backoffs.setdefault(
            endpoint, Backoff(FIRST_RETRY_SECONDS, MOST_RETRY_SECONDS, self._chance)
        )
        delay = backoff.next()
        # A trace of its own: whoever asked first has long been answered.
        again = _Request(level, Priority.RETRY, request.since, self._now() + delay, contextvars.Context())
        again.causes = joined(request.causes, (Cause.RETRY,))

        def due() -> None:
            again.timer = None
            self._enqueue(endpoint, again)

        again.timer = asyncio.get_running_loop().call_later(delay, due)
        self._requests[endpoint] = again
        self._histories.retried_at(endpoint, time.time() + delay)


def _settle(request: _Request, problem: Exception | None) -> None:
    for waiter in request.waiters:
        if waiter.done():
            continue
        if problem is None:
            waiter.set_result(None)
        elif isinstance(problem, FimbriaError):
            waiter.set_exception(problem)
        else:
            waiter.set_exception(Internal(str(problem), reason="DATAPATH_FAILED"))
