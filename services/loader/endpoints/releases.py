"""Addresses and prefixes that have to be given back, whatever is down: a queue on disk and whoever works it
off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from services.chassis.errors import FimbriaError, InvalidArgument, NotFound
from services.chassis.logs import get_logger
from services.loader.endpoints.publication import Publication
from services.loader.endpoints.records import PendingRelease, StateDirectory
from services.loader.interfaces import AddressClient
from services.loader.streams.backoff import Backoff

_RETRY_SECONDS: Final = 10.0

_log = get_logger(__name__)


class Releases:
    """Releases that are still to be made. A release is stored before :meth:`add` returns."""

    def __init__(self, state: StateDirectory, addresses: AddressClient, publication: Publication) -> None:
        self._state = state
        self._addresses = addresses
        self._publication = publication
        self._pending: dict[str, PendingRelease] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._held: set[str] = set()
        self._added = asyncio.Event()
        for release in state.load_releases():
            self._pending[release.owner] = release

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, owner: str) -> bool:
        return owner in self._pending

    def prefixes(self) -> set[str]:
        """Prefixes that are still to be withdrawn."""
        return {prefix for release in self._pending.values() for prefix in release.prefixes}

    def add(self, owner: str, prefixes: Sequence[str] = (), allocated_ns: int = 0) -> None:
        """Notes that the owner's addresses, those allocated at that time or whichever they are, and prefixes
        have to be given back; without prefixes those noted before stay noted. Raises OSError.
        """
        before = self._pending.get(owner)
        kept = tuple(prefixes) or (before.prefixes if before else ())
        release = PendingRelease(owner, kept, allocated_ns)
        self._state.save_release(release)
        self._pending[owner] = release
        self._added.set()

    @contextmanager
    def hold(self, owner: str) -> Iterator[None]:
        """While something of the owner may still be on the node, his release is made by nobody but the
        caller.
        """
        self._held.add(owner)
        try:
            yield
        finally:
            self._held.discard(owner)
            self._added.set()

    async def settle(self, owner: str, removal: Awaitable[None] | None = None) -> None:
        """Makes an owner's release now, if there is one to make; the addresses are given back only after
        ``removal``.

        Raises FimbriaError, also that of the removal; the release stays noted then.
        """
        lock = self._locks.setdefault(owner, asyncio.Lock())
        async with lock:
            release = self._pending.get(owner)
            if release is None:
                return
            # The prefixes first: whoever gets the addresses next publishes them anew.
            if release.prefixes:
                await self._publication.withdraw(release.prefixes)
            if removal is not None:
                await removal
            await self._addresses.release(owner, release.allocated_ns)
            self._state.delete_release(owner)
            self._pending.pop(owner, None)
            self._locks.pop(owner, None)

    async def try_settle(self, owner: str, removal: Awaitable[None] | None = None) -> None:
        """Makes an owner's release now if that is possible; otherwise it is made later."""
        try:
            await self.settle(owner, removal)
        except FimbriaError as problem:
            await asyncio.to_thread(self._state.sync_release, owner)
            _log.warning("release.postponed", owner=owner, reason=problem.reason, error=problem.message)

    async def run(self) -> None:
        """Works the queue off until cancelled."""
        backoff = Backoff(first=0.5, most=_RETRY_SECONDS)
        while True:
            self._added.clear()
            failure = await self._round()
            if failure is None and self._pending.keys() <= self._held:
                backoff.reset()
                await self._added.wait()
            else:
                await asyncio.sleep(backoff.next())

    async def _round(self) -> FimbriaError | None:
        failure: FimbriaError | None = None
        for owner in self._pending.keys() - self._held:
            try:
                await self.settle(owner)
            except (InvalidArgument, NotFound) as refused:
                # The service will never take it: keeping it would only keep everybody busy.
                _log.error("release.refused", owner=owner, reason=refused.reason, error=refused.message)
                self._state.delete_release(owner)
                self._pending.pop(owner, None)
            except FimbriaError as problem:
                failure = problem
                _log.warning("release.postponed", owner=owner, reason=problem.reason, error=problem.message)
                break
        return failure
