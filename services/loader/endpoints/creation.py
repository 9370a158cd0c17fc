"""How an endpoint comes to be: what an ADD does between the request and the answer.

Addresses and identity are asked for at the same time. The device comes up last, when the datapath holds it:
from its first packet on an endpoint is under its policy. Whatever fails, everything is taken back in
reverse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from services.chassis import names
from services.chassis.errors import FimbriaError, Internal
from services.chassis.logs import get_logger
from services.chassis.telemetry import span
from services.loader import failpoints
from services.loader.endpoints.endpoint import EndpointRecord, EndpointSpec, Phase, State
from services.loader.endpoints.identity_use import IdentityUse
from services.loader.endpoints.publication import Publication
from services.loader.endpoints.regeneration import Cause, Level
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.endpoints.releases import Releases
from services.loader.endpoints.undo import Undo
from services.loader.interfaces import (
    AddressClient,
    Allocation,
    DatapathError,
    EndpointKernel,
    EndpointLink,
    IdentityBarrier,
    IdentityClient,
    NodeLinks,
    ResolvedIdentity,
)
from services.loader.ipcache.sync import IpcacheSync
from services.loader.measure_points import regenerating
from services.loader.policy.subjects import Subject, SubjectKey
from services.loader.policy.sync import PolicySync

# How long an ADD waits for policy maps to know its identity before it goes on without.
_BARRIER_SECONDS: Final = 1.0


_log = get_logger(__name__)


class EndpointMaker:
    """Makes endpoints, and takes half-made ones apart. ``cover`` returns when the node routes addresses as
    its own.
    """

    def __init__(
        self,
        *,
        registry: EndpointRegistry,
        releases: Releases,
        addresses: AddressClient,
        identities: IdentityClient,
        kernel: EndpointKernel,
        links: NodeLinks,
        policy: PolicySync,
        ipcache: IpcacheSync,
        barrier: IdentityBarrier,
        publication: Publication,
        uses: IdentityUse,
        cover: Callable[[Iterable[str]], Awaitable[None]] | None = None,
    ) -> None:
        self._cover = cover
        self._uses = uses
        self._registry = registry
        self._releases = releases
        self._addresses = addresses
        self._identities = identities
        self._kernel = kernel
        self._links = links
        self._policy = policy
        self._ipcache = ipcache
        self._barrier = barrier
        self._publication = publication
        self._announcements: set[asyncio.Task[None]] = set()

    async def create(self, record: EndpointRecord, netns_fd: int | None) -> EndpointRecord:
        """Makes the endpoint of a new record; returns the record as it is then. Raises FimbriaError and
        leaves nothing.
        """
        undo = Undo()
        try:
            return await self._create(record, netns_fd, undo)
        except BaseException as problem:
            self._registry.set_status(record.id, state=State.DELETING, last_error=str(problem))
            self._publication.stored(record.id)
            await undo.run()
            if isinstance(problem, DatapathError | OSError):
                raise Internal(str(problem), reason="DATAPATH_FAILED") from problem
            raise

    async def dismantle(self, record: EndpointRecord, subject: Subject | None) -> None:
        """Removes an endpoint from the node, and notes what has to be given back to the services. Idempotent.

        Raises FimbriaError or OSError when the node itself refuses; the record is still there then.
        """
        self._releases.add(record.spec.owner, record.prefixes, record.allocated_ns)
        failpoints.passed("delete.noted")
        # The device first: without programs it would be an open door for as long as it takes to remove it.
        await self._links.delete_endpoint_link(record.spec.host_device)
        failpoints.passed("delete.device")
        if record.ifindex:
            try:
                self._kernel.detach(record.ifindex, record.ipv4, record.ipv6)
            except DatapathError as problem:
                raise Internal(str(problem), reason="DATAPATH_FAILED") from problem
        failpoints.passed("delete.rows")
        self._ipcache.remove_local(record.addresses)
        if subject is not None:
            self._policy.release(subject, record.id)
        self._registry.remove(record.id)
        self._uses.changed()

    async def _create(self, record: EndpointRecord, netns_fd: int | None, undo: Undo) -> EndpointRecord:
        spec = record.spec
        epoch = self._uses.epoch
        self._registry.save(record)
        failpoints.passed("add.recorded")

        async def forget() -> None:
            self._registry.remove(record.id)

        async def release() -> None:
            self._releases.add(spec.owner)
            await self._releases.try_settle(spec.owner)

        undo.add("record", forget)
        undo.add("address", release)
        allocation = asyncio.create_task(self._allocate(spec))
        identity = asyncio.create_task(self._identity(record))
        link = asyncio.create_task(self._link(record, allocation, netns_fd, undo))
        subject = asyncio.create_task(self._subject(record, identity, undo))
        # Nobody can have sent to the address yet, so it does no harm that others learn of it a little early;
        # nor does the pod wait for it: what it sends carries its identity, and what it is sent takes the way
        # to its node.
        publication = asyncio.create_task(self._published(record, allocation, identity, undo))
        try:
            record = await self._realization(record, allocation, identity, link, subject, undo)
        except BaseException:
            # Nothing may still be under way when it is undone.
            await asyncio.gather(publication, return_exceptions=True)
            raise
        self._registry.sync_soon(record.id)
        self._registry.set_status(record.id, state=State.READY, policy_revision=_revision(subject.result()))
        self._uses.made(record.id, epoch)
        announcement = asyncio.create_task(self._announced(record, publication))
        self._announcements.add(announcement)
        announcement.add_done_callback(self._announcements.discard)
        return record

    async def _allocate(self, spec: EndpointSpec) -> Allocation:
        allocation = await self._addresses.allocate(spec)
        if self._cover is not None:
            await self._cover(allocation.addresses)
        return allocation

    async def _identity(self, record: EndpointRecord) -> ResolvedIdentity:
        # What an endpoint of this node has, the service has not taken back, and as long as its label filter
        # is the same it is what these labels resolve to; when it is away, a new pod waits.
        if self._ipcache.state.connected and self._uses.settled:
            known = self._registry.identity_of(record.spec.labels)
            if known is not None:
                self._uses.resolved(known[0])
                return ResolvedIdentity(*known)
        found = await self._identities.resolve(record.spec.labels)
        self._uses.resolved(found.id)
        return found

    async def _announced(self, record: EndpointRecord, publication: Awaitable[int]) -> None:
        """Notes that the cluster knows of a new endpoint, or that it has to be told all again."""
        try:
            revision = await publication
        except FimbriaError as problem:
            _log.warning(
                "publication.postponed", endpoint=record.id, reason=problem.reason, error=problem.message
            )
            told = f"it is not published: {problem}"
            self._registry.set_status(record.id, state=State.DEGRADED, last_error=told)
            self._publication.outdated.set()
        else:
            self._registry.set_status(record.id, ipcache_revision=revision)
        finally:
            self._publication.stored(record.id)

    async def _realization(
        self,
        record: EndpointRecord,
        allocation: Awaitable[Allocation],
        identity: Awaitable[ResolvedIdentity],
        link: Awaitable[EndpointLink],
        subject: Awaitable[Subject],
        undo: Undo,
    ) -> EndpointRecord:
        address, number, pair, policy = await _all(allocation, identity, link, subject)
        record = replace(
            _addressed(record, address, number),
            phase=Phase.READY,
            subject=policy.number,
            ifindex=pair.ifindex,
            host_mac=pair.host_mac,
            pod_mac=pair.pod_mac,
            mtu=pair.mtu,
            default_routes=pair.default_routes,
        )
        await self._realize(record, policy, undo)
        failpoints.passed("add.realized")
        self._registry.save(record)
        return record

    async def _link(
        self, record: EndpointRecord, allocation: Awaitable[Allocation], netns_fd: int | None, undo: Undo
    ) -> EndpointLink:
        async def delete() -> None:
            await self._links.delete_endpoint_link(record.spec.host_device)

        undo.add("link", delete)
        with span(names.ENDPOINT_LINK):
            # The devices are there by the time that the address is.
            address, _ = await _all(allocation, self._links.prepare_endpoint_link(record, netns_fd))
            made = await self._links.create_endpoint_link(_with_addresses(record, address), netns_fd)
        failpoints.passed("add.linked")
        return made

    async def _subject(
        self, record: EndpointRecord, identity: Awaitable[ResolvedIdentity], undo: Undo
    ) -> Subject:
        number = await identity
        known = number.revision <= self._policy.identity_revision.value
        key = SubjectKey(number.id, record.spec.named_ports)
        subject = await self._policy.subscribe(key, number.revision, record.id)

        async def unsubscribe() -> None:
            self._policy.release(subject, record.id)

        undo.add("subject", unsubscribe)
        if not known:
            # A pod's first packets must not be dropped by nodes that have not heard of its identity.
            await self._barrier.wait(number.revision, _BARRIER_SECONDS)
        return subject

    async def _published(
        self,
        record: EndpointRecord,
        allocation: Awaitable[Allocation],
        identity: Awaitable[ResolvedIdentity],
        undo: Undo,
    ) -> int:
        address, number = await _all(allocation, identity)

        async def withdraw() -> None:
            self._releases.add(record.spec.owner, _with_addresses(record, address).prefixes)

        undo.add("publication", withdraw)
        revision = await self._publication.publish(_addressed(record, address, number))
        failpoints.passed("add.published")
        return revision

    async def _realize(self, record: EndpointRecord, subject: Subject, undo: Undo) -> None:
        async def detach() -> None:
            await self._links.delete_endpoint_link(record.spec.host_device)
            self._kernel.detach(record.ifindex, record.ipv4, record.ipv6)
            self._ipcache.remove_local(record.addresses)

        undo.add("datapath", detach)
        history = self._registry.histories
        with history.recorded(
            (record.id,), Level.RELOAD, (Cause.CREATED,), identity=record.identity
        ) as current:
            with regenerating("reload", "policy"):
                self._policy.realize(subject)
            current.set_attribute(names.POLICY_REVISION, _revision(subject))
            with regenerating("reload", "attach"), span(names.BPF_ATTACH):
                self._kernel.attach(record)
            with regenerating("reload", "ipcache"):
                self._ipcache.put_local(record.addresses, record.identity, record.identity_revision)
            if self._ipcache.waiting(record.addresses):
                known = await self._policy.identity_revision.wait(record.identity_revision, _BARRIER_SECONDS)
                if not known:
                    _log.warning(
                        "endpoint.identity_not_known_yet", endpoint=record.id, identity=record.identity
                    )
            await self._links.open_endpoint_link(record)
            with span(names.ENDPOINT_REALIZED):
                pass


def _revision(subject: Subject) -> int:
    return subject.realized.revision if subject.realized is not None else 0


def _addressed(record: EndpointRecord, address: Allocation, identity: ResolvedIdentity) -> EndpointRecord:
    return replace(
        _with_addresses(record, address), identity=identity.id, identity_revision=identity.revision
    )


def _with_addresses(record: EndpointRecord, address: Allocation) -> EndpointRecord:
    return replace(
        record,
        ipv4=address.ipv4,
        router_ipv4=address.router_ipv4,
        ipv6=address.ipv6,
        router_ipv6=address.router_ipv6,
        allocated_ns=address.created_ns,
    )


async def _all(*pending: Awaitable[Any]) -> list[Any]:
    """The results of all; when some fail, the first one's error, after all have ended: nothing may still be
    under way when it is undone.
    """
    results = await asyncio.gather(*pending, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    # A refusal tells more than that a service was away.
    failures.sort(
        key=lambda failure: not isinstance(failure, FimbriaError) or failure.retry_after is not None
    )
    if failures:
        raise failures[0]
    return results
