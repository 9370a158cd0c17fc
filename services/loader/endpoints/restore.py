"""What a starting loader makes of what it finds: records on disk, rows and entries in the kernel, devices.

Forwarding goes on all the while. Whatever agrees is left as it is; half-made endpoints are taken apart,
endpoints whose device is gone are forgotten, and rows that belong to nobody are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger
from services.loader.endpoints.creation import EndpointMaker
from services.loader.endpoints.endpoint import EndpointRecord, Phase
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.interfaces import Datapath, DatapathError, NodeLinks
from services.loader.ipcache.sync import IpcacheSync
from services.loader.policy.subjects import Subject, SubjectKey, SubjectTable, realized_from

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a start found: endpoints in service again, endpoints removed, rows and devices without an owner
    removed.
    """

    kept: int
    removed: int
    orphans: int


async def restore(
    records: list[EndpointRecord],
    *,
    damaged: bool,
    registry: EndpointRegistry,
    subjects: SubjectTable,
    kernel: Datapath,
    links: NodeLinks,
    maker: EndpointMaker,
    ipcache: IpcacheSync,
    failed: Callable[[int, str], None],
) -> Restored:
    """Takes up the endpoints of a former process.

    With ``damaged`` some records could not be read: then what seems to belong to nobody is left alone,
    because it may belong to a pod that runs.
    """
    devices = await links.endpoint_links()
    alive: list[EndpointRecord] = []
    dead: list[EndpointRecord] = []
    for record in records:
        registry.take_up(record)
        whole = record.phase is Phase.READY and devices.get(record.spec.host_device) == record.ifindex
        (alive if whole else dead).append(record)
    _take_up_subjects(alive, subjects, kernel)
    for record in alive:
        _take_up(record, registry, subjects, kernel, ipcache, failed)
    await _restore_routes(alive, links)
    for record in dead:
        await _remove(record, registry, maker)
    orphans = 0
    if not damaged:
        orphans = await _remove_orphans(registry, subjects, kernel, links, set(devices))
    return Restored(len(alive), len(dead), orphans)


def _take_up_subjects(alive: list[EndpointRecord], subjects: SubjectTable, kernel: Datapath) -> None:
    heads = kernel.subjects()
    entries = kernel.policy()
    for record in alive:
        head = heads.get(record.subject)
        realized = realized_from(head, entries.get(head.instance, {})) if head is not None else None
        key = SubjectKey(record.identity, record.spec.named_ports)
        subjects.restore(key, record.subject, record.identity_revision, record.id, realized)


def _take_up(
    record: EndpointRecord,
    registry: EndpointRegistry,
    subjects: SubjectTable,
    kernel: Datapath,
    ipcache: IpcacheSync,
    failed: Callable[[int, str], None],
) -> None:
    subject: Subject | None = subjects.get(record.subject)
    revision = subject.realized.revision if subject is not None and subject.realized is not None else 0
    registry.set_status(record.id, policy_revision=revision)
    try:
        # Also when the row is right: the programs may be newer than those on the device.
        kernel.attach(record)
    except DatapathError as problem:
        failed(record.id, str(problem))
    ipcache.put_local(record.addresses, record.identity, record.identity_revision)


async def _restore_routes(alive: list[EndpointRecord], links: NodeLinks) -> None:
    try:
        await links.sync_endpoint_routes(alive)
    except FimbriaError as problem:
        # Endpoints are reached through the datapath all the same, and a CHECK tells what is missing.
        _log.error("restore.routes_failed", reason=problem.reason, error=problem.message)


async def _remove(record: EndpointRecord, registry: EndpointRegistry, maker: EndpointMaker) -> None:
    deleting = replace(record, phase=Phase.DELETING)
    try:
        registry.save(deleting)
        await maker.dismantle(deleting, None)
        _log.info(
            "restore.endpoint_removed", endpoint=record.id, pod=record.spec.pod, phase=record.phase.value
        )
    except (FimbriaError, DatapathError, OSError) as problem:
        # The record stays; the runtime's DEL or the next start tries again.
        registry.set_status(record.id, last_error=str(problem))
        _log.error("restore.remove_failed", endpoint=record.id, error=str(problem))


async def _remove_orphans(
    registry: EndpointRegistry,
    subjects: SubjectTable,
    kernel: Datapath,
    links: NodeLinks,
    devices: set[str],
) -> int:
    removed = 0
    known = {endpoint.record.spec.host_device for endpoint in registry}
    try:
        for device in devices - known:
            await links.delete_endpoint_link(device)
            removed += 1
        for row in kernel.attached():
            endpoint = registry.find(row.endpoint_id)
            if endpoint is None or endpoint.record.ifindex != row.ifindex:
                kernel.detach(row.ifindex, row.ipv4, row.ipv6)
                removed += 1
        rows, entries = subjects.sweep()
        removed += rows
        if removed or entries:
            _log.info("restore.orphans_removed", devices_and_rows=removed, policy_entries=entries)
    except (FimbriaError, DatapathError) as problem:
        _log.error("restore.orphans_left", error=str(problem))
    return removed
