"""A PostgreSQL server of one's own in a directory: no TCP, a socket that only its owner reaches, durable.

The server does not run as root: for root it runs as the user ``postgres``, otherwise as the caller. It is
known by its process id together with the start time, as recorded by this module; nothing else is ever
signalled.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.errors import CliError
from cli.lab.files import write_json
from cli.lab.process import ProcessId

BINARIES: Final = tuple(Path(f"/usr/lib/postgresql/{version}/bin") for version in (15, 16, 17, 18, 14, 13))
USER: Final = "postgres"
# What the path of a unix socket may have, with the end of the string.
SOCKET_PATH_BYTES: Final = 108
SOCKET_NAME: Final = ".s.PGSQL.5432"
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.01
_IPC_RMID: Final = 0

# Small, and durable: what a benchmark or a crash test says of it must hold for a real one.
SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "32MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "16MB",
    "max_connections": "200",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "wal_buffers": "2MB",
    "max_parallel_workers_per_gather": "0",
    "max_worker_processes": "2",
    "autovacuum_max_workers": "1",
    "autovacuum_naptime": "10s",
    "huge_pages": "off",
    # In files of its directory: what a killed server leaves behind in /dev/shm nobody would remove.
    "dynamic_shared_memory_type": "mmap",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] %a ",
    "log_checkpoints": "off",
    "cluster_name": "fimbria",
}


@dataclass(frozen=True)
class Postgres:
    """The server in `directory`. Everything of it is in there: data, socket, log, record of the process.

    Without `fsync` it survives its own death, but not the machine's.
    """

    directory: Path
    fsync: bool = True

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def socket_directory(self) -> Path:
        return self.directory / "s"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def record(self) -> Path:
        """Which process it is: {"pid", "started"}."""
        return self.directory / "process.json"

    def url(self, database: str = "postgres") -> str:
        """Of one of its databases, as its superuser."""
        return f"postgresql://{USER}@/{database}?host={self.socket_directory}"

    def create(self) -> None:
        """Make an empty cluster, unless there is one. Raises CliError where that cannot work."""
        path = os.fsencode(self.socket_directory / SOCKET_NAME)
        if len(path) >= SOCKET_PATH_BYTES:
            raise CliError(
                f"{self.directory} is too long for a socket: {len(path)} bytes with the socket's name, "
                f"expected less than {SOCKET_PATH_BYTES}",
                hint="choose a shorter directory",
            )
        if (self.data / "PG_VERSION").exists():
            return
        initdb = binary("initdb")
        owner = _owner()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # initdb leaves nothing behind that a later one would take for a cluster: it is made aside.
        aside = self.directory / "data.new"
        shutil.rmtree(aside, ignore_errors=True)
        for path_made in (self.directory, self.socket_directory):
            path_made.mkdir(exist_ok=True, mode=0o700)
            _give(path_made, owner)
        command = [str(initdb), "-D", str(aside), "-U", USER, "--locale=C", "-E", "UTF8", "-A", "trust", "-N"]
        command += ["--no-instructions"]
        done = subprocess.run(
            _as(owner, command), cwd="/", capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise CliError(f"initdb failed: {(done.stderr or done.stdout).strip()}")
        lines = [f"{name} = '{value}'" for name, value in SETTINGS.items()]
        lines.append(f"unix_socket_directories = '{self.socket_directory}'")
        with open(aside / "postgresql.auto.conf", "a") as file:
            file.write("\n".join(lines) + "\n")
        os.rename(aside, self.data)

    def process(self) -> ProcessId | None:
        """The server's main process while it runs."""
        recorded = ProcessId.recorded(self.record)
        return recorded if recorded is not None and recorded.alive else None

    def start(self, *, timeout: float = START_SECONDS, environ: Mapping[str, str] | None = None) -> None:
        """Start it unless it runs, and wait until it takes connections. Raises CliError with its log."""
        self.create()
        if self.process() is None:
            self._launch(environ or {})
        self.wait_ready(timeout)

    def _launch(self, environ: Mapping[str, str]) -> None:
        self._forget_dead()
        command = [str(binary("postgres")), "-D", str(self.data)]
        if not self.fsync:
            command += ["-c", "fsync=off"]
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                _as(_owner(), command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", **environ},
                start_new_session=True,
            )
        started = ProcessId.of(process.pid)
        if started is None:
            raise CliError(f"PostgreSQL ended at once: {self._last_words()}")
        write_json(self.record, {"pid": started.pid, "started": started.started})
        _children[process.pid] = process

    def _forget_dead(self) -> None:
        """After a kill the lock file names a process that may be somebody else's by now."""
        lock = self.data / "postmaster.pid"
        try:
            pid = int(lock.read_text().split(maxsplit=1)[0])
        except (FileNotFoundError, ValueError, IndexError):
            return
        deadline = time.monotonic() + STOP_SECONDS
        # Children of a killed server notice by themselves, and must be gone before there is another.
        while any(_serves(child, self.data) for child in _pids()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if not _serves(pid, self.data):
            lock.unlink(missing_ok=True)
            for left in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
                (self.socket_directory / left).unlink(missing_ok=True)

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Wait until it takes connections. Raises CliError with the log's end when it does not."""
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self.process() is None:
                raise CliError(f"PostgreSQL has ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise CliError(f"PostgreSQL takes no connections after {timeout:g} s: {self._last_words()}")
            time.sleep(POLL_SECONDS)

    def _answers(self) -> bool:
        """Whether the server has come so far that it takes connections."""
        try:
            # The eighth line says so, once its socket is open: "starting", "ready".
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            if len(lines) < 8 or lines[7].strip() != "ready":
                return False
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)
                probe.connect(str(self.socket_directory / SOCKET_NAME))
        except OSError:
            return False
        return True

    def stop(self, *, timeout: float = STOP_SECONDS) -> None:
        """End it: connections are cut, what is committed is on disk. Kills it when it does not end."""
        if not self._signal(signal.SIGINT, timeout):
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the main process, as a crash would; its children end by themselves, which is awaited."""
        self._signal(signal.SIGKILL, STOP_SECONDS)
        deadline = time.monotonic() + STOP_SECONDS
        while any(_serves(pid, self.data) for pid in _pids()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """End it and remove its directory."""
        self.stop(timeout=5.0)
        # Also one without a record is over when its children are.
        self.kill()
        self._free_shared_memory()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _free_shared_memory(self) -> None:
        """The interlock of a server that was killed, some bytes of System V shared memory, outlives it."""
        try:
            # The seventh line is its key and its id.
            identifier = int((self.data / "postmaster.pid").read_text().splitlines()[6].split()[1])
        except (FileNotFoundError, IndexError, ValueError):
            return
        ctypes.CDLL(None).shmctl(identifier, _IPC_RMID, None)

    def _signal(self, number: int, timeout: float) -> bool:
        """Whether it is gone within `timeout` seconds after the signal."""
        running = self.process()
        if running is None:
            return True
        try:
            os.kill(running.pid, number)
        except ProcessLookupError:
            return True
        deadline = time.monotonic() + timeout
        while running.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        child = _children.pop(running.pid, None)
        if child is not None:
            child.wait()
        return True

    def _last_words(self) -> str:
        try:
            return " | ".join(self.log.read_text(errors="replace").splitlines()[-4:]) or "its log is empty"
        except FileNotFoundError:
            return "it has no log"


# Servers that this process has started: they are reaped when they end.
_children: dict[int, subprocess.Popen[bytes]] = {}


def binary(name: str) -> Path:
    """A program of the PostgreSQL that Fimbria is tested with. Raises CliError when none is installed."""
    for directory in BINARIES:
        if (directory / name).exists():
            return directory / name
    raise CliError(
        "PostgreSQL is not installed: no /usr/lib/postgresql/*/bin", hint="apt-get install postgresql-15"
    )


def installed() -> bool:
    """Whether a server can be started on this machine."""
    return any((directory / "postgres").exists() for directory in BINARIES)


def _owner() -> pwd.struct_passwd | None:
    """Who the server runs as; None: the caller, who is not root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        raise CliError(f"there is no user {USER}", hint="apt-get install postgresql-15") from None


def _as(owner: pwd.struct_passwd | None, command: list[str]) -> list[str]:
    """The command, to be run as `owner`: not by subprocess, which would fork for that.

    Whoever uses gRPC must not: its handlers at a fork end the child now and then. What subprocess starts
    plainly never comes by them.
    """
    if owner is None:
        return command
    setpriv = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups", "--"]
    return setpriv + command


def _give(path: Path, owner: pwd.struct_passwd | None) -> None:
    if owner is not None:
        os.chown(path, owner.pw_uid, owner.pw_gid)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _serves(pid: int, data: Path) -> bool:
    """Whether the process is a server's, or one of its children's, that works in `data`."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(data) and _running(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def _running(pid: int) -> bool:
    return ProcessId.of(pid) is not None
