"""Network namespaces of a test's own: made as ``ip netns`` does, entered in threads, always removed.

Names are ``fcni-PID-N``; those of a test run that was killed are swept away by the next one.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from services.loader.netlink.namespace import enter

_DIRECTORY = Path("/run/netns")
_OURS = re.compile(r"fcni-(\d+)-\d+")
_T = TypeVar("_T")


class Namespace:
    """One network namespace; ``fd`` is open until the registry it came from is closed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = str(_DIRECTORY / name)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def run(self, action: Callable[[], _T]) -> _T:
        """Calls ``action`` in a thread that lives in this namespace, and returns or raises what it does."""
        results: list[_T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                enter(self.fd)
                results.append(action())
            except BaseException as exc:
                errors.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def command(self, *arguments: str) -> str:
        """Runs a program inside and returns its output. Raises CalledProcessError."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout


class Namespaces:
    """Makes namespaces and removes them when it is closed."""

    def __init__(self) -> None:
        self._made: list[Namespace] = []
        self._number = 0

    def __enter__(self) -> Namespaces:
        sweep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for namespace in self._made:
            os.close(namespace.fd)
            subprocess.run(["ip", "netns", "delete", namespace.name], check=False, capture_output=True)

    def make(self) -> Namespace:
        """A new namespace with nothing in it but a loopback device that is down."""
        while (_DIRECTORY / self._name()).exists():
            self._number += 1
        name = self._name()
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        namespace = Namespace(name)
        self._made.append(namespace)
        self._number += 1
        return namespace

    def _name(self) -> str:
        return f"fcni-{os.getpid()}-{self._number}"


def sweep() -> None:
    """Removes namespaces of test processes that are no more."""
    if not _DIRECTORY.is_dir():
        return
    for entry in _DIRECTORY.iterdir():
        match = _OURS.fullmatch(entry.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            subprocess.run(["ip", "netns", "delete", entry.name], check=False, capture_output=True)
