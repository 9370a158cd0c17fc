"""Steps that can be taken back, in reverse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from services.chassis.logs import get_logger

_log = get_logger(__name__)


class Undo:
    """What has to be done to leave nothing behind. A step is added before what it undoes is begun."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], Awaitable[None]]]] = []

    def add(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """Adds a step; it must be fine with finding nothing to undo."""
        self._steps.append((name, step))

    async def run(self) -> None:
        """Undoes everything, the last first. A step that fails is logged and does not keep the others from
        being done.
        """
        while self._steps:
            name, step = self._steps.pop()
            try:
                await step()
            except Exception as problem:
                _log.error("undo.failed", step=name, error=str(problem))
