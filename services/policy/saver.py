# SPDX-License-Identifier: Apache-2.0
"""Writing behind: state that changes often is stored a moment later, many changes in one write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger

PAUSE_SECONDS = 0.1
RETRY_SECONDS = 1.0

log = get_logger(__name__)


class Saver:
    """Calls `save` with the names that were marked since it was called last; again after a failure.

    The first at once; what is marked after that waits for `pause` seconds.
    """

    def __init__(
        self, what: str, save: Callable[[list[str]], Awaitable[None]], pause: float = PAUSE_SECONDS
    ) -> None:
        self._what = what
        self._save = save
        self._pause = pause
        self._marked: dict[str, None] = {}
        self._wanted = asyncio.Event()
        self._saving = asyncio.Lock()

    def mark(self, name: str) -> None:
        self._marked[name] = None
        self._wanted.set()

    async def run(self) -> None:
        """Save whenever something is marked, forever."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._pause if await self.flush() else RETRY_SECONDS)

    async def flush(self) -> bool:
        """Save now, after what is being saved; False when it failed, and nothing is forgotten then."""
        async with self._saving:
            return await self._flush()

    async def _flush(self) -> bool:
        self._wanted.clear()
        names, self._marked = list(self._marked), {}
        saved = False
        try:
            if names:
                await self._save(names)
            saved = True
        except FimbriaError as error:
            log.warning("not saved", what=self._what, reason=error.reason, error=str(error))
        finally:
            # Also when it is cancelled, as it is before the last time.
            if not saved:
                self._marked = {**dict.fromkeys(names), **self._marked}
                self._wanted.set()
        return saved
