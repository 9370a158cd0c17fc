"""Network namespaces of a test's own, removed also after failure; a killed run's go with the next one."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

_CLONE_NEWNET = 0x40000000
_DIRECTORY = Path("/run/netns")
_OURS = re.compile(r"fbpf-(\d+)-\w+")
_libc = ctypes.CDLL(None, use_errno=True)


def run(*arguments: str) -> str:
    """Runs a program in the thread's namespace. Raises with what it said."""
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Namespace:
    """One network namespace by name; :meth:`entered` moves the calling thread into it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = str(_DIRECTORY / name)

    @contextmanager
    def entered(self) -> Iterator[None]:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        inside = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(inside)
            try:
                yield
            finally:
                _setns(before)
        finally:
            os.close(inside)
            os.close(before)

    def command(self, *arguments: str) -> str:
        return run("nsenter", f"--net={self.path}", *arguments)


class Namespaces:
    """Makes namespaces called ``fbpf-PID-LABEL`` and removes them on exit."""

    def __init__(self) -> None:
        self._made: list[str] = []
        sweep()

    def make(self, label: str) -> Namespace:
        name = f"fbpf-{os.getpid()}-{label}"
        run("ip", "netns", "add", name)
        self._made.append(name)
        namespace = Namespace(name)
        namespace.command("ip", "link", "set", "lo", "up")
        # Devices that come up would announce themselves by IPv6, into the counts of drops.
        for scope in ("all", "default"):
            namespace.command("sysctl", "-q", "-w", f"net.ipv6.conf.{scope}.disable_ipv6=1")
        return namespace

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in reversed(self._made):
            run("ip", "netns", "del", name)


def sweep() -> None:
    """Removes namespaces of test processes that are no more."""
    for path in _DIRECTORY.glob("fbpf-*"):
        match = _OURS.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
