"""Replicas of a service as real processes that can be killed and started again at the same address."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cli.lab.process import ProcessId
from tests.faults.nursery import Nursery
from tests.patience import patient

START_SECONDS = patient(30.0)


@dataclass
class Replica:
    """One process of a service; everything of it is in its directory."""

    nursery: Nursery
    service: str
    directory: Path
    flags: Sequence[str]
    process: ProcessId | None = None
    lives: int = 0

    def __repr__(self) -> str:
        return f"Replica({self.directory.name})"

    @property
    def socket(self) -> Path:
        return self.directory / "s"

    @property
    def ready_file(self) -> Path:
        return self.directory / "ready"

    @property
    def log_file(self) -> Path:
        return self.directory / "log"

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    @property
    def ready(self) -> bool:
        return self.alive and self.ready_file.exists()

    def spawn(self) -> None:
        """Starts it; does not wait."""
        assert not self.alive
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ready_file.unlink(missing_ok=True)
        self.lives += 1
        flags = [
            f"--listen=unix:{self.socket}",
            f"--ready-file={self.ready_file}",
            f"--instance={self.directory.name}-{self.lives}",
            *self.flags,
        ]
        pid = self.nursery.spawn(self.service, str(self.log_file), flags)
        self.process = ProcessId.of(pid)

    def wait(self) -> None:
        """Returns when it serves; fails with the end of its log."""
        deadline = time.monotonic() + START_SECONDS
        while not self.ready:
            assert self.alive, self.last_words("ended")
            assert time.monotonic() < deadline, self.last_words("does not serve")
            time.sleep(0.01)

    def last_words(self, what: str) -> str:
        return f"{self.directory.name} {what}:\n{self.log[-4000:]}"

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.alive:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a crash would; returns when it is over."""
        self.signal(signal.SIGKILL)
        deadline = time.monotonic() + START_SECONDS
        while self.alive:
            assert time.monotonic() < deadline
            time.sleep(0.002)


@dataclass
class Replicas:
    """All replicas of a service over one store."""

    service: str
    database_url: str
    members: list[Replica] = field(default_factory=list)

    @classmethod
    def of(
        cls, nursery: Nursery, service: str, count: int, directory: Path, database_url: str, *flags: str
    ) -> Replicas:
        """``count`` replicas, not started yet. The directory's path must be short: sockets are in it."""
        names = [f"{service}-{number}" for number in range(1, count + 1)]
        common = (f"--database-url={database_url}", "--drain-seconds=1", *flags)
        return cls(
            service, database_url, [Replica(nursery, service, directory / name, common) for name in names]
        )

    @property
    def target(self) -> str:
        """The gRPC target of all of them."""
        return "unix:" + ",".join(str(each.socket) for each in self.members)

    def one(self, number: int) -> str:
        """The gRPC target of one of them."""
        return f"unix:{self.members[number].socket}"


def start_all(replicas: Iterable[Replica]) -> None:
    """Starts those that do not run, all at once, and returns when all serve."""
    replicas = list(replicas)
    for each in replicas:
        if not each.alive:
            each.spawn()
    for each in replicas:
        each.wait()
