"""Network namespaces of a benchmark's own, named per process and removed afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def netns_path(name: str) -> str:
    """Path of a named namespace."""
    return f"/run/netns/{name}"


def run(*command: str, netns: str | None = None) -> str:
    """Runs a command to its end, in a named network namespace if one is given (/sys stays), and returns
    what it printed. Raises RuntimeError with its words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=entering(netns))
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def entering(netns: str | None) -> Callable[[], None] | None:
    """A preexec_fn that moves a child into the namespace; None for none."""
    if netns is None:
        return None
    path = netns_path(netns)

    def enter() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if _libc.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {path}")
        os.close(fd)

    return enter


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
