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
from ipaddress import IPv4Address
from typing import Any, Final, TypeVar

from services.chassis import names
from services.chassis.errors import AlreadyExists, FimbriaError, Internal, NotFound, Unavailable
from services.chassis.labels import LabelSet
from services.chassis.logs import get_logger
from services.chassis.telemetry import remote_context, span
from services.loader.cni.errors import CniCode, CniError
from services.loader.cni.request import AddRequest, CniRequest
from services.loader.cni.result import CniResult
from services.loader.creation import EndpointMaker
from services.loader.endpoint import (
    Endpoint,
    EndpointRecord,
    EndpointSpec,
    NamedPort,
    Phase,
    State,
    check_container,
    host_device,
    owner_name,
)
from services.loader.interfaces import Datapath, DatapathError, IdentityBarrier, IdentityClient, NodeLinks
from services.loader.ipcache_sync import IpcacheSync
from services.loader.policy_sync import PolicySync
from services.loader.publication import Publication
from services.loader.regeneration import Level, Regenerator
from services.loader.registry import EndpointRegistry
from services.loader.releases import Releases
from services.loader.subjects import Subject, SubjectKey, SubjectTable

_PROTOCOLS: Final = {"TCP": 6, "UDP": 17, "SCTP": 132}
# How long a change of identity waits until the node's policy maps know the new one.
_BARRIER_SECONDS: Final = 5.0

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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._registry = registry
        self._releases = releases
        self._maker = maker
        self._subjects = subjects
        self._identities = identities
        self._kernel = kernel
        self._links = links
        self._policy = policy
        self._ipcache = ipcache
        self._barrier = barrier
        self._publication = publication
        self._clock = clock
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self.regenerator = Regenerator(self.regenerate_now, self._note_failure)

    # -- the CNI plugin

    async def add(self, request: AddRequest) -> CniResult:
        """Makes the endpoint, or returns the one that an equal ADD made before."""
        with _cni_span(names.CNI_ADD, request, self._node) as current:
            check_container(request.container_id, request.ifname)
            spec = _spec(request)
            current.set_attribute("pod", spec.pod)
            async with self._exclusive(spec.owner):
                existing = self._registry.by_owner(spec.owner)
                if existing is not None:
                    return _result(self._same(existing, spec))
                with self._releases.hold(spec.owner):
                    # A release that is still to be made would take the address from under the new endpoint.
                    await self._releases.settle(spec.owner)
                    number = self._registry.new_id()
                    record = EndpointRecord(number, spec, Phase.CREATING, self._clock())
                    record = await _carry_through(self._maker.create(record, request.netns_fd))
            current.set_attribute(names.ENDPOINT_ID, record.id)
            current.set_attribute(names.IDENTITY, record.identity)
            _log.info(
                "endpoint.created",
                endpoint=record.id,
                pod=spec.pod,
                ipv4=record.ipv4,
                identity=record.identity,
            )
            return _result(record)

    async def delete(self, request: CniRequest) -> None:
        """Removes the endpoint; what has to be given back is given back now if possible, else later."""
        with _cni_span(names.CNI_DEL, request, self._node):
            check_container(request.container_id, request.ifname)
            await self._delete(owner_name(request.container_id, request.ifname))

    async def check(self, request: CniRequest) -> CniResult:
        """Compares the endpoint with the kernel. Raises NotFound or CniError (CHECK_FAILED)."""
        with _cni_span(names.CNI_CHECK, request, self._node):
            check_container(request.container_id, request.ifname)
            owner = owner_name(request.container_id, request.ifname)
            async with self._exclusive(owner):
                endpoint = self._registry.by_owner(owner)
                if endpoint is None:
                    raise NotFound(
                        f"there is no endpoint for {owner} on this node",
                        reason="ENDPOINT_NOT_FOUND",
                        metadata={"owner": owner},
                    )
                record = endpoint.record
                problems = await self._links.check_endpoint_link(record, request.netns_fd)
                problems += self._datapath_problems(endpoint)
            if problems:
                raise CniError(CniCode.CHECK_FAILED, problems[0], "; ".join(problems))
            return _result(record)

    # -- the endpoint API

    async def update_labels(self, number: int, labels: Sequence[str]) -> Endpoint:
        """Gives an endpoint other labels; when this returns, its new identity is in force on this node."""
        wanted = tuple(LabelSet(labels))
        owner = self._registry.get(number).record.spec.owner
        async with self._exclusive(owner):
            record = self._registry.get(number).record
            if record.spec.labels != wanted:
                attributes: dict[str, Any] = {names.ENDPOINT_ID: number, names.NODE_NAME: self._node}
                with span(names.IDENTITY_UPDATE, **attributes):
                    await _carry_through(self._move(record, wanted))
            return self._registry.get(number)

    async def delete_endpoint(self, number: int) -> None:
        """Removes an endpoint; one that is not there is fine."""
        endpoint = self._registry.find(number)
        if endpoint is not None:
            await self._delete(endpoint.record.spec.owner)

    async def regenerate(self, number: int, level: Level = Level.RELOAD) -> Endpoint:
        """Writes the endpoint's kernel state anew. Raises NotFound, Internal (DATAPATH_FAILED)."""
        self._registry.get(number)
        await self.regenerator.request(number, level)
        return self._registry.get(number)

    def subject_changed(self, subject: Subject) -> None:
        """A subject has been realized, or has not: its endpoints' status says so."""
        for number in subject.users:
            endpoint = self._registry.find(number)
            if endpoint is None or endpoint.record.phase is not Phase.READY:
                continue
            if subject.error:
                self._registry.set_status(number, state=State.DEGRADED, last_error=subject.error)
            elif subject.realized is not None:
                self._registry.set_status(
                    number, state=State.READY, last_error="", policy_revision=subject.realized.revision
                )

    def published(self, number: int, revision: int) -> None:
        """An endpoint has been published, perhaps at last."""
        endpoint = self._registry.find(number)
        if endpoint is not None and endpoint.record.phase is Phase.READY:
            subject = self._subjects.get(endpoint.record.subject)
            if subject is not None and not subject.error:
                self._registry.set_status(number, state=State.READY, last_error="")
            self._registry.set_status(number, ipcache_revision=revision)

    async def refresh(self, number: int) -> None:
        """Asks for the identity of an endpoint's labels again, and moves the endpoint if it is another one
        now.
        """
        endpoint = self._registry.find(number)
        if endpoint is None or endpoint.record.phase is not Phase.READY:
            return
        async with self._exclusive(endpoint.record.spec.owner):
            endpoint = self._registry.find(number)
            if endpoint is not None and endpoint.record.phase is Phase.READY:
                record = endpoint.record
                found = await self._identities.resolve(record.spec.labels)
                if (found.id, found.revision) != (record.identity, record.identity_revision):
                    await self._move(record, record.spec.labels)

    # -- how

    async def _delete(self, owner: str) -> None:
        async with self._exclusive(owner):
            with self._releases.hold(owner):
                await self._take_apart(owner)

    async def _take_apart(self, owner: str) -> None:
        endpoint = self._registry.by_owner(owner)
        if endpoint is not None:
            record = replace(endpoint.record, phase=Phase.DELETING)
            self._registry.save(record)
            self._releases.add(owner, record.ipv4)
            # The cluster forgets the address while the device goes.
            removal = asyncio.create_task(self._maker.dismantle(record, self._subjects.get(record.subject)))
            settling = self._releases.try_settle(owner, asyncio.shield(removal))
            await _carry_through(_both(removal, settling))
            _log.info("endpoint.deleted", endpoint=record.id, pod=record.spec.pod, ipv4=record.ipv4)
        else:
            await _carry_through(self._take_apart_unknown(owner))

    async def _take_apart_unknown(self, owner: str) -> None:
        """An endpoint's record may have been lost; what belongs to the owner by name is removed all the
        same.
        """
        container_id, _, ifname = owner.rpartition("/")
        device = host_device(container_id, ifname)
        ifindex = (await self._links.endpoint_links()).get(device)
        row = next((row for row in self._kernel.attached() if row.ifindex == ifindex), None)
        self._releases.add(owner, row.ipv4 if row is not None else "")
        await self._links.delete_endpoint_link(device)
        if row is not None:
            self._kernel.detach(row.ifindex, row.ipv4)
            self._ipcache.remove_local(row.ipv4)
        await self._releases.try_settle(owner)

    async def _move(self, record: EndpointRecord, labels: tuple[str, ...]) -> None:
        """Gives an endpoint the identity of ``labels``: first its policy, then the endpoint, then the
        cluster's view of it.
        """
        status = self._registry.get(record.id).status
        self._registry.set_status(record.id, state=State.REGENERATING)
        old = self._subjects.get(record.subject)
        subject: Subject | None = None
        try:
            found = await self._identities.resolve(labels)
            key = SubjectKey(found.id, record.spec.named_ports)
            subject = await self._policy.subscribe(key, found.revision, record.id)
            # Packets that carry an identity must not be dropped because somebody has not heard of it.
            await self._policy.identity_revision.wait(found.revision, _BARRIER_SECONDS)
            await self._barrier.wait(found.revision, _BARRIER_SECONDS)
            moved = replace(
                record,
                spec=replace(record.spec, labels=labels),
                identity=found.id,
                identity_revision=found.revision,
                subject=subject.number,
            )
            self._realize(moved, subject, "policy")
            self._registry.save(moved)
        except (FimbriaError, DatapathError, OSError) as problem:
            if subject is not None and subject is not old:
                self._policy.release(subject, record.id)
            if isinstance(problem, FimbriaError):
                # Nothing has been changed: what was in force is, and whoever asked knows that he did not
                # get it.
                self._registry.set_status(record.id, state=status.state, last_error=status.last_error)
                raise
            self._note_failure(record.id, str(problem))
            # The kernel may be half on the way: what the record says is written again.
            self.regenerator.submit(record.id, Level.RELOAD)
            raise Internal(str(problem), reason="DATAPATH_FAILED") from problem
        if old is not None and old is not subject:
            self._policy.release(old, record.id)
        try:
            revision = await self._publication.publish(moved)
        except FimbriaError as problem:
            self._note_failure(record.id, f"its identity is not published: {problem}")
            self._publication.outdated.set()
            raise
        finally:
            self._publication.stored(moved.id)
        self._registry.set_status(
            record.id,
            state=State.READY,
            last_error="",
            policy_revision=subject.realized.revision if subject.realized else 0,
            ipcache_revision=revision,
        )

    async def regenerate_now(self, number: int, level: Level) -> None:
        """Writes an endpoint's kernel state anew. Raises DatapathError; used by the regenerator."""
        endpoint = self._registry.find(number)
        if endpoint is None:
            return
        async with self._exclusive(endpoint.record.spec.owner):
            endpoint = self._registry.find(number)
            if endpoint is None or endpoint.record.phase is not Phase.READY:
                return
            subject = self._subjects.get(endpoint.record.subject)
            if subject is None:
                raise DatapathError(f"endpoint {number} has no subject {endpoint.record.subject}")
            if level is Level.REBUILD:
                # The new programs are the node's: the other endpoints follow.
                self._kernel.rebuild()
                for other in self._registry:
                    if other.record.id != number:
                        self.regenerator.submit(other.record.id, Level.RELOAD)
            self._realize(endpoint.record, subject, level.name.lower(), rewrite=True)
            self._registry.set_status(number, state=State.READY, last_error="")

    def _realize(
        self, record: EndpointRecord, subject: Subject, level: str, *, rewrite: bool = False
    ) -> None:
        attributes: dict[str, Any] = {
            names.ENDPOINT_ID: record.id,
            names.IDENTITY: record.identity,
            names.REGENERATION_LEVEL: level,
        }
        with span(names.ENDPOINT_REGENERATE, **attributes):
            self._policy.realize(subject, rewrite=rewrite)
            with span(names.BPF_ATTACH):
                self._kernel.attach(record)
            self._ipcache.put_local(record.ipv4, record.identity, record.identity_revision)
            with span(names.ENDPOINT_REALIZED):
                pass

    def _note_failure(self, number: int, problem: str) -> None:
        self._registry.set_status(number, state=State.DEGRADED, last_error=problem)
        _log.error("endpoint.degraded", endpoint=number, error=problem)

    def _datapath_problems(self, endpoint: Endpoint) -> list[str]:
        record = endpoint.record
        row = next((row for row in self._kernel.attached() if row.endpoint_id == record.id), None)
        if row is None:
            return [f"the datapath has no row for endpoint {record.id}"]
        problems = []
        if row.ifindex != record.ifindex or row.ipv4 != record.ipv4:
            problems.append(f"the datapath has endpoint {record.id} as {row.ipv4} on interface {row.ifindex}")
        if row.identity != record.identity:
            problems.append(f"the datapath has endpoint {record.id} with identity {row.identity}")
        if endpoint.status.state is State.DEGRADED:
            problems.append(f"endpoint {record.id} is degraded: {endpoint.status.last_error}")
        return problems

    def _same(self, existing: Endpoint, spec: EndpointSpec) -> EndpointRecord:
        record = existing.record
        if record.phase is not Phase.READY:
            raise Unavailable(
                f"the endpoint of {spec.owner} is being taken apart", reason="ENDPOINT_BUSY", retry_after=1.0
            )
        # Labels may have changed since; what makes it the same attachment is where it is.
        if record.spec.netns != spec.netns or record.spec.pod != spec.pod:
            raise AlreadyExists(
                f"{spec.owner} exists already, for {record.spec.pod} in {record.spec.netns}",
                reason="ENDPOINT_EXISTS",
                metadata={"owner": spec.owner, "netns": record.spec.netns, "pod": record.spec.pod},
            )
        return record

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


def _spec(request: AddRequest) -> EndpointSpec:
    pod = request.pod
    return EndpointSpec(
        container_id=request.container_id,
        ifname=request.ifname,
        netns=request.netns_path,
        pod_namespace=pod.namespace,
        pod_name=pod.name,
        labels=tuple(pod.label_set()),
        named_ports=tuple(
            sorted(NamedPort(port.name, port.port, _PROTOCOLS[port.protocol]) for port in pod.ports)
        ),
    )


def _result(record: EndpointRecord) -> CniResult:
    return CniResult.for_link(
        host_name=record.spec.host_device,
        host_mac=record.host_mac,
        ifname=record.spec.ifname,
        pod_mac=record.pod_mac,
        netns_path=record.spec.netns,
        address=IPv4Address(record.ipv4),
        router=IPv4Address(record.router_ipv4),
    )


def _cni_span(name: str, request: CniRequest, node: str) -> Any:
    attributes: dict[str, Any] = {names.NODE_NAME: node, "container.id": request.container_id}
    return span(
        name,
        parent=remote_context(request.traceparent),
        # The plugin's own start: what it costs to get here belongs to the call.
        start_time=request.started_ns or None,
        **attributes,
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
