"""Which number the next identity gets, of the cluster's or of the prefixes'.

The choice rotates: it goes on after the number that was given out last and wraps at the end. A number that
came free so rests as long as possible, because nodes may still hold policy and connections under what it
meant before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Space:
    """The numbers `first`..`last`, both included."""

    first: int
    last: int

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last

    def clamp(self, cursor: int) -> int:
        """`cursor` if it is a number of the space, else the first one."""
        return cursor if cursor in self else self.first

    def rotation(self, cursor: int) -> tuple[tuple[int, int], ...]:
        """The inclusive spans of numbers to search, in order: from `cursor` to the end, then up to
        `cursor`.
        """
        start = self.clamp(cursor)
        if start == self.first:
            return ((self.first, self.last),)
        return ((start, self.last), (self.first, start - 1))


def first_gap(start: int, used: Sequence[int]) -> int:
    """The lowest number >= `start` that is not in `used`: distinct, ascending, none below `start`.

    When `used` is one page of a longer list and the answer lies past its last number, the search has to go
    on with the next page from there.
    """
    low, high = 0, len(used)
    while low < high:
        middle = (low + high) // 2
        if used[middle] == start + middle:
            low = middle + 1
        else:
            high = middle
    return start + low
