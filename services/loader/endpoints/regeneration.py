"""Regenerations: requests for one endpoint become one, at the highest level asked for; failures are tried
again.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from services.chassis.errors import Internal
from services.chassis.logs import get_logger
from services.loader.interfaces import DatapathError
from services.loader.streams.backoff import Backoff

WORKERS: Final = 4

_log = get_logger(__name__)


class Level(enum.IntEnum):
    """How much is made anew: map entries; programs from the cache too; the programs themselves too."""

    POLICY = 1
    RELOAD = 2
    REBUILD = 3


@dataclass(slots=True)
class _Request:
    level: Level
    waiters: list[asyncio.Future[None]] = field(default_factory=list)


class Regenerator:
    """Runs ``work(endpoint, level)`` for requests, a bounded number at a time, one endpoint once at a time.

    ``failed(endpoint, cause)`` is told of every failure; the regeneration is then tried again until it
    succeeds.
    """

    def __init__(
        self,
        work: Callable[[int, Level], Awaitable[None]],
        failed: Callable[[int, str], None],
        *,
        workers: int = WORKERS,
    ) -> None:
        self._work = work
        self._failed = failed
        self._slots = asyncio.Semaphore(workers)
        self._requests: dict[int, _Request] = {}
        self._running: dict[int, asyncio.Task[None]] = {}

    async def request(self, endpoint: int, level: Level) -> None:
        """Returns when a regeneration that was begun after this call has succeeded. Raises Internal
        (DATAPATH_FAILED) when it has failed.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.submit(endpoint, level).waiters.append(future)
        await future

    def submit(self, endpoint: int, level: Level) -> _Request:
        """Asks for a regeneration without waiting for it."""
        request = self._requests.get(endpoint)
        if request is None:
            request = self._requests[endpoint] = _Request(level)
        request.level = max(request.level, level)
        if endpoint not in self._running:
            self._running[endpoint] = asyncio.create_task(self._run(endpoint), name=f"regenerate-{endpoint}")
        return request

    async def close(self) -> None:
        """Ends what is running."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _run(self, endpoint: int) -> None:
        backoff = Backoff(first=0.5, most=30.0)
        try:
            while (request := self._requests.pop(endpoint, None)) is not None:
                try:
                    async with self._slots:
                        await self._work(endpoint, request.level)
                except (DatapathError, OSError) as problem:
                    self._failed(endpoint, str(problem))
                    _settle(request, Internal(str(problem), reason="DATAPATH_FAILED"))
                    self._again(endpoint, request.level)
                    await asyncio.sleep(backoff.next())
                else:
                    _settle(request, None)
        finally:
            del self._running[endpoint]

    def _again(self, endpoint: int, level: Level) -> None:
        pending = self._requests.setdefault(endpoint, _Request(level))
        pending.level = max(pending.level, level)


def _settle(request: _Request, problem: Exception | None) -> None:
    for waiter in request.waiters:
        if waiter.done():
            continue
        if problem is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(problem)
