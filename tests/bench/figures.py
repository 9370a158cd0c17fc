"""What a benchmark returns, and how samples become a figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the report.

    `value` and `peer` are in `unit`; `peer` was measured in the same run, `ratio` is value / peer.
    `goal` is the goal in words and `met` whether this run met it; both are None where there is no goal.
    """

    name: str
    value: float
    unit: str
    peer: float | None = None
    peer_name: str = ""
    goal: str | None = None
    met: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """value / peer, or None without a peer."""
        return self.value / self.peer if self.peer else None


def percentile(samples: Sequence[float], q: float) -> float:
    """The q-quantile (0 to 1) of the samples by nearest rank; raises ValueError when there are none."""
    if not samples:
        raise ValueError("percentile: no samples; expected at least one")
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def median(samples: Sequence[float]) -> float:
    """The median of the samples."""
    return statistics.median(samples)
