"""What the kernel holds of all policies, read beside the event loop: a full map takes milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeAlias

from services.loader.policy.entries import EntryKey, EntryValue

Entries: TypeAlias = Mapping[int, Mapping[EntryKey, EntryValue]]


class Readings:
    """Reads entries by instance. Whoever asks while a reading is under way shares the one after it: what he
    gets was never read before he asked.
    """

    def __init__(self, read: Callable[[], Entries]) -> None:
        self._read = read
        self._current: asyncio.Task[Entries] | None = None
        self._next: asyncio.Task[Entries] | None = None

    async def fresh(self) -> Entries:
        """A reading that begins after this call. Raises what reading raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._current))
        # One who gives up must not take it from the others.
        return await asyncio.shield(self._next)

    async def _after(self, previous: asyncio.Task[Entries] | None) -> Entries:
        if previous is not None:
            await asyncio.wait([previous])
        self._current, self._next = self._next, None
        return await asyncio.to_thread(self._read)
