"""Services as real processes: started on a free port, ready when they say so, ended by process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.patience import patient

START_SECONDS = patient(30.0)
POLL_SECONDS = 0.02
# A watch that stays silent fails its test rather than hang it.
WATCH_SECONDS = patient(20.0)


@dataclass
class ServiceProcess:
    """A running service process; `target` is where it serves, `log` what it has written so far."""

    process: subprocess.Popen[bytes]
    target: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit code once the process has drained and gone."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=START_SECONDS)


def spawn(service: str, directory: Path, *flags: str) -> tuple[subprocess.Popen[bytes], Path, Path]:
    """Starts `python -m services.<service>` with its store and ready file in `directory`; does not wait."""
    ready, log = directory / f"{service}.ready", directory / f"{service}.log"
    ready.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIMBRIA_")}
    arguments = [
        sys.executable,
        "-m",
        f"services.{service}",
        # The loader alone keeps no store.
        *([f"--database-url=sqlite:///{directory / service}.db"] if service != "loader" else []),
        f"--ready-file={ready}",
        "--listen=127.0.0.1:0",
        *flags,
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment)
    return process, ready, log


def start(service: str, directory: Path, *flags: str) -> ServiceProcess:
    """Starts a service and waits until it serves; fails with its log when it ends or takes too long."""
    process, ready, log = spawn(service, directory, *flags)
    deadline = time.monotonic() + START_SECONDS
    while not ready.exists():
        if process.poll() is not None:
            raise AssertionError(f"{service} ended with {process.returncode}:\n{log.read_text()}")
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"{service} was not ready in time:\n{log.read_text()}")
        time.sleep(POLL_SECONDS)
    return ServiceProcess(process, json.loads(ready.read_text())["addresses"][0], log)


def run_to_end(service: str, directory: Path, *flags: str) -> tuple[int, str]:
    """Starts a service that is expected to refuse to run; its exit code and what it wrote."""
    process, _, log = spawn(service, directory, *flags)
    try:
        return process.wait(timeout=START_SECONDS), log.read_text()
    finally:
        process.kill()
