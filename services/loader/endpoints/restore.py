"""What a starting loader makes of what it finds: records on disk, rows and entries in the kernel, devices.

Forwarding goes on all the while. Whatever agrees is left as it is; half-made endpoints are taken apart,
endpoints whose device is gone are forgotten, and what belongs to nobody is removed. After a reboot there are
no pods of before, whatever the devices look like.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger
from services.loader.endpoints.creation import EndpointMaker
from services.loader.endpoints.endpoint import EndpointRecord, Phase
from services.loader.endpoints.orphans import OrphanFinder, remove_all
from services.loader.endpoints.records import StateDirectory
from services.loader.endpoints.refresh import differs
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.interfaces import AttachedEndpoint, Datapath, DatapathError, NodeLinks
from services.loader.ipcache.sync import IpcacheSync
from services.loader.policy.subjects import Subject, SubjectKey, SubjectTable, realized_from

_BOOT_ID = "/proc/sys/kernel/random/boot_id"

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a start found: endpoints in service again, endpoints removed, rows and devices without an owner
    removed.
    """

    kept: int
    removed: int
    orphans: int


@dataclass(frozen=True, slots=True)
class _Kernel:
    """What the kernel holds at the start."""

    rows: dict[int, AttachedEndpoint]
    unhooked: frozenset[int]


def boot_id() -> str:
    """The kernel's name for the time since it was started. Raises OSError."""
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


class Restoration:
    """Takes up the endpoints of a former process. ``failed`` is told of endpoints whose kernel state cannot
    be written.
    """

    def __init__(
        self,
        *,
        state: StateDirectory,
        registry: EndpointRegistry,
        subjects: SubjectTable,
        kernel: Datapath,
        links: NodeLinks,
        maker: EndpointMaker,
        ipcache: IpcacheSync,
        orphans: OrphanFinder,
        failed: Callable[[int, str], None],
    ) -> None:
        self._state = state
        self._registry = registry
        self._subjects = subjects
        self._kernel = kernel
        self._links = links
        self._maker = maker
        self._ipcache = ipcache
        self._orphans = orphans
        self._failed = failed

    async def run(self, boot: str) -> Restored:
        """Returns when everything that is right is in service. ``boot`` is :func:`boot_id`.

        With damaged records what seems to belong to nobody is left alone: it may belong to a pod that runs.
        """
        records = self._state.load_endpoints()
        before = self._state.load_boot()
        rebooted = bool(before) and before != boot
        if rebooted:
            _log.warning("restore.rebooted", endpoints=len(records))
        devices = await self._links.endpoint_links()
        alive: list[EndpointRecord] = []
        dead: list[EndpointRecord] = []
        for record in records:
            self._registry.take_up(record)
            # Interface indexes start over with each boot: an equal one says nothing then.
            there = not rebooted and devices.get(record.spec.host_device) == record.ifindex
            (alive if there and record.phase is Phase.READY else dead).append(record)
        self._take_up_subjects(alive)
        held = _Kernel(
            {row.endpoint_id: row for row in self._kernel.attached()},
            await asyncio.to_thread(self._kernel.unhooked) if alive else frozenset(),
        )
        for record in alive:
            self._take_up(record, held)
        await self._restore_routes(alive)
        for record in dead:
            await self._remove(record)
        orphans = 0 if self._state.damaged else await self._remove_orphans()
        if before != boot:
            # Last: whatever dies before, the next start finds the same again.
            self._state.save_boot(boot)
        return Restored(len(alive), len(dead), orphans)

    def _take_up_subjects(self, alive: list[EndpointRecord]) -> None:
        if not alive:
            return
        heads = self._kernel.subjects()
        entries = self._kernel.policy()
        for record in alive:
            head = heads.get(record.subject)
            realized = realized_from(head, entries.get(head.instance, {})) if head is not None else None
            key = SubjectKey(record.identity, record.spec.named_ports)
            self._subjects.restore(key, record.subject, record.identity_revision, record.id, realized)

    def _take_up(self, record: EndpointRecord, held: _Kernel) -> None:
        subject: Subject | None = self._subjects.get(record.subject)
        revision = subject.realized.revision if subject is not None and subject.realized is not None else 0
        self._registry.set_status(record.id, policy_revision=revision)
        row = held.rows.get(record.id)
        try:
            if row is None or record.ifindex in held.unhooked:
                self._kernel.attach(record)
            elif differs(record, row):
                self._kernel.update(record)
        except DatapathError as problem:
            self._failed(record.id, str(problem))
        self._ipcache.put_local(record.addresses, record.identity, record.identity_revision)

    async def _restore_routes(self, alive: list[EndpointRecord]) -> None:
        try:
            await self._links.sync_endpoint_routes(alive)
        except FimbriaError as problem:
            # Endpoints are reached through the datapath all the same, and a CHECK tells what is missing.
            _log.error("restore.routes_failed", reason=problem.reason, error=problem.message)

    async def _remove(self, record: EndpointRecord) -> None:
        deleting = replace(record, phase=Phase.DELETING)
        try:
            self._registry.save(deleting)
            await self._maker.dismantle(deleting, None)
            _log.info(
                "restore.endpoint_removed", endpoint=record.id, pod=record.spec.pod, phase=record.phase.value
            )
        except (FimbriaError, DatapathError, OSError) as problem:
            # The record stays; the runtime's DEL or the next start tries again.
            self._registry.set_status(record.id, last_error=str(problem))
            _log.error("restore.remove_failed", endpoint=record.id, error=str(problem))

    async def _remove_orphans(self) -> int:
        try:
            found = await remove_all(await self._orphans.local())
        except (FimbriaError, DatapathError) as problem:
            _log.error("restore.orphans_left", error=str(problem))
            return 0
        return sum(each.removed for each in found)
