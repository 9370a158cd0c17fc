# SPDX-License-Identifier: Apache-2.0
"""Inverted indexes from what identities and prefixes are to their numbers, as compressed bitmaps.

A selector is evaluated against all identities at once by the algebra of sets, instead of one by one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from pyroaring import BitMap

from services.policy.prefixes import Block, block_of
from services.policy.selector import ANY_SOURCE, Labels, Operator, Requirement, Selector


class _Postings:
    """Sets of numbers by name. A set of one is that number alone: most labels of a large cluster are some
    pod's only.
    """

    __slots__ = ("_sets",)

    def __init__(self) -> None:
        self._sets: dict[str, int | BitMap] = {}

    def add(self, name: str, number: int) -> bool:
        """True if the name is new."""
        held = self._sets.get(name)
        if held is None:
            self._sets[name] = number
            return True
        if isinstance(held, BitMap):
            held.add(number)
        elif held != number:
            self._sets[name] = BitMap((held, number))
        return False

    def discard(self, name: str, number: int) -> bool:
        """True if the name is gone with it."""
        held = self._sets.get(name)
        if isinstance(held, BitMap):
            held.discard(number)
            if held:
                return False
        elif held != number:
            return False
        del self._sets[name]
        return True

    def of(self, name: str) -> BitMap:
        """The numbers under a name; not to be changed."""
        held = self._sets.get(name)
        if isinstance(held, BitMap):
            return held
        return BitMap() if held is None else BitMap((held,))


class LabelIndex:
    """Which identities have a label, and which have its key with whatever value."""

    def __init__(self) -> None:
        self.everybody = BitMap()
        self._having = _Postings()
        self._keyed = _Postings()
        # The sources that a key comes with, for requirements that do not name one. Nearly always one.
        self._sources: dict[str, tuple[str, ...]] = {}

    def add(self, number: int, labels: Labels) -> None:
        self.everybody.add(number)
        for source, key, value in labels.parts():
            self._having.add(f"{source}:{key}={value}", number)
            if self._keyed.add(f"{source}:{key}", number):
                self._sources[key] = (*self._sources.get(key, ()), source)

    def remove(self, number: int, labels: Labels) -> None:
        self.everybody.discard(number)
        for source, key, value in labels.parts():
            self._having.discard(f"{source}:{key}={value}", number)
            if self._keyed.discard(f"{source}:{key}", number):
                left = tuple(other for other in self._sources[key] if other != source)
                if left:
                    self._sources[key] = left
                else:
                    del self._sources[key]

    def matching(self, selector: Selector) -> BitMap:
        """The identities that a selector matches, as a set of the caller's own."""
        positive: list[BitMap] = []
        negative: list[BitMap] = []
        for requirement in selector.requirements:
            wanted = requirement.operator in (Operator.IN, Operator.EXISTS)
            (positive if wanted else negative).append(self._meeting(requirement))
        # The smallest first: what is left of it only becomes less.
        positive.sort(key=len)
        found = positive[0].copy() if positive else self.everybody.copy()
        for other in positive[1:]:
            found &= other
        for other in negative:
            found -= other
        return found

    def _meeting(self, requirement: Requirement) -> BitMap:
        """Who has the key, with one of the values if there are some."""
        key = requirement.key
        sources: tuple[str, ...] = (requirement.source,)
        if requirement.source == ANY_SOURCE:
            sources = self._sources.get(key, ())
        if requirement.operator in (Operator.EXISTS, Operator.DOES_NOT_EXIST):
            sets = [self._keyed.of(f"{source}:{key}") for source in sources]
        else:
            sets = [
                self._having.of(f"{source}:{key}={value}")
                for source in sources
                for value in requirement.values
            ]
        return sets[0] if len(sets) == 1 else BitMap().union(*sets)


class PrefixIndex:
    """Numbered prefixes in the order of their addresses, so that those within another are neighbours."""

    def __init__(self) -> None:
        self._sorted: list[tuple[Block, int]] = []

    def add(self, number: int, cidr: str) -> None:
        insort(self._sorted, (block_of(cidr), number))

    def remove(self, number: int, cidr: str) -> None:
        place = bisect_left(self._sorted, (block_of(cidr), number))
        del self._sorted[place]

    def within(self, cidr: str, excepts: Iterable[str] = ()) -> BitMap:
        """The numbers of the prefixes within `cidr` and within none of `excepts`."""
        found = self._within(block_of(cidr))
        for each in excepts:
            found -= self._within(block_of(each))
        return found

    def _within(self, block: Block) -> BitMap:
        # Who begins where the block does and is larger comes before it, by the length.
        first = bisect_left(self._sorted, (block, 0))
        after = bisect_left(self._sorted, (block.following, 0))
        return BitMap([number for _, number in self._sorted[first:after]])
