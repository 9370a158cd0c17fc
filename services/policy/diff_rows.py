# SPDX-License-Identifier: Apache-2.0
"""Peers by what a change does to them, under names that say exactly who is meant.

Where rules select by address, a pod's verdict depends on its address too, which policies do not know: then a
peer is an identity with an address in some part of the address space. A name that gives only a prefix means
whoever has an address in it, and comes before names of identities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from services.policy.diff_peers import WORLD, Regions
from services.policy.diff_ports import Profile

OTHERS = 0


class Named(NamedTuple):
    """Peers by number (0: everybody else, or a prefix without a number yet), and in words.

    With `identity` (OTHERS: everybody else) whoever has it, and if `where` is given an address in one of
    these (prefix, what is left out of it), or with `unselected` in none that any rule selects. Without it
    whoever has an address there, or, with `outside`, who also is outside the cluster.
    """

    number: int
    name: str
    identity: int | None = None
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()
    unselected: bool = False
    outside: bool = False


class Column(NamedTuple):
    """Parts of the address space that the same rules concern by address; none: the rest of it."""

    parts: tuple[int, ...]
    sides: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass
class Grid:
    """Profiles: of each group of identities for each column, and of each part that is outside the cluster."""

    columns: list[Column]
    rows: list[tuple[list[int], list[Profile]]] = field(default_factory=list)
    outside: dict[int, Profile] = field(default_factory=dict)

    def add(self, members: list[int], cells: list[Profile]) -> None:
        self.rows.append((members, cells))


Group = tuple[tuple[Named, ...], bool, Profile]


def named_groups(
    grid: Grid, name_of: Callable[[int], str], regions: Regions, number_of: Callable[[int], int]
) -> Iterator[Group]:
    """(peers, whether everybody else is meant too, profile), each profile once, in the order of peers."""
    names = _Names(name_of, regions, number_of)
    found: dict[Profile, tuple[list[Named], list[bool]]] = {}

    def tell(profile: Profile, peers: Iterable[Named], others: bool = False) -> None:
        held = found.setdefault(profile, ([], []))
        held[0].extend(peers)
        held[1].append(others)

    outside = dict(grid.outside)
    rest = next((cells for members, cells in grid.rows if OTHERS in members), None)
    # Columns in which everybody fares alike are named by their prefixes alone.
    uneven = []
    for place, column in enumerate(grid.columns):
        found_there = {cells[place] for _, cells in grid.rows}
        found_there |= {outside[part] for part in column.parts if part in outside}
        if not column.parts or rest is None or len(found_there) > 1:
            uneven.append(place)
            continue
        for part in column.parts:
            outside.pop(part, None)
        tell(found_there.pop(), names.prefixes(column.parts, outside=False))
    alike = rest is not None and len({rest[place] for place in uneven}) == 1
    for members, cells in grid.rows:
        if len({cells[place] for place in uneven}) == 1:
            if alike and rest is not None and cells[0] == rest[0]:
                # They fare as everybody else does, wherever their addresses are.
                tell(cells[0], (), OTHERS in members)
            else:
                tell(cells[0], [names.plain(number) for number in members])
            continue
        for place in uneven:
            others = OTHERS in members and not grid.columns[place].parts
            named = [number for number in members if not (others and number == OTHERS)]
            tell(cells[place], [names.at(number, grid.columns[place].parts) for number in named], others)
    by_profile: dict[Profile, list[int]] = {}
    for part, profile in outside.items():
        by_profile.setdefault(profile, []).append(part)
    for profile, parts in by_profile.items():
        if not alike or rest is None or profile != rest[0]:
            tell(profile, names.prefixes(parts, outside=True))
    for profile, (peers, meant) in found.items():
        if peers or any(meant):
            yield tuple(sorted(set(peers), key=_order)), any(meant), profile


def _order(named: Named) -> tuple[int, str]:
    return named.number, named.name


class _Names:
    def __init__(
        self, name_of: Callable[[int], str], regions: Regions, number_of: Callable[[int], int]
    ) -> None:
        self._name_of = name_of
        self._regions = regions
        self._number_of = number_of

    def plain(self, number: int) -> Named:
        return Named(number, self._name_of(number), number)

    def at(self, number: int, parts: tuple[int, ...]) -> Named:
        """An identity, by where its address is; no parts: in none that a rule selects."""
        name = self._name_of(number) if number != OTHERS else "everybody else"
        if not parts:
            return Named(number, f"{name} with an address that no rule selects", number, unselected=True)
        places = self.prefixes(parts, outside=False)
        where = ", ".join(place.name for place in places)
        return Named(number, f"{name} with an address in {where}", number, sum((p.where for p in places), ()))

    def prefixes(self, parts: Iterable[int], *, outside: bool) -> list[Named]:
        """The fewest prefixes that say these parts, each with what is left out of it."""
        held = set(parts)
        regions = self._regions
        inside: dict[int, list[int]] = {}
        tops = []
        for part in range(len(regions)):
            member = part in held
            above = regions.parents[part]
            while above >= 0 and above in regions.empty:
                above = regions.parents[above]
            if part in regions.empty:
                continue
            if member and not (above >= 0 and above in held):
                tops.append(part)
            if not member and above >= 0 and above in held:
                inside.setdefault(above, []).append(part)
        found = []
        for top in tops:
            cidr = regions.names[top]
            left_out = tuple(regions.names[part] for part in self._left_out(top, held, inside))
            text = f"{cidr} except {', '.join(left_out)}" if left_out else cidr
            if outside:
                text += " outside the cluster"
            found.append(Named(self._number_of(top), text, where=((cidr, left_out),), outside=outside))
        if outside and len(held) == len(regions) - len(regions.empty):
            where = sum((named.where for named in found), ())
            return [Named(WORLD, "reserved:world", where=where, outside=True)]
        return found

    def _left_out(self, top: int, held: set[int], inside: dict[int, list[int]]) -> list[int]:
        """Parts below `top` that are not meant, and are not below one that is not."""
        regions = self._regions
        found = []
        for above, parts in inside.items():
            there = above
            while there != top and regions.parents[there] >= 0 and there in held | regions.empty:
                there = regions.parents[there]
            if there == top:
                found += parts
        return sorted(found)
