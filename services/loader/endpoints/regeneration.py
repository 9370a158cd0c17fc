"""What a regeneration is: how much of an endpoint's kernel state is made anew, why, and what became of it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Level(enum.IntEnum):
    """How much is made anew: map entries; programs from the cache too; the programs themselves too."""

    POLICY = 1
    RELOAD = 2
    REBUILD = 3


class Priority(enum.IntEnum):
    """What comes first when more wait than can be worked on; a new endpoint comes before all of these."""

    OPERATOR = 1
    CHANGE = 2
    REPAIR = 3
    RETRY = 4
    REFRESH = 5


class Cause(enum.StrEnum):
    """Why somebody asks for a regeneration, as people are shown it."""

    CREATED = "created"
    OPERATOR = "operator"
    LABELS = "labels"
    POLICY = "policy"
    RESTORED = "restored"
    DEVICE = "device"
    RETRY = "retry"
    REFRESH = "refresh"

    @property
    def priority(self) -> Priority:
        """When it is its turn."""
        return _PRIORITIES[self]


_PRIORITIES = {
    Cause.CREATED: Priority.OPERATOR,
    Cause.OPERATOR: Priority.OPERATOR,
    Cause.LABELS: Priority.CHANGE,
    Cause.POLICY: Priority.CHANGE,
    Cause.RESTORED: Priority.REPAIR,
    Cause.DEVICE: Priority.REPAIR,
    Cause.RETRY: Priority.RETRY,
    Cause.REFRESH: Priority.REFRESH,
}


class Progress(enum.Enum):
    """What became of a regeneration. QUEUED: it waits for a worker or for its next try."""

    QUEUED = 1
    RUNNING = 2
    DONE = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class Job:
    """One try to regenerate an endpoint; ``attempt`` counts from 1 and starts over with each success."""

    endpoint: int
    level: Level
    causes: tuple[Cause, ...]
    attempt: int = 1


@dataclass(slots=True)
class Regeneration:
    """One entry of an endpoint's history. Times are in seconds since the epoch; ``retry_time`` 0: it is not
    tried again. ``trace_id`` is 32 hexadecimal digits, or empty where nothing is traced.
    """

    level: Level
    progress: Progress
    causes: tuple[Cause, ...]
    attempt: int = 1
    start_time: float = 0.0
    seconds: float = 0.0
    error: str = ""
    trace_id: str = ""
    retry_time: float = 0.0

    @property
    def cause(self) -> str:
        """All causes, comma separated."""
        return ", ".join(self.causes)


def joined(*causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """All causes in the order in which they came, each once."""
    return tuple(dict.fromkeys(cause for each in causes for cause in each))
