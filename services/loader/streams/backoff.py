"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Waits that double from ``first`` to ``most`` seconds, each shortened at random by up to half."""

    def __init__(
        self, first: float = 0.1, most: float = 5.0, chance: Callable[[], float] = random.random
    ) -> None:
        self._first = first
        self._most = most
        self._chance = chance
        self._attempts = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        # Beyond 30 doublings the bound has long been reached.
        full = min(self._first * 2.0 ** min(self._attempts, 30), self._most)
        self._attempts += 1
        return full * (1 - self._chance() / 2)

    def reset(self) -> None:
        """It worked: the next failure is the first again."""
        self._attempts = 0
