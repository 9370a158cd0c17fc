"""How full the node's maps are, for a metrics collector.

Counting takes a tenth of a second for some 300,000 elements, so a map is counted as rarely as that costs no
more than a hundredth of one processor, in the thread of whoever asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from services.loader.bpf.census import count_elements, countable
from services.loader.bpf.errors import BpfError
from services.loader.interfaces import MapInfo

# The fullest maps are always named, and all above this share.
NAMED: Final = 5
NOTABLE: Final = 0.5
# Several readers within one round of the collector get the same answer.
_SAME_ROUND_SECONDS: Final = 1.0
_REST: Final = 100


@dataclass(frozen=True, slots=True)
class MapFill:
    """A map's elements, and what share of the most that it holds they are."""

    name: str
    entries: int
    pressure: float


@dataclass(slots=True)
class _Count:
    entries: int
    due: float


class MapFills:
    """Counts kept by map. To be used from one thread at a time."""

    def __init__(
        self,
        count: Callable[[int], int | None] = count_elements,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count = count
        self._clock = clock
        self._counts: dict[int, _Count] = {}

    def fullest(self, maps: Iterable[MapInfo]) -> list[MapFill]:
        """The maps that are fullest, the fullest first: NAMED of them, and all that are fuller than
        NOTABLE.
        """
        fills = []
        kept = self._counts
        self._counts = {}
        for found in maps:
            if not countable(found.type) or not found.max_entries:
                continue
            counted = self._counted(found.id, kept.get(found.id))
            if counted is not None:
                fills.append(MapFill(found.name, counted.entries, counted.entries / found.max_entries))
        fills.sort(key=lambda fill: (-fill.pressure, fill.name))
        return [fill for place, fill in enumerate(fills) if place < NAMED or fill.pressure > NOTABLE]

    def _counted(self, map_id: int, kept: _Count | None) -> _Count | None:
        begun = self._clock()
        if kept is None or begun >= kept.due:
            try:
                entries = self._count(map_id)
            except BpfError:
                entries = None
            if entries is None:
                return None
            ended = self._clock()
            kept = _Count(entries, ended + max(_SAME_ROUND_SECONDS, (ended - begun) * _REST))
        self._counts[map_id] = kept
        return kept
