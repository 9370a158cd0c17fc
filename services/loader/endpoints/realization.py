"""An endpoint's kernel state as its record says: policy, rows, programs, ipcache."""

from __future__ import annotations

from typing import Any

from services.chassis import names
from services.chassis.telemetry import span
from services.loader.endpoints.endpoint import EndpointRecord, Phase
from services.loader.endpoints.health import DATAPATH, POLICY, EndpointHealth
from services.loader.endpoints.regeneration import Level
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.interfaces import Datapath, DatapathError
from services.loader.ipcache.sync import IpcacheSync
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

    def realize(
        self, record: EndpointRecord, subject: Subject, level: Level, *, rewrite: bool = False
    ) -> None:
        """Policy first, then the endpoint that is under it. With ``rewrite`` the policy is compared with
        the kernel.

        Raises DatapathError.
        """
        attributes: dict[str, Any] = {
            names.ENDPOINT_ID: record.id,
            names.IDENTITY: record.identity,
            names.REGENERATION_LEVEL: level.name.lower(),
        }
        with span(names.ENDPOINT_REGENERATE, **attributes):
            self._policy.realize(subject, rewrite=rewrite)
            with span(names.BPF_ATTACH):
                self._kernel.attach(record)
            self._ipcache.put_local(record.addresses, record.identity, record.identity_revision)
            with span(names.ENDPOINT_REALIZED):
                pass

    def regenerate(self, number: int, level: Level) -> bool:
        """Writes an endpoint's kernel state anew; one that is gone is passed over. Raises DatapathError.

        Returns whether the other endpoints have to be attached anew, because the programs are others now.
        """
        endpoint = self._registry.find(number)
        if endpoint is None or endpoint.record.phase is not Phase.READY:
            return False
        subject = self._subjects.get(endpoint.record.subject)
        if subject is None:
            raise DatapathError(f"endpoint {number} has no subject {endpoint.record.subject}")
        if level is Level.REBUILD:
            self._kernel.rebuild()
        self.realize(endpoint.record, subject, level, rewrite=True)
        self._health.mended(number, DATAPATH)
        return level is Level.REBUILD

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
