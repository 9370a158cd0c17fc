"""Addresses on hold: released a moment ago, and nobody's until the flows of their last owners are over.

A hold is over when the clock says so. Where the clock was set back, releases lie in the future; the sweep
moves them to the present, so that such a hold lasts at most once as long again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger
from services.chassis.statements import Sql
from services.ipam.family import Address, Network

# Of as many holds a write disposes at most: others shall get between.
SWEPT: Final = 500

_OUTERMOST: Final = Sql("SELECT min(released_ns), max(released_ns) FROM holds")
_PULL_BACK: Final = Sql(
    "UPDATE holds SET released_ns = ? WHERE address IN"
    " (SELECT address FROM holds WHERE released_ns > ? ORDER BY released_ns DESC LIMIT ?)"
)
_PURGE: Final = Sql(
    "DELETE FROM holds WHERE address IN"
    " (SELECT address FROM holds WHERE released_ns <= ? ORDER BY released_ns LIMIT ?)"
)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HeldBack:
    """An address on hold: who had it last, and until when (Unix ns) nobody gets it."""

    node: str
    owner: str
    address: Address
    cidr: Network
    pool: str
    until_ns: int


def is_over(released_ns: int, hold_ns: int, now_ns: int) -> bool:
    """Whether an address that was released at `released_ns` may be given again. Unix time in nanoseconds.

    A negative `released_ns` stands for an address that is held.
    """
    return 0 <= released_ns <= now_ns - hold_ns


def until(released_ns: int, hold_ns: int, now_ns: int) -> int:
    """When such an address may be given again."""
    return min(released_ns, now_ns) + hold_ns


async def sweep(database: Database, clock: Callable[[], int], hold_ns: int) -> int:
    """Removes the holds that are over and mends those that a clock set back has made too long.

    Returns how many rows it changed. Writes nothing when there is nothing to do.
    """
    async with database.read() as connection:
        ((earliest, latest),) = await _OUTERMOST.rows(connection)
    now_ns = clock()
    if earliest is None:
        return 0
    changed = 0
    if latest > now_ns:
        changed += await _in_parts(database, lambda conn: _PULL_BACK.run(conn, now_ns, now_ns, SWEPT))
    if is_over(earliest, hold_ns, now_ns):
        changed += await _in_parts(database, lambda conn: _PURGE.run(conn, now_ns - hold_ns, SWEPT))
    return changed


async def _in_parts(database: Database, part: Callable[[AsyncConnection], Awaitable[int]]) -> int:
    total = 0
    while True:
        changed = await database.write(part)
        total += changed
        if changed < SWEPT:
            return total


async def sweep_regularly(sweep: Callable[[], Awaitable[int]], seconds: float = 2.0) -> NoReturn:
    """Sweeps every `seconds`: a background task of the service.

    A store that cannot be written just now is no reason to stop: the next turn makes up for it.
    """
    while True:
        await asyncio.sleep(seconds)
        try:
            await sweep()
        except FimbriaError as exc:
            log.warning("sweep of addresses on hold put off", reason=exc.reason)
