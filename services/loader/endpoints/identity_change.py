"""How an endpoint gets another identity: its policy first, then the endpoint, then the cluster's view of
it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from services.chassis import names
from services.chassis.errors import FimbriaError, Internal
from services.chassis.logs import get_logger
from services.loader import failpoints
from services.loader.endpoints.endpoint import EndpointRecord, State
from services.loader.endpoints.engine import Regenerator
from services.loader.endpoints.health import DATAPATH, PUBLICATION, EndpointHealth
from services.loader.endpoints.identity_use import IdentityUse
from services.loader.endpoints.publication import Publication
from services.loader.endpoints.realization import EndpointRealizer
from services.loader.endpoints.regeneration import Cause, Level
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.interfaces import DatapathError, IdentityBarrier, IdentityClient
from services.loader.policy.subjects import Subject, SubjectKey, SubjectTable
from services.loader.policy.sync import PolicySync

_log = get_logger(__name__)

# How long the change waits for policy maps, here and on other nodes, to know the new identity.
BARRIER_SECONDS: Final = 5.0


class IdentityChange:
    """Moves endpoints from one identity to another. The caller sees to it that nothing else happens to the
    endpoint.
    """

    def __init__(
        self,
        *,
        registry: EndpointRegistry,
        subjects: SubjectTable,
        identities: IdentityClient,
        policy: PolicySync,
        barrier: IdentityBarrier,
        publication: Publication,
        realizer: EndpointRealizer,
        regenerator: Regenerator,
        health: EndpointHealth,
        uses: IdentityUse,
    ) -> None:
        self._uses = uses
        self._registry = registry
        self._subjects = subjects
        self._identities = identities
        self._policy = policy
        self._barrier = barrier
        self._publication = publication
        self._realizer = realizer
        self._regenerator = regenerator
        self._health = health

    async def relabel(self, record: EndpointRecord, labels: tuple[str, ...]) -> None:
        """Gives a ready endpoint the identity of ``labels``; when this returns, it is in force on this
        node.

        Raises FimbriaError. Unless it was the publication that failed, the old identity is then still in
        force.
        """
        self._registry.set_status(record.id, state=State.REGENERATING)
        try:
            moved = await self._switch(record, labels)
        finally:
            self._health.settle(record.id)
        try:
            revision = await self._publication.publish(moved)
        except FimbriaError as problem:
            self._health.failed(record.id, PUBLICATION, f"its identity is not published: {problem}")
            self._publication.outdated.set()
            raise
        finally:
            self._publication.stored(record.id)
        self._health.mended(record.id, PUBLICATION, ipcache_revision=revision)

    async def refresh(self, record: EndpointRecord) -> None:
        """Asks for the identity of the endpoint's labels again, and moves it if that is another one now."""
        found = await self._identities.resolve(record.spec.labels)
        if (found.id, found.revision) != (record.identity, record.identity_revision):
            await self.relabel(record, record.spec.labels)

    async def _switch(self, record: EndpointRecord, labels: tuple[str, ...]) -> EndpointRecord:
        old = self._subjects.get(record.subject)
        epoch = self._uses.epoch
        found = await self._identities.resolve(labels)
        self._uses.resolved(found.id)
        key = SubjectKey(found.id, record.spec.named_ports)
        subject = await self._policy.subscribe(key, found.revision, record.id)
        try:
            # Packets that carry an identity must not be dropped because somebody has not heard of it.
            await self._policy.identity_revision.wait(found.revision, BARRIER_SECONDS)
            await self._barrier.wait(found.revision, BARRIER_SECONDS)
            moved = replace(
                record,
                spec=replace(record.spec, labels=labels),
                identity=found.id,
                identity_revision=found.revision,
                subject=subject.number,
            )
            history = self._registry.histories
            with history.recorded((record.id,), Level.POLICY, (Cause.LABELS,), identity=found.id) as current:
                # In this order: until the record is saved a restart goes back to what was in force before,
                # whose policy is still in the kernel; from then on it goes on to what is in force now.
                self._realizer.write_policy(subject, Level.POLICY)
                failpoints.passed("identity.policy")
                self._realizer.write_endpoint(moved, Level.POLICY)
                failpoints.passed("identity.switched")
                self._registry.save(moved)
                failpoints.passed("identity.saved")
                revision = subject.realized.revision if subject.realized is not None else 0
                current.set_attribute(names.POLICY_REVISION, revision)
        except (DatapathError, OSError) as problem:
            self._leave(subject, old, record.id)
            self._health.failed(record.id, DATAPATH, str(problem))
            self._save_again(record)
            # The kernel may be half on the way: what the record says is written again.
            self._regenerator.submit(record.id, Level.RELOAD, Cause.RETRY)
            raise Internal(str(problem), reason="DATAPATH_FAILED") from problem
        except BaseException:
            self._leave(subject, old, record.id)
            raise
        if old is not None:
            self._leave(old, subject, record.id)
        self._registry.set_status(record.id, policy_revision=revision)
        self._uses.made(record.id, epoch)
        return moved

    def _save_again(self, record: EndpointRecord) -> None:
        """What failed may have been that the disk did not say that it has the new record."""
        try:
            self._registry.save(record)
        except OSError as problem:
            _log.error("endpoint.record_not_saved", endpoint=record.id, error=str(problem))

    def _leave(self, subject: Subject, kept: Subject | None, user: int) -> None:
        if subject is not kept:
            self._policy.release(subject, user)
