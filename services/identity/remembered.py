"""What a process remembers of identities, so that known ones cost no statement: for a short while only.

Another replica may collect an identity that nobody uses. What is remembered is therefore good for a part of
the grace period only, counted from the moment at which the identity was last touched in the store: nobody
collects it before the whole period has passed since then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.identity.model import Identity

# The longest that anything is remembered, in seconds, and the part of the grace period that it may take.
LONGEST_SECONDS = 30.0
PART_OF_GRACE = 0.25
# How many holders are remembered of one identity: more than a cluster has nodes.
HOLDERS = 8192

K = TypeVar("K")


def memory_seconds(grace_seconds: float) -> float:
    """For how long something may be remembered when garbage collection waits for that long (0: for ever)."""
    return min(LONGEST_SECONDS, grace_seconds * PART_OF_GRACE) if grace_seconds else LONGEST_SECONDS


@dataclass(slots=True, eq=False)
class _Known:
    identity: Identity
    until: float
    holders: dict[str, float] = field(default_factory=dict)


class Memory(Generic[K]):
    """Identities by what they stand for, at most `capacity` of them, the longest known forgotten first."""

    def __init__(self, capacity: int, seconds: float, monotonic: Callable[[], float]) -> None:
        self._capacity = capacity
        self._seconds = seconds
        self.monotonic = monotonic
        self._known: dict[K, _Known] = {}
        self._of_number: dict[int, _Known] = {}

    def find(self, key: K, holder: str = "") -> Identity | None:
        """The identity of `key`, if it is remembered, and with it that `holder` uses it."""
        known = self._known.get(key)
        if known is None:
            return None
        now = self.monotonic()
        if known.until <= now or (holder and known.holders.get(holder, 0.0) <= now):
            return None
        return known.identity

    def keep(self, key: K, identity: Identity, holder: str, since: float) -> Identity:
        """Remembers what the store has said; `since` is the monotonic time before it was asked."""
        until = since + self._seconds
        known = self._known.get(key)
        if known is None or known.identity.number != identity.number:
            if known is not None:
                self._drop(key)
            elif len(self._known) >= self._capacity:
                self._drop(next(iter(self._known)))
            known = self._known[key] = self._of_number[identity.number] = _Known(identity, until)
        known.identity, known.until = identity, until
        if holder:
            if len(known.holders) >= HOLDERS:
                known.holders.clear()
            known.holders[holder] = until
        return identity

    def forget(self, numbers: Iterable[int]) -> None:
        """These identities are no more."""
        for number in numbers:
            known = self._of_number.get(number)
            if known is not None:
                known.until = 0.0

    def forget_uses(self, holder: str, numbers: Iterable[int]) -> None:
        """`holder` does not use these any more."""
        for number in numbers:
            known = self._of_number.get(number)
            if known is not None:
                known.holders.pop(holder, None)

    def _drop(self, key: K) -> None:
        known = self._known.pop(key)
        if self._of_number.get(known.identity.number) is known:
            del self._of_number[known.identity.number]
