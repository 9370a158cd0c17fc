"""The node's endpoints as others ask for them: the CNI plugin's calls, and those of the endpoint API.

Calls for one endpoint happen one after the other, whoever makes them. A call that has begun is carried
through, also when whoever made it has gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from services.chassis import names
from services.chassis.errors import AlreadyExists, Internal, NotFound, Unavailable
from services.chassis.labels import LabelSet
from services.chassis.logs import get_logger
from services.chassis.telemetry import span
from services.loader.endpoints.creation import EndpointMaker
from services.loader.endpoints.endpoint import (
    Endpoint,
    EndpointRecord,
    EndpointSpec,
    Phase,
    host_device,
    host_prefix,
)
from services.loader.endpoints.engine import Programs, Regenerator
from services.loader.endpoints.health import DATAPATH, PUBLICATION, EndpointHealth
from services.loader.endpoints.history import KEPT
from services.loader.endpoints.identity_change import IdentityChange
from services.loader.endpoints.identity_use import IdentityUse
from services.loader.endpoints.publication import Publication
from services.loader.endpoints.realization import EndpointRealizer
from services.loader.endpoints.regeneration import Cause, Job, Level, Regeneration
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.endpoints.releases import Releases
from services.loader.interfaces import (
    Datapath,
    DatapathError,
    IdentityBarrier,
    IdentityClient,
    NodeLinks,
)
from services.loader.ipcache.sync import IpcacheSync
from services.loader.policy.subjects import Subject, SubjectTable
from services.loader.policy.sync import PolicySync

T = TypeVar("T")

_log = get_logger(__name__)


class EndpointManager:
    """Does what the CNI plugin and the endpoint API ask for."""

    def __init__(
        self,
        *,
        node: str,
        registry: EndpointRegistry,
        releases: Releases,
        maker: EndpointMaker,
        subjects: SubjectTable,
        identities: IdentityClient,
        kernel: Datapath,
        links: NodeLinks,
        policy: PolicySync,
        ipcache: IpcacheSync,
        barrier: IdentityBarrier,
        publication: Publication,
        uses: IdentityUse,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._registry = registry
        self._releases = releases
        self._maker = maker
        self._subjects = subjects
        self._kernel = kernel
        self._links = links
        self._ipcache = ipcache
        self._clock = clock
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._health = EndpointHealth(registry)
        self._realizer = EndpointRealizer(
            registry=registry,
            subjects=subjects,
            kernel=kernel,
            policy=policy,
            ipcache=ipcache,
            health=self._health,
        )
        self.regenerator = Regenerator(
            self._regenerate, self._regeneration_failed, rebuild=self._rebuild, histories=registry.histories
        )
        self._change = IdentityChange(
            registry=registry,
            subjects=subjects,
            identities=identities,
            policy=policy,
            barrier=barrier,
            publication=publication,
            realizer=self._realizer,
            regenerator=self.regenerator,
            health=self._health,
            uses=uses,
        )

    async def create(self, spec: EndpointSpec, netns_fd: int | None) -> EndpointRecord:
        """Makes the endpoint, or returns the one that is there already.

        Raises AlreadyExists (ENDPOINT_EXISTS) when the attachment exists elsewhere or for another pod,
        Unavailable when a service is away, Internal (DATAPATH_FAILED); a failure leaves nothing behind.
        """
        async with self._exclusive(spec.owner):
            existing = self._registry.by_owner(spec.owner)
            if existing is not None:
                record = _same(existing, spec)
                if (await self._links.endpoint_links()).get(spec.host_device) == record.ifindex:
                    return record
                # Its device went without a DEL, with the namespace most likely: what is left is of no use.
                with self._releases.hold(spec.owner):
                    await self._take_apart(spec.owner)
            with self._releases.hold(spec.owner):
                # A release that is still to be made would take the address from under the new endpoint.
                await self._releases.settle(spec.owner)
                number = self._registry.new_id()
                record = EndpointRecord(number, spec, Phase.CREATING, self._clock())
                with self.regenerator.creating():
                    record = await _carry_through(self._maker.create(record, netns_fd))
        _log.info(
            "endpoint.created",
            endpoint=record.id,
            pod=spec.pod,
            ipv4=record.ipv4,
            ipv6=record.ipv6,
            identity=record.identity,
        )
        return record

    async def remove(self, owner: str) -> None:
        """Removes whatever the owner has on this node; what is away for now is told later. Nothing there is
        fine.
        """
        async with self._exclusive(owner):
            with self._releases.hold(owner):
                await self._take_apart(owner)

    async def vanished(self, owner: str, ifindex: int) -> None:
        """The device of an owner's endpoint is gone, and nobody said so: what is left of the endpoint goes
        too.
        """
        async with self._exclusive(owner):
            endpoint = self._registry.by_owner(owner)
            if (
                endpoint is None
                or endpoint.record.phase is not Phase.READY
                or endpoint.record.ifindex != ifindex
            ):
                return
            _log.warning(
                "endpoint.device_vanished",
                endpoint=endpoint.record.id,
                device=endpoint.record.spec.host_device,
            )
            with self._releases.hold(owner):
                await self._take_apart(owner)

    async def inspect(self, owner: str, netns_fd: int | None) -> tuple[EndpointRecord, list[str]]:
        """An endpoint, and what of it is not as it was made. Raises NotFound (ENDPOINT_NOT_FOUND)."""
        async with self._exclusive(owner):
            endpoint = self._registry.by_owner(owner)
            if endpoint is None:
                raise NotFound(
                    f"there is no endpoint for {owner} on this node",
                    reason="ENDPOINT_NOT_FOUND",
                    metadata={"owner": owner},
                )
            record = endpoint.record
            problems = await self._links.check_endpoint_link(record, netns_fd)
            problems += self._realizer.problems(record)
            if endpoint.status.last_error:
                problems.append(f"endpoint {record.id} is degraded: {endpoint.status.last_error}")
            return record, problems

    async def update_labels(self, number: int, labels: Sequence[str]) -> Endpoint:
        """Gives an endpoint other labels; when this returns, its new identity is in force on this node."""
        wanted = tuple(LabelSet(labels))
        owner = self._registry.get(number).record.spec.owner
        async with self._exclusive(owner):
            record = self._registry.get(number).record
            _require_ready(record)
            if record.spec.labels != wanted:
                attributes: dict[str, Any] = {names.ENDPOINT_ID: number, names.NODE_NAME: self._node}
                with span(names.IDENTITY_UPDATE, **attributes):
                    await _carry_through(self._change.relabel(record, wanted))
            return self._registry.get(number)

    async def refresh(self, number: int) -> None:
        """Asks for the identity of an endpoint's labels again, and moves the endpoint if it is another."""
        endpoint = self._registry.find(number)
        if endpoint is None:
            return
        async with self._exclusive(endpoint.record.spec.owner):
            endpoint = self._registry.find(number)
            if endpoint is not None and endpoint.record.phase is Phase.READY:
                await _carry_through(self._change.refresh(endpoint.record))

    async def delete_endpoint(self, number: int) -> None:
        """Removes an endpoint; one that is not there is fine."""
        endpoint = self._registry.find(number)
        if endpoint is not None:
            await self.remove(endpoint.record.spec.owner)

    async def regenerate(self, number: int, level: Level = Level.RELOAD) -> Endpoint:
        """Writes the endpoint's kernel state anew. Raises NotFound, Internal (DATAPATH_FAILED)."""
        self._registry.get(number)
        await self.regenerator.request(number, level, Cause.OPERATOR)
        return self._registry.get(number)

    def regenerations(self, number: int) -> list[Regeneration]:
        """What was tried for an endpoint of late and what is going to be, the newest first."""
        waiting = self.regenerator.pending(number)
        return [*([waiting] if waiting is not None else []), *self._registry.histories.of(number)][:KEPT]

    def subject_changed(self, subject: Subject) -> None:
        """A subject has been realized, or has not: its endpoints' status says so."""
        self._realizer.subject_changed(subject)

    def published(self, number: int, revision: int) -> None:
        """An endpoint has been published, perhaps at last."""
        self._health.mended(number, PUBLICATION, ipcache_revision=revision)

    def realization_failed(self, number: int, problem: str) -> None:
        """An endpoint's kernel state could not be written; that is tried again until it works."""
        self._health.failed(number, DATAPATH, problem)
        self.regenerator.submit(number, Level.RELOAD, Cause.RESTORED)

    async def _take_apart(self, owner: str) -> None:
        endpoint = self._registry.by_owner(owner)
        if endpoint is None:
            await _carry_through(self._take_apart_unknown(owner))
            return
        record = replace(endpoint.record, phase=Phase.DELETING)
        self._registry.save(record)
        self._releases.add(owner, record.prefixes, record.allocated_ns)
        # The cluster forgets the address while the device goes.
        removal = asyncio.create_task(self._maker.dismantle(record, self._subjects.get(record.subject)))
        settling = self._releases.try_settle(owner, asyncio.shield(removal))
        await _carry_through(_both(removal, settling))
        self._health.settle(record.id)
        self.regenerator.forget(record.id)
        _log.info(
            "endpoint.deleted",
            endpoint=record.id,
            pod=record.spec.pod,
            ipv4=record.ipv4,
            ipv6=record.ipv6,
        )

    async def _take_apart_unknown(self, owner: str) -> None:
        """An endpoint's record may have been lost; what belongs to the owner by name is removed all the
        same.
        """
        container_id, _, ifname = owner.rpartition("/")
        device = host_device(container_id, ifname)
        ifindex = (await self._links.endpoint_links()).get(device)
        row = next((row for row in self._kernel.attached() if row.ifindex == ifindex), None)
        self._releases.add(owner, [host_prefix(each) for each in row.addresses] if row is not None else ())
        await self._links.delete_endpoint_link(device)
        if row is not None:
            try:
                self._kernel.detach(row.ifindex, row.ipv4, row.ipv6)
            except DatapathError as problem:
                raise Internal(str(problem), reason="DATAPATH_FAILED") from problem
            self._ipcache.remove_local(row.addresses)
        await self._releases.try_settle(owner)

    async def _regenerate(self, job: Job, programs: Programs) -> None:
        endpoint = self._registry.find(job.endpoint)
        if endpoint is None:
            return
        async with self._exclusive(endpoint.record.spec.owner):
            await self._realizer.regenerate(job, programs)

    async def _rebuild(self) -> None:
        # clang and the verifier take seconds: not in the event loop.
        await asyncio.to_thread(self._kernel.reload, rebuild=True)

    def _regeneration_failed(self, number: int, problem: str) -> None:
        self._health.failed(number, DATAPATH, problem)

    @asynccontextmanager
    async def _exclusive(self, owner: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(owner, (asyncio.Lock(), 0))
        self._locks[owner] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[owner]
            if users == 1:
                del self._locks[owner]
            else:
                self._locks[owner] = (lock, users - 1)


def _same(existing: Endpoint, spec: EndpointSpec) -> EndpointRecord:
    record = existing.record
    _require_ready(record)
    # Labels may have changed since; what makes it the same attachment is where it is, and whose.
    if record.spec.netns != spec.netns or record.spec.pod != spec.pod:
        raise AlreadyExists(
            f"{spec.owner} exists already, for {record.spec.pod} in {record.spec.netns}",
            reason="ENDPOINT_EXISTS",
            metadata={"owner": spec.owner, "netns": record.spec.netns, "pod": record.spec.pod},
        )
    return record


def _require_ready(record: EndpointRecord) -> None:
    if record.phase is not Phase.READY:
        raise Unavailable(
            f"the endpoint of {record.spec.owner} is being taken apart",
            reason="ENDPOINT_BUSY",
            retry_after=1.0,
        )


async def _both(removal: Awaitable[None], settling: Awaitable[None]) -> None:
    await settling
    await removal


async def _carry_through(work: Coroutine[Any, Any, T]) -> T:
    """Does the work to its end, also when whoever waits for it is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait([task])
        raise
