"""For how long something has been seen unchanged, by a clock that no one can set.

What garbage collection and the end of leases go by. Time passes here from one look to the next, and a gap
between two looks counts as one of the usual length: while the process was stopped, or its store away, nobody
else could be heard either, and nothing must end because of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K")


class Sightings(Generic[K]):
    """Since when each key has had the token that it has now. `monotonic` returns seconds."""

    def __init__(self, monotonic: Callable[[], float], longest_gap: float) -> None:
        self._monotonic = monotonic
        self._longest_gap = longest_gap
        self._seconds = 0.0
        self._looked = monotonic()
        self._since: dict[K, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._since)

    def look(self, present: Iterable[tuple[K, int]]) -> None:
        """What has just been read, all of it: keys that are missing are forgotten, new tokens begin anew."""
        before, self._since = self._since, {}
        # The time after the reading: what was read may be that much younger, never older, than it seems.
        now = self._advance()
        for key, token in present:
            known = before.get(key)
            self._since[key] = known if known is not None and known[0] == token else (token, now)

    def over(self, seconds: float) -> list[tuple[K, int]]:
        """The keys with their tokens that have been seen unchanged for so long, up to the last look."""
        return [
            (key, token) for key, (token, since) in self._since.items() if self._seconds - since >= seconds
        ]

    def ages(self) -> list[float]:
        """For how many seconds each key has been seen unchanged, up to now, in no order."""
        now = self._seconds + self._gap()
        return [now - since for _, since in self._since.values()]

    def forget(self, keys: Iterable[K]) -> None:
        """They are gone, or begin anew when they are seen again."""
        for key in keys:
            self._since.pop(key, None)

    def _gap(self) -> float:
        return min(self._monotonic() - self._looked, self._longest_gap)

    def _advance(self) -> float:
        self._seconds += self._gap()
        self._looked = self._monotonic()
        return self._seconds
