"""Addresses and prefixes that have to be given back, whatever is down: a queue on disk and whoever works it
off.
"""

from __future__ import annotations

import asyncio
from typing import Final

from services.chassis.errors import FimbriaError, InvalidArgument, NotFound
from services.chassis.logs import get_logger
from services.loader.backoff import Backoff
from services.loader.interfaces import AddressClient, IdentityClient
from services.loader.records import PendingRelease, StateDirectory

_RETRY_SECONDS: Final = 10.0

_log = get_logger(__name__)


class Releases:
    """Releases that are still to be made. A release is stored before :meth:`add` returns."""

    def __init__(self, state: StateDirectory, addresses: AddressClient, identities: IdentityClient) -> None:
        self._state = state
        self._addresses = addresses
        self._identities = identities
        self._pending: dict[str, PendingRelease] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._added = asyncio.Event()
        for release in state.load_releases():
            self._pending[release.owner] = release

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, owner: str, ipv4: str) -> None:
        """Notes that the owner's address and prefix have to be given back. Raises OSError."""
        before = self._pending.get(owner)
        prefix = f"{ipv4}/32" if ipv4 else (before.prefix if before else "")
        release = PendingRelease(owner, prefix)
        self._state.save_release(release)
        self._pending[owner] = release
        self._added.set()

    async def settle(self, owner: str) -> None:
        """Makes an owner's release now, if there is one to make. Raises FimbriaError; it stays noted then."""
        lock = self._locks.setdefault(owner, asyncio.Lock())
        async with lock:
            release = self._pending.get(owner)
            if release is None:
                return
            # The prefix first: whoever gets the address next publishes it anew.
            if release.prefix:
                await self._identities.withdraw([release.prefix])
            await self._addresses.release(owner)
            self._state.delete_release(owner)
            self._pending.pop(owner, None)
            self._locks.pop(owner, None)

    async def try_settle(self, owner: str) -> None:
        """Makes an owner's release now if that is possible; otherwise it is made later."""
        try:
            await self.settle(owner)
        except FimbriaError as problem:
            await asyncio.to_thread(self._state.sync_release, owner)
            _log.warning("release.postponed", owner=owner, reason=problem.reason, error=problem.message)

    async def run(self) -> None:
        """Works the queue off until cancelled."""
        backoff = Backoff(first=0.5, most=_RETRY_SECONDS)
        while True:
            failure = await self._round()
            if failure is None and not self._pending:
                backoff.reset()
                self._added.clear()
                await self._added.wait()
            else:
                await asyncio.sleep(backoff.next())

    async def _round(self) -> FimbriaError | None:
        failure: FimbriaError | None = None
        for owner in list(self._pending):
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
