"""The loader process: a node that is in service, or on its way there."""

from __future__ import annotations

import asyncio
import contextvars
import fcntl
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from services.chassis.errors import FailedPrecondition, FimbriaError, InvalidArgument, Unavailable
from services.chassis.logs import get_logger
from services.loader.clients import IpamClient, passes, ready
from services.loader.cni.errors import CniCode, CniError
from services.loader.cni.request import AddRequest, CniRequest
from services.loader.cni.result import CniResult
from services.loader.endpoints.records import NodeRecord, StateDirectory
from services.loader.node import Channels, NodeRuntime, bring_up
from services.loader.settings import LoaderSettings
from services.loader.streams.backoff import Backoff

_log = get_logger(__name__)

# What the mode that IPAM runs in makes of the setting.
_MODE_MISMATCH: Final = {
    "POD_CIDRS_MISSING": "ipam runs in mode kubernetes and expects the node's pod CIDRs, comma separated",
    "POD_CIDRS_UNEXPECTED": "ipam does not run in mode kubernetes and expects none",
}


class Loader:
    """Holds the node; ``ready`` is called when it is registered, restored and synchronized.

    Also the :class:`~services.loader.cni.server.CniHandler`: before the node is there, every call is asked to
    come again.
    """

    def __init__(
        self,
        settings: LoaderSettings,
        channels: Channels,
        background: Callable[[Coroutine[Any, Any, Any], str], object],
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._channels = channels
        self._background = background
        self._ready = ready
        self._ipv4 = settings.underlay_ipv4()
        self._ipv6 = settings.underlay_ipv6()
        self._state = StateDirectory(Path(settings.state_dir))
        self._ipam = IpamClient(channels.ipam, settings.node_name, settings.ipam_target)
        self._runtime: NodeRuntime | None = None
        self._problem = "it has not been registered yet"

    @property
    def settings(self) -> LoaderSettings:
        """What the process was told."""
        return self._settings

    def node(self) -> NodeRuntime:
        """The running node. Raises Unavailable (NODE_NOT_READY)."""
        if self._runtime is None:
            raise Unavailable(
                f"node {self._settings.node_name} is not ready: {self._problem}",
                reason="NODE_NOT_READY",
                metadata={"node": self._settings.node_name},
                retry_after=1.0,
            )
        return self._runtime

    def running(self) -> NodeRuntime | None:
        """The running node, or None while there is none yet."""
        return self._runtime

    async def start(self) -> None:
        """Puts the node into service. When IPAM is away, a node that was registered before starts with what
        it has; a new one goes on trying in the background. Raises FimbriaError for what trying again does
        not mend.
        """
        known = self._state.load_node()
        if known is not None and not self._settings.node_ipv6:
            # Found at each start: that there is another now, or none yet, keeps nobody from starting.
            known = replace(known, ipv6=self._ipv6)
        if known is not None and not self._fits(known):
            known = None
        try:
            record = await self._register(0 if known else self._settings.start_seconds)
        except FimbriaError as problem:
            if not passes(problem):
                raise
            self._problem = problem.message
            if known is None:
                _log.warning("node.not_registered", error=problem.message)
                self._background(self._start_later(), "registration")
                return
            _log.warning("node.started_without_ipam", error=problem.message)
            await self._bring_up(known)
            self._background(self._confirm(known), "registration")
        else:
            await self._bring_up(record)

    async def close(self) -> None:
        """Lets go of the node; it forwards on."""
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            self._problem = "it is being stopped"
            await runtime.close()

    # -- CniHandler

    async def add(self, request: AddRequest) -> CniResult:
        """See :meth:`CniCalls.add`."""
        return await self.node().cni.add(request)

    async def delete(self, request: CniRequest) -> None:
        """See :meth:`CniCalls.delete`."""
        await self.node().cni.delete(request)

    async def check(self, request: CniRequest) -> CniResult:
        """See :meth:`CniCalls.check`."""
        return await self.node().cni.check(request)

    async def status(self) -> None:
        """Returns when an ADD could be served. Raises Unavailable, or CniError (LIMITED_CONNECTIVITY) when
        there are endpoints besides that are not as they should be.
        """
        cni = self.node().cni
        try:
            await asyncio.gather(
                ready(self._channels.ipam, self._settings.ipam_target),
                ready(self._channels.identity, self._settings.identity_target),
                ready(self._channels.policy, self._settings.policy_target),
            )
        except FimbriaError as problem:
            if cni.limited():
                raise CniError(CniCode.LIMITED_CONNECTIVITY, problem.message, problem.reason) from problem
            raise

    async def attachments(self, network: str) -> list[tuple[str, str]]:
        """See :meth:`CniCalls.attachments`."""
        return self.node().cni.attachments(network)

    # -- registration

    def _fits(self, known: NodeRecord) -> bool:
        """Whether a record of before is of what the settings ask for."""
        settings = self._settings
        if (known.name, known.ipv4, known.ipv6) != (settings.node_name, self._ipv4, self._ipv6):
            return False
        if settings.pod_cidrs:
            # Given from outside: the pool has a name of IPAM's own.
            return set(known.pod_cidrs) == set(settings.pod_cidrs)
        return known.pool == settings.pool

    async def _register(self, seconds: float) -> NodeRecord:
        """Registers the node, trying for so many seconds while IPAM is away."""
        backoff = Backoff(most=1.0)
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            try:
                record = await self._register_once()
                self._state.save_node(record)
                return record
            except FimbriaError as problem:
                if not passes(problem):
                    raise
                wait = backoff.next()
                if asyncio.get_running_loop().time() + wait > deadline:
                    raise
                await asyncio.sleep(wait)

    async def _register_once(self) -> NodeRecord:
        cidrs = self._settings.pod_cidrs
        try:
            pool = "" if cidrs else self._settings.pool
            return await self._ipam.register(self._ipv4, self._ipv6, pool, cidrs)
        except InvalidArgument as problem:
            told = _MODE_MISMATCH.get(problem.reason)
            if told is None:
                raise
            raise InvalidArgument(
                f"FIMBRIA_POD_CIDR is {','.join(cidrs)!r}; {told} ({problem.message})",
                reason=problem.reason,
                metadata={**problem.metadata, "variable": "FIMBRIA_POD_CIDR"},
            ) from problem

    async def _start_later(self) -> None:
        backoff = Backoff(most=10.0)
        while True:
            try:
                await self._bring_up(await self._register(0))
                return
            except FimbriaError as problem:
                if problem.message != self._problem:
                    _log.error("node.not_ready", reason=problem.reason, error=problem.message)
                self._problem = problem.message
                await asyncio.sleep(backoff.next())

    async def _confirm(self, known: NodeRecord) -> None:
        """Registers a node that started without, and follows what IPAM says then."""
        backoff = Backoff(most=10.0)
        while True:
            try:
                record = await self._register(0)
            except FimbriaError:
                await asyncio.sleep(backoff.next())
                continue
            if record != known and self._runtime is not None:
                self._runtime.adopt(record)
            return

    async def _bring_up(self, record: NodeRecord) -> None:
        runtime = await bring_up(self._settings, record, self._state, self._channels)
        self._runtime = runtime
        for name, work in runtime.background():
            # Outside of the span and the call that led here: these go on for as long as the process does.
            contextvars.Context().run(self._background, work, name)
        contextvars.Context().run(self._background, self._tell_ready(runtime), "readiness")

    async def _tell_ready(self, runtime: NodeRuntime) -> None:
        await runtime.wait_synchronized()
        _log.info("node.synchronized", seconds=round(time.time() - runtime.start_time, 3))
        self._ready()


class StateLock:
    """Keeps a second loader from using the same state directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise FailedPrecondition(
                f"another loader uses the state directory {directory}; stop it or set FIMBRIA_STATE_DIR",
                reason="STATE_DIRECTORY_BUSY",
                metadata={"state_dir": str(directory)},
            ) from None

    def release(self) -> None:
        """Lets others use the directory."""
        os.close(self._descriptor)
