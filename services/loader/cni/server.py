"""The loader's CNI socket: takes calls from the plugin, has them done, answers.

Calls for different attachments run at the same time; calls for the same one run one after the other, a DEL
that waits in the queue always before an ADD that came later. An ADD whose plugin is gone by the time it is
done is undone, because nobody will ever know that it succeeded. A DEL that cannot be done now because a
service is down goes into the queue and succeeds: a runtime must always be able to get rid of a pod.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from services.chassis.errors import FailedPrecondition, FimbriaError, NotFound
from services.chassis.logs import get_logger
from services.loader.cni import wire
from services.loader.cni.delete_queue import DeleteQueue, QueuedDelete
from services.loader.cni.errors import CniCode, CniError, cni_error, retryable
from services.loader.cni.request import AddRequest, CniRequest, GcRequest, decode, parse_request
from services.loader.cni.result import CniResult, prev_result_problems

_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_CLONE_NEWNET = 0x40000000
_REQUEST_SECONDS = 10.0
_BACKLOG = 256

_log = get_logger(__name__)


class CniHandler(Protocol):
    """Does what a runtime asks. Raises FimbriaError (or CniError, to choose the code itself)."""

    async def add(self, request: AddRequest) -> CniResult:
        """Makes the attachment, or returns the one that is there. A failure leaves nothing of it behind."""

    async def delete(self, request: CniRequest) -> None:
        """Removes the attachment and all that belongs to it; one that is not there is a success."""

    async def check(self, request: CniRequest) -> CniResult:
        """Compares the attachment with the kernel and returns it as an ADD would now.

        Raises NotFound when there is none, CniError CHECK_FAILED when the kernel's state is another.
        """

    async def status(self) -> None:
        """Returns when an ADD could be served now. Raises FimbriaError, or CniError LIMITED_CONNECTIVITY."""

    async def attachments(self, network: str) -> list[tuple[str, str]]:
        """Container and interface of all that a network has here."""


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What became of the waiting DELs: how many were done, and how many stay for the next time."""

    done: int
    waiting: int


