"""Services and load generators as processes: started, looked at through /proc, ended by process id."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_READY_SECONDS = 30.0
_END_SECONDS = 15.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Server:
    """A process that serves: on a unix socket (`local`) and on a port of the loopback (`port`)."""

    process: subprocess.Popen[bytes]
    local: str
    port: int

    @property
    def cpu_seconds(self) -> float:
        """Processor time that it has taken so far, in user and kernel mode."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def resident_mb(self) -> float:
        """Memory that it has resident, in MB."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * _PAGE / 1e6


@contextmanager
def server(module: str, directory: Path, *flags: str, name: str = "") -> Iterator[Server]:
    """Runs `python -m MODULE` until the block ends; its socket and log are in `directory`.

    Raises RuntimeError with the end of the log for one that does not serve in time.
    """
    name = name or module.rpartition(".")[2]
    ready, log = directory / f"{name}.ready", directory / f"{name}.log"
    local = f"unix:{directory / name}.sock"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FIMBRIA_")}
    command = [sys.executable, "-m", module, f"--listen={local},127.0.0.1:0", f"--ready-file={ready}", *flags]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not serve: {log.read_text()[-2000:]}")
            time.sleep(0.02)
        addresses = json.loads(ready.read_text())["addresses"]
        yield Server(process, addresses[0], int(addresses[1].rpartition(":")[2]))
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, by force when it does not go by itself."""
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def sqlite(directory: Path, name: str) -> str:
    """The flag that says where a service's store is."""
    return f"--database-url=sqlite:///{directory / name}.db"
