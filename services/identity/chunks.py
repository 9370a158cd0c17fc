"""Long lists of values for statements that can take only so many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

# Below the least limit on variables of one statement that any supported SQLite has.
CHUNK = 500

T = TypeVar("T")


def chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    """The items in their order, CHUNK at a time; nothing for none."""
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
