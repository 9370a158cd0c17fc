"""Which number the next identity of the cluster gets.

The choice rotates: it goes on after the number that was given out last and wraps at the end. A number that
came free so rests as long as possible, because nodes may still hold policy and connections under what it
meant before.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.identity.reserved import CLUSTER_FIRST, CLUSTER_LAST


def clamp(cursor: int) -> int:
    """`cursor` if it is a number that the cluster may use, else the first such number."""
    return cursor if CLUSTER_FIRST <= cursor <= CLUSTER_LAST else CLUSTER_FIRST


def rotation(cursor: int) -> tuple[tuple[int, int], ...]:
    """The inclusive spans of numbers to search, in order: from `cursor` to the end, then up to `cursor`."""
    start = clamp(cursor)
    if start == CLUSTER_FIRST:
        return ((CLUSTER_FIRST, CLUSTER_LAST),)
    return ((start, CLUSTER_LAST), (CLUSTER_FIRST, start - 1))


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
