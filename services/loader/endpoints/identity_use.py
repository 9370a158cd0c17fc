"""Which identities this node uses, as the identity service is told, and what it answers.

A number that nobody uses is collected and becomes another label set's; so the node says which ones its
endpoints have, at least three times within each lease, and soon after endpoints have come and gone. The
answer names numbers that there are not (any more), and the revision of the label filter: the endpoints
concerned have their labels resolved again, and move to another identity where that is the outcome.

While the service is away nothing changes: what the node's endpoints have is published, and not collected.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger
from services.loader.endpoints.endpoint import EndpointRecord, Phase
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.interfaces import IdentityClient, UseReport
from services.loader.streams.backoff import Backoff
from services.loader.streams.watch import WatchState

# Endpoints that come and go within this time are told of together.
COALESCE_SECONDS: Final = 1.0
# What has just been resolved is about to be an endpoint's.
RECENT_SECONDS: Final = 60.0
# A replica may go by the filter of before for a second after another has told of the new one.
FILTER_SECONDS: Final = 2.0
_REPORTS_A_LEASE: Final = 3
# For a service that names none.
_LEASE_SECONDS: Final = 60.0
_AT_ONCE: Final = 8

_log = get_logger(__name__)


class IdentityUse:
    """Reports the node's identities, and has labels resolved again.

    ``epoch`` changes with what labels resolve to: an identity that was asked for in an earlier one has to be
    asked for again. ``settled``: what the endpoints have is what their labels resolve to. ``state`` is that
    of the reports; ``problem`` says what is wrong, or is empty.
    """

    def __init__(
        self,
        registry: EndpointRegistry,
        identities: IdentityClient,
        *,
        clock: Callable[[], float] = time.monotonic,
        filter_seconds: float = FILTER_SECONDS,
        coalesce_seconds: float = COALESCE_SECONDS,
    ) -> None:
        self._registry = registry
        self._identities = identities
        self._clock = clock
        self._filter_seconds = filter_seconds
        self._coalesce_seconds = coalesce_seconds
        self._recent: dict[int, float] = {}
        self._reported: frozenset[int] = frozenset()
        self._filter: int | None = None
        self._changed = asyncio.Event()
        self._asked = asyncio.Event()
        self._everything = False
        self._some: set[int] = set()
        self._passes = 0
        self.epoch = 0
        self.settled = False
        self.state = WatchState("identity-use")
        self._behind = ""

    @property
    def problem(self) -> str:
        """What is wrong for now, in words."""
        return self.state.error or self._behind

    def resolved(self, identity: int) -> None:
        """Somebody is about to have this identity."""
        self._recent[identity] = self._clock()

    def changed(self) -> None:
        """Endpoints have come or gone, or have other identities."""
        self._changed.set()

    def made(self, number: int, epoch: int) -> None:
        """An endpoint has the identity that its labels resolved to in an epoch."""
        endpoint = self._registry.find(number)
        if endpoint is not None:
            self._recent.pop(endpoint.record.identity, None)
        self.changed()
        if epoch != self.epoch:
            self._some.add(number)
            self._asked.set()

    def used(self) -> frozenset[int]:
        """The identities in use: of endpoints, and of those that are being made."""
        oldest = self._clock() - RECENT_SECONDS
        self._recent = {number: at for number, at in self._recent.items() if at > oldest}
        held = {endpoint.record.identity for endpoint in self._registry} - {0}
        return frozenset(held | self._recent.keys())

    async def run(self, refresh: Callable[[int], Awaitable[None]]) -> None:
        """Until cancelled. ``refresh`` moves an endpoint to the identity that its labels resolve to."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._report())
            group.create_task(self._rechecks(refresh))

    async def resolve_again(
        self, records: Iterable[EndpointRecord], refresh: Callable[[int], Awaitable[None]]
    ) -> None:
        """Moves each of the endpoints that are ready to the identity that its labels have now. Raises
        FimbriaError, the first of all, after the others have been moved.
        """
        groups: dict[tuple[str, ...], list[EndpointRecord]] = defaultdict(list)
        for record in records:
            if record.phase is Phase.READY:
                groups[record.spec.labels].append(record)
        turn = asyncio.Semaphore(_AT_ONCE)

        async def one(labels: tuple[str, ...], alike: list[EndpointRecord]) -> None:
            async with turn:
                found = await self._identities.resolve(labels)
                for record in alike:
                    if (record.identity, record.identity_revision) != (found.id, found.revision):
                        await refresh(record.id)

        outcomes = await asyncio.gather(*(one(*each) for each in groups.items()), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _report(self) -> None:
        backoff = Backoff(first=0.5, most=30.0)
        while True:
            self._changed.clear()
            used = self.used()
            try:
                told = await self._identities.report(sorted(used))
            except FimbriaError as problem:
                self.state.failed(str(problem))
                await asyncio.sleep(backoff.next())
                continue
            backoff.reset()
            self._reported = used
            self.state.opened()
            self.state.in_force(told.filter_revision)
            self._take(told)
            # Nodes that started together shall not report together.
            lease = told.lease_seconds or _LEASE_SECONDS
            await self._until_due(lease / _REPORTS_A_LEASE * random.uniform(0.8, 1.0))

    async def _until_due(self, seconds: float) -> None:
        """Returns when a report is due: after so long, or when it would say something else."""
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    await self._changed.wait()
                    await asyncio.sleep(self._coalesce_seconds)
                    self._changed.clear()
                    if self.used() != self._reported:
                        return
        except TimeoutError:
            return

    def _take(self, told: UseReport) -> None:
        if told.unknown:
            lost = set(told.unknown)
            found = [each.record.id for each in self._registry if each.record.identity in lost]
            if found:
                _log.warning("identities.unknown", identities=sorted(lost), endpoints=found)
                self._some.update(found)
                self._asked.set()
            for number in lost:
                self._recent.pop(number, None)
        if told.filter_revision != self._filter:
            # At the start what is on record may be of any filter: one look tells. Later another follows, when
            # every replica goes by the new one.
            self._passes = 1 if self._filter is None else 2
            self._filter = told.filter_revision
            self.epoch += 1
            self.settled = False
            self._ask_all()

    def _ask_all(self) -> None:
        self._everything = True
        self._asked.set()

    async def _rechecks(self, refresh: Callable[[int], Awaitable[None]]) -> None:
        backoff = Backoff(first=0.5, most=30.0)
        while True:
            await self._asked.wait()
            self._asked.clear()
            epoch, everything, some = self.epoch, self._everything, self._some
            self._everything, self._some = False, set()
            records = [each.record for each in self._registry if everything or each.record.id in some]
            try:
                await self.resolve_again(records, refresh)
            except FimbriaError as problem:
                _log.warning("identities.not_resolved_again", reason=problem.reason, error=problem.message)
                self._behind = f"labels could not be resolved again: {problem}"
                self._everything |= everything
                self._some |= some
                await asyncio.sleep(backoff.next())
                self._asked.set()
                continue
            backoff.reset()
            self._behind = ""
            if everything and epoch == self.epoch:
                self._passes -= 1
                if self._passes > 0:
                    asyncio.get_running_loop().call_later(self._filter_seconds, self._ask_all)
                else:
                    self.settled = True
