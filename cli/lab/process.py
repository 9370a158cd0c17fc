"""The lab's processes: who they are, whether they live, and how they end.

A process is known by its pid together with its start time, because pids are used again. Every process
of a lab, and whatever such a process starts, also carries a mark in its environment: what is found by
the mark is the lab's even when no record of it was ever written.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from cli.lab.files import read_json
from cli.lab.paths import MARK


@dataclass(frozen=True)
class ProcessId:
    """A process that can be told from a later one with the same pid."""

    pid: int
    started: int
    """Clock ticks after boot, field 22 of /proc/PID/stat."""

    @property
    def alive(self) -> bool:
        """True while it runs; a zombie does not."""
        return _stat(self.pid) == (True, self.started)

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this pid now, if one runs."""
        running, started = _stat(pid)
        return cls(pid, started) if running else None

    @classmethod
    def recorded(cls, path: Path) -> ProcessId | None:
        """The process that a record file names; None without one."""
        record = read_json(path)
        if not isinstance(record, dict):
            return None
        return cls(int(record["pid"]), int(record["started"]))


def _stat(pid: int) -> tuple[bool, int]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name, in brackets, may hold anything: the fields start after the last bracket.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False, 0
    return fields[0] not in (b"Z", b"X"), int(fields[19])


def marked(mark: str, *, pod: str = "") -> list[ProcessId]:
    """Processes of the lab with this mark (its id), and of its `pod` (NS/NAME) only when one is given.

    The caller and its ancestors are not among them: `fimbria lab down` may be called from a shell that
    runs inside the lab.
    """
    wanted = {f"{MARK}={mark}".encode()} | ({f"{MARK}_POD={pod}".encode()} if pod else set())
    spared = set(_ancestors())
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in spared:
            continue
        if wanted <= set(_environment(name).split(b"\0")) and (process := ProcessId.of(int(name))):
            found.append(process)
    return found


def _environment(pid: str) -> bytes:
    """The environment that a process was started with; empty for one that has none or is gone."""
    for _ in range(10):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read()
            # Kernel threads and zombies have no program, and no environment either.
            if environment or not os.readlink(f"/proc/{pid}/exe"):
                return environment
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return b""
        # In the middle of an exec the environment is not there yet.
        time.sleep(0.001)
    return b""


def _ancestors() -> list[int]:
    pids = [os.getpid()]
    while pids[-1] > 1:
        try:
            with open(f"/proc/{pids[-1]}/stat", "rb") as file:
                pids.append(int(file.read().rpartition(b")")[2].split()[1]))
        except FileNotFoundError:
            break
    return pids


def end(processes: list[ProcessId], *, grace: float = 2.0) -> None:
    """End `processes`: SIGTERM, and SIGKILL for those that still run after `grace` seconds.

    Raises TimeoutError for one that SIGKILL does not end within 5 seconds.
    """
    if grace > 0:
        _signal(processes, signal.SIGTERM)
        if _gone(processes, grace):
            return
    _signal(processes, signal.SIGKILL)
    if not _gone(processes, 5.0):
        left = [str(process.pid) for process in processes if process.alive]
        raise TimeoutError(f"processes {', '.join(left)} do not end")


def _signal(processes: list[ProcessId], number: int) -> None:
    for process in processes:
        if process.alive:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue


def _gone(processes: list[ProcessId], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(process.alive for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
