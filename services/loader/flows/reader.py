"""Reads the datapath's reports in the event loop, without letting a flood of them take it over."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from services.chassis.logs import get_logger
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.flows.log import FlowLog, FlowNames
from services.loader.interfaces import Datapath
from services.loader.ipcache.sync import IpcacheSync
from services.loader.policy.entries import INGRESS
from services.loader.policy.subjects import HOST_USER, SubjectTable
from services.loader.policy.sync import PolicySync

# Reports that come within this time are taken together.
_PAUSE_SECONDS: Final = 0.005
_LOST_CHECK_SECONDS: Final = 1.0

_log = get_logger(__name__)


class FlowReader:
    """Moves reports from the ring buffer to the flow log.

    After each batch it rests for as long as the batch took: whatever the datapath has to say, half of the
    loop's time is left for other things, and what does not fit into the ring buffer meanwhile is counted as
    lost.
    """

    def __init__(self, kernel: Datapath, log: FlowLog) -> None:
        self._kernel = kernel
        self._log = log
        self._source = kernel.open_events(log.report)
        self._loop = asyncio.get_running_loop()
        self._lost = kernel.lost_events()
        self._checked = time.monotonic()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._source.fileno(), self._readable)

    def close(self) -> None:
        """Stops reading."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._source.fileno())
        self._source.close()

    def _readable(self) -> None:
        started = time.monotonic()
        try:
            self._source.consume()
        except Exception:
            # Reports tell of the datapath; they must not stop what drives it.
            _log.exception("flows.read_failed")
        ended = time.monotonic()
        if ended - self._checked >= _LOST_CHECK_SECONDS:
            self._checked = ended
            lost = self._kernel.lost_events()
            if lost > self._lost:
                self._log.lose(lost - self._lost)
            self._lost = lost
        self._loop.remove_reader(self._source.fileno())
        self._pause = self._loop.call_later(max(_PAUSE_SECONDS, ended - started), self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._source.fileno(), self._readable)


class NodeNames(FlowNames):
    """Names as this node knows them."""

    def __init__(
        self, registry: EndpointRegistry, ipcache: IpcacheSync, policy: PolicySync, subjects: SubjectTable
    ) -> None:
        self._registry = registry
        self._ipcache = ipcache
        self._policy = policy
        self._subjects = subjects

    def pod(self, ip: str) -> str:
        """ "namespace/name" of the pod that has an address, or empty."""
        endpoint = self._registry.by_ipv4(ip)
        return endpoint.record.spec.pod if endpoint is not None else self._ipcache.owner(ip)

    def rule(self, cookie: int) -> str:
        """A rule, for people, or empty."""
        return self._policy.rules.get(cookie, "")

    def default_deny(self, endpoint_id: int, direction: int) -> tuple[str, ...]:
        """The policies that make an endpoint default to deny."""
        endpoint = self._registry.find(endpoint_id)
        subject = self._subjects.get(endpoint.record.subject) if endpoint is not None else None
        if endpoint_id == HOST_USER:
            subject = self._subjects.of_host()
        if subject is None or subject.wanted is None:
            return ()
        default = subject.wanted.ingress if direction == INGRESS else subject.wanted.egress
        return default.enforced_by
