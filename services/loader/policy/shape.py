"""Which kinds of entries a subject has, so that the datapath makes only lookups that can hit. No I/O.

Counted, so that a change of one entry among thousands costs what one entry costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.loader.policy.entries import BY_ADDRESS, NORMAL, EntryKey, EntryValue

ANY_PROTOCOL: Final = -1


class Level(NamedTuple):
    """Entries of one direction and space, for one identity each or for any, with a port prefix of one length
    or for any protocol.
    """

    direction: int
    wildcard: bool
    prefix_length: int
    space: int = NORMAL


@dataclass(frozen=True, slots=True)
class Shape:
    """How many entries there are of each level, and how many of the space NORMAL deny by direction."""

    levels: Mapping[Level, int]
    denies: tuple[int, int] = (0, 0)

    def has_deny(self, direction: int) -> bool:
        """Whether any entry of a direction denies, in the space NORMAL."""
        return self.denies[direction] > 0

    def present(self, direction: int) -> Iterable[Level]:
        """The levels of a direction that have entries."""
        return (level for level in self.levels if level.direction == direction)

    @property
    def by_address(self) -> bool:
        """Whether a verdict may depend on which prefix holds an address."""
        return any(level.space & BY_ADDRESS for level in self.levels)

    def changed(
        self,
        *,
        gone: Iterable[tuple[EntryKey, EntryValue]],
        come: Iterable[tuple[EntryKey, EntryValue]],
    ) -> Shape:
        """The shape after some entries have gone and others have come; a replaced entry is both."""
        levels = dict(self.levels)
        denies = list(self.denies)
        for step, entries in ((-1, gone), (1, come)):
            for key, value in entries:
                level = _level(key)
                levels[level] = levels.get(level, 0) + step
                if key.space == NORMAL:
                    denies[key.direction] += step * value.deny
        return Shape({level: count for level, count in levels.items() if count}, (denies[0], denies[1]))


EMPTY: Final = Shape({})


def shape_of(entries: Mapping[EntryKey, EntryValue]) -> Shape:
    """The shape of a whole policy."""
    return EMPTY.changed(gone=(), come=entries.items())


def _level(key: EntryKey) -> Level:
    length = key.prefix_length if key.protocol else ANY_PROTOCOL
    return Level(key.direction, key.identity == 0, length, key.space)
