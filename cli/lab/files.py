"""Small JSON files that are there whole or not at all, and the lock that orders a lab's writers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.errors import CliError


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as JSON, 0600, in one rename."""
    # Writers in different processes and threads may overlap: each has its own temporary name.
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise


def read_json(path: Path) -> Any:
    """The content of `path`; None if it is not there. A damaged file is an error that names it."""
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise CliError(f"{path} is damaged: {error}", hint="`fimbria lab down` removes the lab") from None


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, timeout: float = 60.0) -> Iterator[int]:
    """Hold the lock file `path`, made if needed; the kernel drops the lock when its holder dies.

    Yields the descriptor: a process that inherits it holds the lock too, until it closes it or ends.

    Raises CliError when it cannot be had within `timeout` seconds, FileNotFoundError when the
    directory is not there.
    """
    deadline = time.monotonic() + timeout
    descriptor = _open_locked(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, deadline)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_locked(path: Path, operation: int, deadline: float) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _wait(descriptor, operation, path, deadline)
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        # `lab down` removes the file while it holds it: a lock on a removed file orders nobody.
        os.close(descriptor)


def _wait(descriptor: int, operation: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise CliError(
                    f"another command is changing this lab and has not finished ({path} is locked)",
                    reason="LAB_BUSY",
                    hint="wait for it, or end it, and try again",
                ) from None
            time.sleep(0.01)
