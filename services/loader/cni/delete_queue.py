"""DELs that found no loader, as files: one per attachment, written by the plugin, done by the loader later.

A file holds the request exactly as it would have come over the socket, and is named
``CONTAINERID@HEX(IFNAME).json``, so that a later DEL replaces an earlier one and an ADD finds what is still
owed for the same attachment. Files are 0600 in a directory 0700 and appear by rename, whole or not at all. A
file that makes no sense is set aside as ``….bad`` and logged: it stands for a pod that somebody must look at.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from services.chassis.logs import get_logger
from services.loader.cni.errors import CniError
from services.loader.cni.request import CniRequest, decode, parse_request

SUFFIX = ".json"
BAD_SUFFIX = ".bad"
MAX_FILE_BYTES = 2 * 1024 * 1024

_log = get_logger(__name__)


def file_name(container_id: str, ifname: str) -> str:
    """The queue file of an attachment; two attachments never share one."""
    return f"{container_id}@{ifname.encode().hex()}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class QueuedDelete:
    """A DEL that waits; ``payload`` is the request as the plugin wrote it."""

    path: Path
    request: CniRequest
    payload: bytes


class DeleteQueue:
    """The directory of waiting DELs."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    def create(self) -> None:
        """Makes the directory (0700) unless it is there. Raises OSError."""
        self.directory.mkdir(mode=0o700, exist_ok=True)

    def waiting(self) -> list[QueuedDelete]:
        """All that can be done, oldest first. Files that make no sense are set aside on the way."""
        try:
            paths = [path for path in self.directory.iterdir() if path.name.endswith(SUFFIX)]
        except FileNotFoundError:
            return []
        found = [(self._mtime(path), queued) for path in paths if (queued := self._load(path))]
        return [queued for _, queued in sorted(found, key=lambda item: (item[0], item[1].path.name))]

    def find(self, container_id: str, ifname: str) -> QueuedDelete | None:
        """What is owed for one attachment."""
        path = self.directory / file_name(container_id, ifname)
        return self._load(path) if path.is_file() else None

    def put(self, container_id: str, ifname: str, payload: bytes) -> None:
        """Keeps a request that cannot be done now. Raises OSError."""
        self.create()
        temporary = self.directory / f".{os.getpid()}-{os.urandom(6).hex()}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.directory / file_name(container_id, ifname))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._sync()

    def done(self, queued: QueuedDelete) -> None:
        """Forgets a DEL that was done, unless a newer one has taken its place meanwhile."""
        if self._read(queued.path) == queued.payload:
            queued.path.unlink(missing_ok=True)
            self._sync()

    def forget(self, container_id: str, ifname: str) -> None:
        """Forgets what waited for an attachment that has just been deleted directly."""
        (self.directory / file_name(container_id, ifname)).unlink(missing_ok=True)

    def _load(self, path: Path) -> QueuedDelete | None:
        try:
            payload = self._read(path)
            if payload is None:
                return None
            request = parse_request(decode(payload), None)
            if request.command != "DEL":
                raise ValueError(f"it holds a {request.command}, not a DEL")
            if path.name != file_name(request.container_id, request.ifname):
                raise ValueError("its name is not that of the attachment in it")
        except (CniError, OSError, ValueError) as exc:
            self._set_aside(path, exc)
            return None
        return QueuedDelete(path, request, payload)

    def _read(self, path: Path) -> bytes | None:
        """The file's content, None if it is gone. ValueError for what the plugin cannot have written."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            if status.st_uid not in (0, os.geteuid()):
                raise ValueError(f"it belongs to user {status.st_uid}")
            if status.st_size > MAX_FILE_BYTES:
                raise ValueError(f"it has {status.st_size} bytes; expected at most {MAX_FILE_BYTES}")
            return file.read()

    def _set_aside(self, path: Path, cause: Exception) -> None:
        bad = path.with_name(path.name + BAD_SUFFIX)
        try:
            path.rename(bad)
        except OSError as exc:
            _log.error("cni.queue.bad_file_stays", path=str(path), cause=str(cause), error=str(exc))
            return
        _log.error("cni.queue.bad_file", path=str(bad), cause=str(cause))

    def _mtime(self, path: Path) -> int:
        try:
            return path.lstat().st_mtime_ns
        except OSError:
            return 0

    def _sync(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
