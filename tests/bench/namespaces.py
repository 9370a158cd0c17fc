"""Network namespaces of a benchmark's own, named per process and removed afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def netns_path(name: str) -> str:
    """Path of a named namespace."""
    return f"/run/netns/{name}"


def within(netns: str | None, work: Callable[[], T]) -> T:
    """Does the work in a thread that has entered the named network namespace (/sys stays).

    Processes that the work starts are in it too. Nothing runs between fork and exec: that is not safe in a
    process that speaks gRPC."""
    if netns is None:
        return work()

    def entered() -> T:
        fd = os.open(netns_path(netns), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(fd, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {netns}")
        finally:
            os.close(fd)
        return work()

    # The thread ends in a namespace that is not the process's, so it serves this call only.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(entered).result()


def run(*command: str, netns: str | None = None) -> str:
    """Runs a command to its end, in a named network namespace if one is given, and returns what it printed.

    Raises RuntimeError with its words when it fails."""
    done = within(netns, lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


@contextlib.contextmanager
def namespaces(*suffixes: str) -> Iterator[list[str]]:
    """Makes namespaces `fbench-<pid>-<suffix>` with loopback up, and removes them at the end."""
    names = [f"fbench-{os.getpid()}-{suffix}" for suffix in suffixes]
    made: list[str] = []
    try:
        for name in names:
            run("ip", "netns", "add", name)
            made.append(name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def sysctl(netns: str, **values: int | str) -> None:
    """Sets sysctls of a namespace; dots are written as double underscores (`net__ipv4__ip_forward=1`)."""
    settings: Sequence[str] = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    run("sysctl", "-q", "-w", *settings, netns=netns)
