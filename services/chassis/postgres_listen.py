"""What other replicas have committed, by LISTEN: one connection a process, made again whenever it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from services.chassis.backend import Told
from services.chassis.logs import get_logger

# A server that vanished without a word is noticed this late, in seconds.
CHECK_SECONDS: Final = 10.0
CHECK_ANSWER_SECONDS: Final = 5.0
RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

log = get_logger(__name__)


class Listener:
    """Calls `told` with the positions that are announced on a schema's channel, until it is closed.

    Whenever it has connected, `told(None)` says that some may have been missed before.
    """

    def __init__(self, connect: Callable[..., Awaitable[Any]], schema: str, told: Told) -> None:
        self._connect = connect
        self._channel = self.channel_of(schema)
        self._told = told
        self._listening = False
        self._task = asyncio.create_task(self._run(), name=f"listen-{schema}")

    @staticmethod
    def channel_of(schema: str) -> str:
        """The name of a schema's channel."""
        return f"fimbria_{schema}"

    @property
    def listening(self) -> bool:
        return self._listening

    async def close(self) -> None:
        """Ends listening."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                connection = await self._connect(settings={})
                try:
                    failures = 0
                    await self._listen(connection)
                finally:
                    self._listening = False
                    connection.terminate()
            except Exception as exc:
                # Whatever it was: feeds look for themselves meanwhile, and must not have to for ever.
                log.warning("cannot listen for changes by others", error=f"{type(exc).__name__}: {exc}")
            await asyncio.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
            failures += 1

    async def _listen(self, connection: Any) -> None:
        """Returns once the connection is lost."""
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        await connection.add_listener(self._channel, self._take)
        self._listening = True
        self._told(None)
        while not lost.is_set():
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await lost.wait()
            except TimeoutError:
                await connection.execute("SELECT 1", timeout=CHECK_ANSWER_SECONDS)

    def _take(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        positions = {}
        for item in payload.split():
            topic, _, position = item.partition("=")
            if position.isdigit():
                positions[topic] = int(position)
        self._told(positions)
