"""Reads the datapath's reports in the event loop, without letting a flood of them take it over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from services.chassis.logs import get_logger
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.flows.log import FlowLog, FlowNames
from services.loader.interfaces import Datapath
from services.loader.ipcache.sync import IpcacheSync
from services.loader.policy.entries import INGRESS
from services.loader.policy.subjects import HOST_USER, SubjectTable
from services.loader.policy.sync import PolicySync

# A turn is over after so many reports, which takes about two milliseconds...
_TURN_REPORTS: Final = 128
# ...and is followed by a rest of so many times what it took: a flood has a fifth of the loop's time.
_REST_FACTOR: Final = 4
# Reports that come within this time are taken together.
_PAUSE_SECONDS: Final = 0.005
# The kernel wakes the reader for the first report in a while only: the others are there to be found.
_LOOK_SECONDS: Final = 0.05
_LOST_CHECK_SECONDS: Final = 1.0

_log = get_logger(__name__)


class FlowReader:
    """Moves reports from the ring buffer to the flow log, in short turns with rests in between.

    What does not fit into the ring buffer during a rest is counted as lost, and told about once a second.
    """

    def __init__(self, kernel: Datapath, log: FlowLog) -> None:
        self._kernel = kernel
        self._log = log
        self._source = kernel.open_events(log.report)
        self._loop = asyncio.get_running_loop()
        self._lost = kernel.lost_events()
        self._checked = time.monotonic()
        self._outdated = True
        self._resting = False
        self._tracing = 0
        self._closed = False
        self._listen()

    def close(self) -> None:
        """Stops reading; again is fine."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._loop.remove_reader(self._source.fileno())
        self._source.close()

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """While somebody is inside, flows that begin and end are reported too. Raises DatapathError."""
        if not self._tracing:
            self._source.trace(True)
        self._tracing += 1
        try:
            yield
        finally:
            self._tracing -= 1
            # After closing nothing is reported, and must not be again.
            if not self._tracing and not self._closed:
                self._source.trace(False)

    def _listen(self) -> None:
        self._loop.add_reader(self._source.fileno(), self._turn)
        self._timer = self._loop.call_later(_LOOK_SECONDS, self._turn)

    def _turn(self) -> None:
        self._timer.cancel()
        started = time.monotonic()
        try:
            taken = self._source.consume(_TURN_REPORTS)
        except Exception:
            # Reports tell of the datapath; they must not stop what drives it.
            _log.exception("flows.read_failed")
            # The one that it failed on.
            taken = 1
        # What is lost found no room, so that there was something to read as well.
        self._outdated = self._outdated or taken > 0
        ended = time.monotonic()
        if self._outdated and ended - self._checked >= _LOST_CHECK_SECONDS:
            self._checked, self._outdated = ended, False
            self._tell_lost()
        if not taken and not self._resting:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._turn)
            return
        self._loop.remove_reader(self._source.fileno())
        rest = max(_PAUSE_SECONDS, (ended - started) * _REST_FACTOR)
        self._resting = taken == _TURN_REPORTS
        self._timer = self._loop.call_later(rest, self._turn if self._resting else self._listen)

    def _tell_lost(self) -> None:
        lost = self._kernel.lost_events()
        if lost > self._lost:
            self._log.lose(lost - self._lost)
        self._lost = lost


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
        endpoint = self._registry.by_address(ip)
        return endpoint.record.spec.pod if endpoint is not None else self._ipcache.owner(ip)

    def rule(self, cookie: int) -> str:
        """A rule, for people, or empty."""
        return self._policy.rules.get(cookie, "")

    def default_deny(self, endpoint_id: int, direction: int) -> tuple[str, ...]:
        """The policies that make an endpoint default to deny, or would if they were not in audit mode."""
        endpoint = self._registry.find(endpoint_id)
        subject = self._subjects.get(endpoint.record.subject) if endpoint is not None else None
        if endpoint_id == HOST_USER:
            subject = self._subjects.of_host()
        if subject is None or subject.wanted is None:
            return ()
        default = subject.wanted.ingress if direction == INGRESS else subject.wanted.egress
        # What policies in audit mode alone would deny has passed all others.
        return default.enforced_by if default.enforced else default.audit_enforced_by
