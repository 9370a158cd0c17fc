"""Conntrack garbage collection, on a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.chassis.logs import get_logger
from services.loader.interfaces import Collected, DatapathError

_log = get_logger(__name__)


async def collect_conntrack(
    collect: Callable[[], Collected],
    *,
    seconds: float,
) -> None:
    """Removes expired connections every so many seconds, until cancelled. A round that fails is logged; the
    next one comes.
    """
    while True:
        await asyncio.sleep(seconds)
        try:
            # A full table takes long to walk: not in the event loop.
            done = await asyncio.to_thread(collect)
        except DatapathError as problem:
            _log.error("conntrack.gc_failed", error=str(problem))
        else:
            _log.debug("conntrack.gc", seen=done.seen, removed=done.removed)
