"""Which number the next identity gets, of the cluster's or of the prefixes'.

The choice rotates: it goes on after the number that was given out last and wraps at the end. A number that
came free so rests as long as possible, because nodes may still hold policy and connections under what it
meant before.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.identity.reserved import CLUSTER_FIRST, CLUSTER_LAST, PREFIX_FIRST, PREFIX_LAST


@dataclass(frozen=True, slots=True)
class Space:
    """The numbers `first`..`last`, both included. `remedy` is what helps when none of them is left."""

    name: str
    first: int
    last: int
    remedy: str

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last

    @property
    def capacity(self) -> int:
        """How many numbers it has."""
        return self.last - self.first + 1

    def clamp(self, cursor: int) -> int:
        """`cursor` if it is a number of the space, else the first one."""
        return cursor if cursor in self else self.first


CLUSTER = Space(
    "cluster",
    CLUSTER_FIRST,
    CLUSTER_LAST,
    "let fewer labels be security-relevant (fimbria identity filter set)",
)
PREFIXES = Space("prefixes", PREFIX_FIRST, PREFIX_LAST, "let policies name fewer prefixes")


@dataclass(frozen=True, slots=True)
class Prospect:
    """How many numbers of a space garbage collection is about to free, and in how many seconds the first."""

    unused: int = 0
    seconds: float | None = None
