"""The cache of compiled objects: shared by processes and threads, each entry made by one of them at a time.

An entry is two files, ``KEY.o`` and ``KEY.o.sha256``. One that does not match its digest counts as not there,
so a crash at any instruction, a full disk or a flipped bit costs a compilation and nothing else. Who makes an
entry holds ``flock`` on ``KEY.lock``; the lock of a process that died is gone with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# Enough for the programs of a few versions and feature sets, and for the sources of who develops them.
KEPT_BUILDS: Final = 16
# Nobody looks an entry up and opens it this much later.
_IN_USE_SECONDS: Final = 3600.0
_SCRATCH = ".compile-"
_ENTRY = re.compile(r"(?P<stem>.+)-(?P<build>[0-9a-f]{32}(?:-[0-9a-f]{8})?)\.o")
_used: set[str] = set()
_used_lock = threading.Lock()


class ObjectCache:
    """One directory of compiled objects. It is made at first use, for its owner only."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def path(self, key: str) -> str:
        """Where an entry's object is, or would be."""
        return os.path.join(self.directory, f"{key}.o")

    def find(self, key: str) -> str | None:
        """The path of an entry that is whole, else None."""
        path = self.path(key)
        if not is_whole(path):
            return None
        self._note(path)
        return path

    def find_any(self, prefix: str) -> str | None:
        """The path of the newest whole entry whose key begins with ``prefix``, else None."""
        try:
            names = [
                name for name in os.listdir(self.directory) if name.startswith(prefix) and name.endswith(".o")
            ]
        except FileNotFoundError:
            return None
        for path in sorted((os.path.join(self.directory, name) for name in names), key=_mtime, reverse=True):
            if is_whole(path):
                self._note(path)
                return path
        return None

    @contextmanager
    def making(self, key: str) -> Iterator[None]:
        """Only one thread of all processes is in here for a key; look again whether another has made it."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        path = os.path.join(self.directory, f"{key}.lock")
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                # Who held it before has removed the file that this waited on; it locks nobody else out.
                if not _is_same_file(fd, path):
                    continue
                try:
                    yield
                finally:
                    os.unlink(path)
                return
            finally:
                os.close(fd)

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """A directory for one compilation, on the file system of the cache."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=self.directory, prefix=_SCRATCH, ignore_cleanup_errors=True
        ) as scratch:
            yield scratch

    def store(self, key: str, made: str) -> str:
        """Moves a finished object from a scratch directory into the cache. Returns its path."""
        path = self.path(key)
        digest = f"{made}.sha256"
        with open(digest, "w", encoding="ascii") as file:
            file.write(sha256_of(made) + "\n")
        # The digest first: whoever comes between the two finds none that fits, and waits for the lock.
        os.rename(digest, f"{path}.sha256")
        os.rename(made, path)
        self._note(path)
        return path

    def prune(self, kept: int = KEPT_BUILDS, now: float | None = None) -> list[str]:
        """Removes the builds that were used longest ago but for ``kept``, and what killed compilations left.

        A build is all objects of the same sources, flags and compiler. None goes that this process used, or
        anybody within the last hour. Returns the names of the removed objects.
        """
        now = time.time() if now is None else now
        builds: dict[str, list[str]] = {}
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        for name in names:
            match = _ENTRY.fullmatch(name)
            path = os.path.join(self.directory, name)
            if match:
                builds.setdefault(match["build"], []).append(path)
            elif name.startswith(_SCRATCH) and now - _mtime(path) > _IN_USE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        newest = {build: max(map(_mtime, paths)) for build, paths in builds.items()}
        with _used_lock:
            held = set(_used)
        removed = []
        for build in sorted(newest, key=lambda each: newest[each], reverse=True)[kept:]:
            if now - newest[build] <= _IN_USE_SECONDS or held.intersection(builds[build]):
                continue
            for path in builds[build]:
                removed += [os.path.basename(path)] if self._remove(path) else []
        return removed

    def _remove(self, path: str) -> bool:
        lock = f"{path.removesuffix('.o')}.lock"
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for each in (path, f"{path}.sha256", lock):
                try:
                    os.unlink(each)
                except FileNotFoundError:
                    pass
            return True
        except BlockingIOError:
            # Somebody makes it anew at this moment.
            return False
        finally:
            os.close(fd)

    @staticmethod
    def _note(path: str) -> None:
        with _used_lock:
            _used.add(path)
        try:
            os.utime(path)
        except OSError:
            # A cache that is read-only, or another user's, is not pruned by this process either.
            pass


def is_whole(path: str) -> bool:
    """Whether an object is there with the digest that was written with it."""
    try:
        with open(f"{path}.sha256", encoding="ascii", errors="replace") as file:
            return file.read().strip() == sha256_of(path)
    except OSError:
        return False


def sha256_of(path: str) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mtime(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def _is_same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
