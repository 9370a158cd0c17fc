"""How fast a space of numbers fills up, and when it will be full if that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SECOND_NS = 1_000_000_000
HOUR_NS = 3600 * SECOND_NS
# A rate over less than this says more about the moment than about the day.
LEAST_NS = 60 * SECOND_NS
# Farther away it is no forecast but a number.
HORIZON_NS = 10 * 365 * 24 * HOUR_NS


@dataclass(frozen=True, slots=True)
class Sample:
    """How many numbers were taken at a moment, in Unix nanoseconds."""

    at_ns: int
    taken: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """Numbers more in an hour, negative when they become fewer; and when none is left, None for never."""

    growth_per_hour: float = 0.0
    exhausted_ns: int | None = None


def forecast(samples: Sequence[Sample], now: Sample, capacity: int) -> Forecast:
    """From what is known of the last hour: from its oldest sample to `now`.

    Samples from the future (a clock that was set back) and older ones are passed over. Where less than a
    minute is known, nothing is foretold, but that a full space is full.
    """
    full = now.at_ns if now.taken >= capacity else None
    known = [each for each in samples if 0 <= now.at_ns - each.at_ns <= HOUR_NS]
    first = min(known, key=lambda each: each.at_ns, default=now)
    passed = now.at_ns - first.at_ns
    if passed < LEAST_NS:
        return Forecast(0.0, full)
    growth = (now.taken - first.taken) * HOUR_NS / passed
    if full is not None or growth <= 0:
        return Forecast(growth, full)
    left_ns = (capacity - now.taken) / growth * HOUR_NS
    return Forecast(growth, now.at_ns + round(left_ns) if left_ns <= HORIZON_NS else None)
