"""What was tried for each endpoint of late: the span of each regeneration, and its entry in the history."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_TRACE_ID, Span, format_trace_id

from services.chassis import names
from services.chassis.telemetry import span
from services.loader import measure_points
from services.loader.endpoints.regeneration import Cause, Level, Progress, Regeneration

KEPT: Final = 16


class Histories:
    """The last regenerations of every endpoint, the newest first. They are forgotten with the process."""

    def __init__(self, node: str = "") -> None:
        self._node = node
        self._kept: dict[int, deque[Regeneration]] = {}
        # Tries that failed in a row.
        self._failures: dict[int, int] = {}

    def of(self, number: int) -> tuple[Regeneration, ...]:
        """An endpoint's regenerations."""
        return tuple(self._kept.get(number, ()))

    def attempt(self, number: int) -> int:
        """Which try the next one is, from 1."""
        return self._failures.get(number, 0) + 1

    def forget(self, number: int) -> None:
        """The endpoint is gone."""
        self._kept.pop(number, None)
        self._failures.pop(number, None)

    def retried_at(self, number: int, moment: float) -> None:
        """The try that failed last is made again at this time."""
        kept = self._kept.get(number)
        if kept and kept[0].progress is Progress.FAILED:
            kept[0].retry_time = moment

    @contextmanager
    def recorded(
        self,
        numbers: Collection[int],
        level: Level,
        causes: tuple[Cause, ...],
        *,
        identity: int = 0,
        parent: Context | None = None,
    ) -> Iterator[Span]:
        """The span of a regeneration, of one endpoint or of all of a subject; what it raises is its error.

        Whoever puts policy into force sets the revision on the span.
        """
        numbers = sorted(numbers)
        attributes: dict[str, Any] = {
            names.ENDPOINT_ID: numbers[0] if len(numbers) == 1 else None,
            names.ENDPOINT_IDS: None if len(numbers) == 1 else numbers,
            names.IDENTITY: identity or None,
            names.REGENERATION_LEVEL: level.name.lower(),
            names.REGENERATION_CAUSE: ", ".join(causes),
            names.NODE_NAME: self._node or None,
        }
        with span(names.ENDPOINT_REGENERATE, parent=parent, attributes=attributes) as current:
            entry = Regeneration(level, Progress.RUNNING, causes, start_time=time.time())
            trace_id = current.get_span_context().trace_id
            entry.trace_id = format_trace_id(trace_id) if trace_id != INVALID_TRACE_ID else ""
            entry.attempt = max((self.attempt(number) for number in numbers), default=1)
            for number in numbers:
                self._kept.setdefault(number, deque(maxlen=KEPT)).appendleft(entry)
            started = time.perf_counter()
            try:
                with measure_points.regenerating(level.name.lower(), "total"):
                    yield current
            except BaseException as problem:
                entry.progress, entry.error = Progress.FAILED, str(problem) or type(problem).__name__
                for number in numbers:
                    self._failures[number] = self._failures.get(number, 0) + 1
                raise
            else:
                entry.progress = Progress.DONE
                for number in numbers:
                    self._failures.pop(number, None)
            finally:
                entry.seconds = time.perf_counter() - started
