"""What concurrent clients asked for, when, and what they were told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

NEVER: Final = math.inf


@dataclass(slots=True)
class Operation:
    """One call. ``returned`` is NEVER while its outcome is not known: then it may have taken effect at any
    time after ``invoked``, or never. Times are seconds of one monotonic clock.
    """

    kind: str
    """What was asked for, in the words of the model that judges it: "take", "free", "put", "drop", "read"."""
    key: str
    """What it was asked of: an owner, a label set, a prefix."""
    argument: str = ""
    result: str = ""
    """What the answer said; empty also while there is none."""
    invoked: float = 0.0
    returned: float = NEVER

    @property
    def known(self) -> bool:
        return self.returned != NEVER

    def __str__(self) -> str:
        told = f"{self.result!r} at {self.returned:.6f}" if self.known else "unknown"
        return f"{self.kind}({self.key}, {self.argument!r}) at {self.invoked:.6f} -> {told}"


class Refused(Exception):
    """Raised inside :meth:`History.operation`: the call has certainly had no effect."""


class OutcomeUnknown(Exception):
    """Raised inside :meth:`History.operation`: whether the call has taken effect is not known."""


@dataclass
class History:
    """All operations of a run, in the order in which they began. To be used from one event loop."""

    clock: Callable[[], float] = time.monotonic
    operations: list[Operation] = field(default_factory=list)
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0

    @contextmanager
    def operation(self, kind: str, key: str, argument: str = "") -> Iterator[Operation]:
        """Records one call made inside the block, which sets the ``result``.

        Refused and OutcomeUnknown end there; any other exception leaves the outcome unknown, and goes on.
        """
        with self.batch(kind, [key], argument) as (made,):
            yield made

    @contextmanager
    def batch(self, kind: str, keys: Sequence[str], argument: str = "") -> Iterator[list[Operation]]:
        """The same for one call that asks for all of the keys or none: an operation on each."""
        now = self.clock()
        made = [Operation(kind, key, argument, invoked=now) for key in keys]
        self.operations += made
        try:
            yield made
        except Refused:
            for each in made:
                self._forget(each)
            self.refused += 1
            return
        except OutcomeUnknown:
            self.unknown += 1
            return
        now = self.clock()
        for each in made:
            each.returned = now
        self.acknowledged += 1

    def _forget(self, made: Operation) -> None:
        # It began a moment ago: it stands near the end.
        for position in range(len(self.operations) - 1, -1, -1):
            if self.operations[position] is made:
                del self.operations[position]
                return

    def of(self, *kinds: str) -> list[Operation]:
        return [each for each in self.operations if each.kind in kinds]

    def finally_read(self, found: dict[str, str], keys: Iterable[str]) -> None:
        """Adds what was found at the end, when nothing else was running, for each of the keys."""
        now = self.clock()
        for key in keys:
            value = found.get(key, "")
            self.operations.append(Operation("read", key, result=value, invoked=now, returned=self.clock()))
