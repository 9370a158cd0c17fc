"""An endpoint's kernel state as its record says: policy, rows, programs, ipcache."""

from __future__ import annotations

import asyncio

from services.chassis import names
from services.chassis.telemetry import span
from services.loader.endpoints.endpoint import EndpointRecord, Phase
from services.loader.endpoints.engine import Programs
from services.loader.endpoints.health import DATAPATH, POLICY, EndpointHealth
from services.loader.endpoints.regeneration import Job, Level
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.interfaces import Datapath, DatapathError
from services.loader.ipcache.sync import IpcacheSync
from services.loader.measure_points import regenerating
from services.loader.policy.subjects import Subject, SubjectTable
from services.loader.policy.sync import PolicySync


class EndpointRealizer:
    """Writes the kernel state of endpoints that exist."""

    def __init__(
        self,
        *,
        registry: EndpointRegistry,
        subjects: SubjectTable,
        kernel: Datapath,
        policy: PolicySync,
        ipcache: IpcacheSync,
        health: EndpointHealth,
    ) -> None:
        self._registry = registry
        self._subjects = subjects
        self._kernel = kernel
        self._policy = policy
        self._ipcache = ipcache
        self._health = health
        # One endpoint's writes in each turn of the event loop, however many workers there are.
        self._turn = asyncio.Lock()

    def write_policy(self, subject: Subject, level: Level) -> None:
        """Puts a subject's policy into force, before the endpoints that come under it. Raises
        DatapathError.
        """
        with regenerating(level.name.lower(), "policy"):
            self._policy.realize(subject)

    def write_endpoint(self, record: EndpointRecord, level: Level) -> None:
        """The endpoint's rows, at levels above POLICY its programs too, and what its addresses mean here.
        Raises DatapathError.
        """
        with regenerating(level.name.lower(), "attach"), span(names.BPF_ATTACH):
            if level > Level.POLICY:
                self._kernel.attach(record)
            else:
                self._kernel.update(record)
        with regenerating(level.name.lower(), "ipcache"):
            self._ipcache.put_local(record.addresses, record.identity, record.identity_revision)
        with span(names.ENDPOINT_REALIZED):
            pass

    async def regenerate(self, job: Job, programs: Programs) -> None:
        """Compares the endpoint's policy with the kernel itself and writes the rest anew; an endpoint that is
        gone is passed over. Raises DatapathError. The caller sees to it that nothing else happens to it.
        """
        endpoint = self._registry.find(job.endpoint)
        if endpoint is None or endpoint.record.phase is not Phase.READY:
            return
        record = endpoint.record
        history = self._registry.histories
        with history.recorded((record.id,), job.level, job.causes, identity=record.identity) as current:
            level = await programs()
            subject = self._subjects.get(record.subject)
            if subject is None:
                raise DatapathError(f"endpoint {record.id} has no subject {record.subject}")
            reading = await self._policy.read(subject)
            async with self._turn:
                with regenerating(job.level.name.lower(), "policy"):
                    self._policy.compare(subject, reading)
                self.write_endpoint(record, Level.POLICY if level is Level.REBUILD else level)
                revision = subject.realized.revision if subject.realized is not None else 0
                current.set_attribute(names.POLICY_REVISION, revision)
                await asyncio.sleep(0)
        self._health.mended(record.id, DATAPATH)

    def subject_changed(self, subject: Subject) -> None:
        """A subject has been realized, or has not: its endpoints' status says so."""
        for number in subject.users:
            if subject.error:
                self._health.failed(number, POLICY, subject.error)
            elif subject.realized is not None:
                self._health.mended(number, POLICY, policy_revision=subject.realized.revision)

    def problems(self, record: EndpointRecord) -> list[str]:
        """What of the endpoint is not in the kernel as its record says, in words. Raises DatapathError."""
        row = next((row for row in self._kernel.attached() if row.endpoint_id == record.id), None)
        if row is None:
            return [f"the datapath has no row for endpoint {record.id}"]
        problems = []
        if row.ifindex != record.ifindex or row.addresses != record.addresses:
            shown = " and ".join(row.addresses) or "nothing"
            problems.append(f"the datapath has endpoint {record.id} as {shown} on interface {row.ifindex}")
        if row.identity != record.identity:
            problems.append(f"the datapath has endpoint {record.id} with identity {row.identity}")
        if row.rate != record.rate:
            problems.append(f"the datapath has endpoint {record.id} with a rate of {row.rate} bytes/s")
        if record.subject not in self._kernel.subjects():
            problems.append(f"the datapath has no policy for endpoint {record.id}")
        return problems