class CniServer:
    """Serves the plugin at ``socket_path`` (0600); ``queue_dir`` defaults to ``deletes`` beside it."""

    def __init__(self, handler: CniHandler, *, socket_path: str, queue_dir: str = "") -> None:
        self._handler = handler
        self._path = Path(socket_path)
        self._queue = DeleteQueue(queue_dir or self._path.parent / "deletes")
        self._listener: socket.socket | None = None
        self._inode = (0, 0)
        self._accepting: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}
        # When the plugin of each attachment's ADD started (CLOCK_BOOTTIME).
        self._added: dict[tuple[str, str], int] = {}

    async def start(self) -> None:
        """Begins to serve. Raises FailedPrecondition (CNI_SOCKET_BUSY, CNI_SOCKET_UNUSABLE)."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._queue.create()
            self._listener = self._bind()
        except OSError as exc:
            raise FailedPrecondition(
                f"cannot serve the CNI plugin at {self._path}: {exc.strerror or exc}",
                reason="CNI_SOCKET_UNUSABLE",
                metadata={"socket": str(self._path)},
            ) from exc
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def close(self, grace: float = 5.0) -> None:
        """Stops serving; calls that are under way get ``grace`` seconds to end."""
        if self._accepting is not None:
            self._accepting.cancel()
            with suppress(asyncio.CancelledError):
                await self._accepting
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            # Another loader may already serve under the same name.
            with suppress(OSError):
                if _inode(self._path) == self._inode:
                    self._path.unlink()
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=grace)
            for call in late:
                call.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def drain_queue(self) -> DrainReport:
        """Does the DELs that wait; call it at start and from time to time. One that fails stays, no error."""
        done = waiting = 0
        for queued in self._queue.waiting():
            async with self._exclusive(queued.request.key):
                # It may have been done, or replaced by a newer one, while this call waited for its turn.
                current = self._queue.find(*queued.request.key)
                if current is None:
                    continue
                if await self._delete_queued(current):
                    done += 1
                else:
                    waiting += 1
        return DrainReport(done, waiting)

    # -- the socket

    def _bind(self) -> socket.socket:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with probe:
            try:
                probe.connect(str(self._path))
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            else:
                raise FailedPrecondition(
                    f"another loader serves the CNI socket {self._path}",
                    reason="CNI_SOCKET_BUSY",
                    metadata={"socket": str(self._path)},
                )
        # Bound under another name and renamed when it is ready, so that it is never open to others and never
        # missing: a plugin finds either the old socket or this one.
        temporary = self._path.with_name(f".cni-{os.getpid()}")
        temporary.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(str(temporary))
            os.chmod(temporary, 0o600)
            listener.listen(_BACKLOG)
            self._inode = _inode(temporary)
            temporary.rename(self._path)
        except BaseException:
            listener.close()
            temporary.unlink(missing_ok=True)
            raise
        return listener

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as exc:
                # Out of descriptors, most likely: those that are served now will give some back.
                _log.error("cni.accept_failed", error=str(exc))
                await asyncio.sleep(0.1)
                continue
            call = asyncio.create_task(self._serve(connection))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _serve(self, connection: socket.socket) -> None:
        fds: list[int] = []
        with connection:
            connection.setblocking(False)
            try:
                uid = wire.peer_uid(connection)
                if uid not in (0, os.geteuid()):
                    _log.warning("cni.peer_refused", uid=uid)
                    return
                try:
                    async with asyncio.timeout(_REQUEST_SECONDS):
                        payload, fds = await wire.read_request(connection)
                except CniError as exc:
                    await _send(connection, wire.Kind.ERROR, exc.render(""))
                    return
                await self._call(connection, payload, fds)
            except (wire.ConnectionLost, TimeoutError) as exc:
                _log.warning("cni.connection_lost", error=str(exc) or "no request in time")
            except asyncio.CancelledError:
                # A thread of the handler may still use the namespace's descriptor; its number must not be
                # given to something else. The process is about to end and closes it then.
                fds.clear()
                raise
            finally:
                wire.close_all(fds)

    # -- one call

    async def _call(self, connection: socket.socket, payload: bytes, fds: list[int]) -> None:
        gone = asyncio.create_task(wire.hung_up(connection))
        version, command = "", ""
        try:
            try:
                envelope = decode(payload)
                version, command = envelope.version, envelope.command
                request = parse_request(envelope, fds[0] if fds else None)
                _check_netns(request)
                kind, body = wire.Kind.RESULT, await self._answer(request, payload, gone)
            except CniError as exc:
                kind, body = wire.Kind.ERROR, exc.render(version)
                _log.warning("cni.call_failed", command=command, code=int(exc.code), error=exc.msg)
            except FimbriaError as exc:
                kind, body = wire.Kind.ERROR, cni_error(exc, command).render(version)
                _log.warning("cni.call_failed", command=command, reason=exc.reason, error=exc.message)
            except wire.ConnectionLost:
                raise
            except Exception as exc:
                _log.exception("cni.call_broke", command=command)
                error = CniError(CniCode.INTERNAL, f"internal error in the loader: {type(exc).__name__}")
                kind, body = wire.Kind.ERROR, error.render(version)
        finally:
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone
        await _send(connection, kind, body)

    async def _answer(self, request: CniRequest, payload: bytes, gone: asyncio.Task[None]) -> bytes:
        if request.command == "STATUS":
            return await self._status()
        if isinstance(request, GcRequest):
            return await self._collect(request)
        async with self._exclusive(request.key):
            if isinstance(request, AddRequest):
                return await self._add(request, gone)
            if request.command == "CHECK":
                return await self._check(request)
            return await self._delete(request, payload)

    async def _add(self, request: AddRequest, gone: asyncio.Task[None]) -> bytes:
        owed = self._queue.find(*request.key)
        if owed is not None and not await self._delete_queued(owed):
            raise CniError(CniCode.TRY_AGAIN_LATER, "an earlier DEL of this container is still to be done")
        if gone.done():
            raise wire.ConnectionLost("the plugin gave up before its turn came")
        result = await self._handler.add(request)
        # One that only repeated an ADD which was answered leaves the attachment to that.
        if gone.done() and request.key not in self._added:
            await self._undo(request)
            raise wire.ConnectionLost("the plugin gave up; the ADD was undone")
        self._added[request.key] = request.started_boot_ns
        return result.render(request.version, request.prev)

    async def _status(self) -> bytes:
        try:
            await self._handler.status()
        except FimbriaError as exc:
            told = cni_error(exc, "STATUS")
            raise CniError(CniCode.NOT_AVAILABLE, told.msg, told.details) from exc
        return b""

    async def _collect(self, request: GcRequest) -> bytes:
        await self.drain_queue()
        stale = [key for key in await self._handler.attachments(request.network) if key not in request.valid]
        outcomes = await asyncio.gather(*(self._collect_one(key, request) for key in stale))
        problems = [outcome for outcome in outcomes if outcome]
        problems += [
            f"{'/'.join(waiting.request.key)}: its DEL still waits"
            for waiting in self._queue.waiting()
            if waiting.request.network == request.network and waiting.request.key not in request.valid
        ]
        if problems:
            raise CniError(
                CniCode.TRY_AGAIN_LATER,
                f"{len(problems)} attachments of {request.network} could not be removed; {problems[0]}",
                "; ".join(problems),
            )
        return b""

    async def _collect_one(self, key: tuple[str, str], request: GcRequest) -> str:
        """Removes what the runtime knows nothing of; what went wrong, or nothing."""
        container_id, ifname = key
        fields = {name: getattr(request, name) for name in CniRequest.__slots__}
        fields |= {"command": "DEL", "container_id": container_id, "ifname": ifname, "netns_fd": None}
        async with self._exclusive(key):
            try:
                await self._delete_now(CniRequest(**fields))
            except Exception as exc:
                _log.warning("cni.gc_failed", container_id=container_id, ifname=ifname, error=str(exc))
                return f"{container_id}/{ifname}: {exc}"
        _log.info("cni.gc_removed", container_id=container_id, ifname=ifname)
        return ""

    async def _check(self, request: CniRequest) -> bytes:
        if request.version == "0.3.1":
            raise CniError(
                CniCode.INCOMPATIBLE_VERSION, "cniVersion 0.3.1 has no CHECK", "expected 0.4.0 or later"
            )
        prev: Any = request.config.get("prevResult")
        if not isinstance(prev, dict):
            raise CniError(
                CniCode.INVALID_CONFIG, f"network configuration: prevResult: got {prev!r}; expected an object"
            )
        problems = prev_result_problems(prev, await self._handler.check(request))
        if problems:
            raise CniError(CniCode.CHECK_FAILED, problems[0], "; ".join(problems))
        return b""

    async def _delete(self, request: CniRequest, payload: bytes) -> bytes:
        try:
            await self._delete_now(request)
        except FimbriaError as exc:
            if not retryable(exc):
                raise
            self._keep(request, payload, exc)
            return b""
        self._queue.forget(*request.key)
        return b""

    async def _delete_now(self, request: CniRequest) -> None:
        if 0 < request.started_boot_ns < self._added.get(request.key, 0):
            # Held up on its way, in the queue most likely: what is there now came after it.
            _log.warning("cni.del_outdated", container_id=request.container_id, ifname=request.ifname)
            return
        with suppress(NotFound):
            await self._handler.delete(request)
        self._added.pop(request.key, None)

    async def _delete_queued(self, queued: QueuedDelete) -> bool:
        request = queued.request
        try:
            await self._delete_now(request)
        except Exception as exc:
            _log.warning(
                "cni.queue.still_waiting",
                container_id=request.container_id,
                ifname=request.ifname,
                error=str(exc) or type(exc).__name__,
            )
            return False
        self._queue.done(queued)
        _log.info("cni.queue.done", container_id=request.container_id, ifname=request.ifname)
        return True

    async def _undo(self, request: AddRequest) -> None:
        fields = {name: getattr(request, name) for name in CniRequest.__slots__}
        now = {"started_ns": time.time_ns(), "started_boot_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME)}
        deletion = CniRequest(**{**fields, **now, "command": "DEL"})
        try:
            await self._delete_now(deletion)
        except FimbriaError as exc:
            # The runtime's own DEL follows a failed ADD in any case; this only made it sooner.
            _log.warning("cni.undo_failed", container_id=request.container_id, error=exc.message)

    def _keep(self, request: CniRequest, payload: bytes, cause: FimbriaError) -> None:
        try:
            self._queue.put(*request.key, payload)
        except OSError as exc:
            raise CniError(
                CniCode.IO_FAILURE,
                f"{cause.message}, and the DEL cannot be kept for later in {self._queue.directory}",
                str(exc),
            ) from exc
        _log.warning("cni.queue.kept", container_id=request.container_id, cause=cause.message)

    @asynccontextmanager
    async def _exclusive(self, key: tuple[str, str]) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)


async def _send(connection: socket.socket, kind: wire.Kind, body: bytes) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        await loop.sock_sendall(connection, wire.frame(kind, body))


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _check_netns(request: CniRequest) -> None:
    """The descriptor must be a network namespace, and not the node's own."""
    if request.netns_fd is None or request.command not in ("ADD", "CHECK"):
        return
    status, own = os.fstat(request.netns_fd), os.stat("/proc/self/ns/net")
    try:
        is_netns = fcntl.ioctl(request.netns_fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        is_netns = False
    if not is_netns:
        problem = "is not a network namespace"
    elif (status.st_dev, status.st_ino) == (own.st_dev, own.st_ino):
        problem = "is the node's own network namespace"
    else:
        return
    raise CniError(CniCode.INVALID_ENVIRONMENT, f"CNI_NETNS {request.netns_path!r} {problem}")
