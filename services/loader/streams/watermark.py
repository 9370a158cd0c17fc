"""A number that grows, and whoever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watermark:
    """How far something has come. Used from one event loop."""

    def __init__(self, value: int = 0) -> None:
        self._value = value
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._listeners: list[Callable[[int], None]] = []

    @property
    def value(self) -> int:
        """The number as it is now."""
        return self._value

    def listen(self, listener: Callable[[int], None]) -> None:
        """Calls ``listener`` with every new value, before those who wait for it go on."""
        self._listeners.append(listener)

    def set(self, value: int) -> None:
        """Tells the number. It may also become smaller, when what is counted starts over."""
        if value == self._value:
            return
        self._value = value
        for listener in self._listeners:
            listener(value)
        reached = [future for wanted, future in self._waiters if wanted <= value]
        self._waiters = [(wanted, future) for wanted, future in self._waiters if wanted > value]
        for future in reached:
            if not future.done():
                future.set_result(None)

    async def wait(self, value: int, timeout: float | None = None) -> bool:
        """Returns True as soon as the number is at least ``value``, False after ``timeout`` seconds."""
        if self._value >= value:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (value, future)
        self._waiters.append(entry)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return False
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)
        return True
