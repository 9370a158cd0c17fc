"""Release: many at once, a handful of statements for all of them. What is released goes on hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.errors import FimbriaError
from services.ipam import address_problems, address_rows
from services.ipam.address_rows import HeldRow, OwnerKey
from services.ipam.address_search import FullCidrs
from services.ipam.family import Address, Family, address_from_packed


@dataclass(frozen=True, slots=True)
class Holding:
    """What one owner has; with `created_ns` only the allocation that was made at that time (Unix ns)."""

    owner: str
    created_ns: int | None = None


@dataclass(frozen=True, slots=True)
class GivenBack:
    """Holdings of a node to release.

    An allocation that is another one by now is left alone: it fails the item if that is `strict`.
    """

    node: str
    holdings: Sequence[Holding]
    strict: bool = False


@dataclass(slots=True)
class Released:
    """What became of them: the addresses released, and how many holdings were of which kind."""

    addresses: list[Address]
    released: int = 0
    absent: int = 0
    changed: int = 0


class Releaser:
    """Carries releases out. `clock` returns Unix time in nanoseconds."""

    def __init__(self, clock: Callable[[], int], hold_ns: int, full: FullCidrs) -> None:
        self._clock = clock
        self._hold_ns = hold_ns
        self._full = full

    async def together(
        self, connection: AsyncConnection, items: Sequence[GivenBack]
    ) -> Sequence[Released | FimbriaError]:
        """What each of `items` comes to, in their order; see services.chassis.db.Group."""
        keys = {(item.node, holding.owner): None for item in items for holding in item.holdings}
        present = await address_rows.read_present(connection, list(keys))
        gone: dict[OwnerKey, list[HeldRow]] = {}
        results = [_release(item, present, gone) for item in items]
        await address_rows.delete_held(connection, gone)
        if self._hold_ns:
            now_ns = self._clock()
            holds: list[tuple[bytes, Family, str, str, str, int]] = [
                (row.address, row.family, row.cidr, node, owner, now_ns)
                for (node, owner), rows in gone.items()
                for row in rows
            ]
            await address_rows.insert_holds(connection, holds)
        else:
            for rows in gone.values():
                for row in rows:
                    self._full.discard(row.cidr)
        return results


def _release(
    item: GivenBack, present: dict[OwnerKey, list[HeldRow]], gone: dict[OwnerKey, list[HeldRow]]
) -> Released | FimbriaError:
    """Moves what `item` releases from `present` to `gone`."""
    result = Released([])
    for holding in item.holdings:
        key = (item.node, holding.owner)
        rows = present.get(key)
        if rows is None:
            result.absent += 1
            continue
        created_ns = min(row.created_ns for row in rows)
        if holding.created_ns is not None and holding.created_ns != created_ns:
            if item.strict:
                held = [address_from_packed(row.address) for row in rows]
                return address_problems.allocation_changed(
                    holding.owner, item.node, holding.created_ns, created_ns, held
                )
            result.changed += 1
            continue
        gone[key] = present.pop(key)
        result.released += 1
        if item.strict:
            result.addresses += [address_from_packed(row.address) for row in rows]
    return result
