"""The periodic look at everything: what of the kernel is not as the records say is written again, and nothing
else is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger
from services.loader.endpoints.device_watch import DeviceWatch
from services.loader.endpoints.endpoint import EndpointRecord, Phase
from services.loader.endpoints.engine import Regenerator
from services.loader.endpoints.regeneration import Cause, Level
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.interfaces import AttachedEndpoint, Datapath, DatapathError
from services.loader.ipcache.sync import IpcacheSync
from services.loader.policy.subjects import HOST_USER, SubjectTable
from services.loader.policy.sync import PolicySync

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """How many of what were found to differ."""

    endpoints: int = 0
    subjects: int = 0
    addresses: int = 0
    prefixes: int = 0


class Refresh:
    """``node`` is called when it is the turn of the node's own devices, with whether they lack programs."""

    def __init__(
        self,
        *,
        registry: EndpointRegistry,
        subjects: SubjectTable,
        kernel: Datapath,
        policy: PolicySync,
        ipcache: IpcacheSync,
        regenerator: Regenerator,
        devices: DeviceWatch,
        node: Callable[[bool], None],
    ) -> None:
        self._registry = registry
        self._subjects = subjects
        self._kernel = kernel
        self._policy = policy
        self._ipcache = ipcache
        self._regenerator = regenerator
        self._devices = devices
        self._node = node

    async def run(self, seconds: float) -> None:
        """Every so many seconds, until cancelled; 0: never."""
        while seconds:
            # Nodes that started together shall not look together.
            await asyncio.sleep(seconds * random.uniform(0.9, 1.1))
            try:
                await self.once()
            except (FimbriaError, DatapathError, OSError) as problem:
                _log.error("refresh.failed", error=str(problem))

    async def once(self) -> Refreshed:
        """Compares everything and has what differs repaired. Raises FimbriaError, DatapathError."""
        await self._devices.look()
        self._node(bool(await asyncio.to_thread(self._kernel.node_unhooked)))
        found = Refreshed(
            await self._endpoints(),
            await self._policies(),
            await self._ipcache.verify(),
            await self._policy.verify_prefixes(),
        )
        if found != Refreshed():
            _log.warning(
                "refresh.repaired",
                endpoints=found.endpoints,
                subjects=found.subjects,
                addresses=found.addresses,
                prefixes=found.prefixes,
            )
        return found

    async def _endpoints(self) -> int:
        before = {each.record.id: each.record for each in self._registry if each.record.phase is Phase.READY}
        unhooked = await asyncio.to_thread(self._kernel.unhooked)
        rows = {row.endpoint_id: row for row in await asyncio.to_thread(self._kernel.attached)}
        differing = 0
        for number, record in before.items():
            await asyncio.sleep(0)
            now = self._registry.find(number)
            # What was changed meanwhile was written meanwhile.
            if now is None or now.record is not record:
                continue
            row = rows.get(number)
            if row is not None and record.ifindex in unhooked:
                self._regenerator.submit(number, Level.RELOAD, Cause.REFRESH)
            elif row is None or differs(record, row):
                # A device whose row is gone may have lost its programs unseen.
                self._regenerator.submit(number, Level.RELOAD if row is None else Level.POLICY, Cause.REFRESH)
            else:
                continue
            differing += 1
        return differing

    async def _policies(self) -> int:
        before = {subject.number: subject.realized for subject in self._subjects}
        entries = await asyncio.to_thread(self._subjects.entries)
        differing = 0
        for subject in self._subjects:
            await asyncio.sleep(0)
            realized = before.get(subject.number)
            if realized is None or subject.realized is not realized or subject.error:
                continue
            if self._subjects.agrees(subject, entries):
                continue
            differing += 1
            users = subject.users - {HOST_USER}
            if users:
                self._regenerator.submit(min(users), Level.POLICY, Cause.REFRESH)
            else:
                await self._policy.verify(subject)
        return differing


def differs(record: EndpointRecord, row: AttachedEndpoint) -> bool:
    """Whether the endpoint's row is not what its record says."""
    return (row.ifindex, row.identity, row.subject, row.addresses, row.rate, row.host_mac, row.pod_mac) != (
        record.ifindex,
        record.identity,
        record.subject,
        record.addresses,
        record.rate,
        record.host_mac,
        record.pod_mac,
    )
