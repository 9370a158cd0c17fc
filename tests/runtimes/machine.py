"""A machine for container runtimes: a rig's node with mounts and processes of its own.

A runtime in it uses the paths that it uses everywhere (``/etc/cni``, ``/run``, ``/var/lib``), so that what
the documentation says is what runs here, and sees nothing of the runtimes of the machine underneath. Nothing
survives it: its first process is the parent of all others, and its file systems live in memory.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from tests.kernel.loader.rig import PLUGIN, Node

INIT = Path(__file__).with_name("init.py")
DEBIAN_PLUGINS = Path("/usr/lib/cni")
CGROUPS = Path("/sys/fs/cgroup")
SECONDS = 60.0
_CGROUP = re.compile(r"fimbria-test-(\d+)-.*")


class Machine:
    """The node's namespace with a runtime's view of the file system; closed by :meth:`close`."""

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.name = name
        # What the runtimes put their control groups under; the one thing of theirs that others can see.
        self.cgroup = f"/fimbria-test-{os.getpid()}-{name}"
        self._ready = node.directory / f"{name}.machine"
        self._ready.unlink(missing_ok=True)
        self._holder = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("nsenter", f"--net={node.namespace.path}"),
                *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
                *("--mount-proc", sys.executable, "-I", "-S", str(INIT), str(self._ready)),
            ]
        )
        wait_until(lambda: self._ready.exists() or self._holder.poll() is not None)
        assert self._holder.poll() is None, "the machine did not start"
        (self._first,) = children(self._holder.pid)
        self.write("/opt/cni/bin/fimbria-cni", PLUGIN.read_bytes(), mode=0o755)
        for plugin in ("portmap", "loopback"):
            self.run("ln", "-s", f"{DEBIAN_PLUGINS / plugin}", f"/opt/cni/bin/{plugin}")

    def close(self) -> None:
        """Ends every process of the machine and takes away its control groups."""
        self._holder.kill()
        self._holder.wait()
        wait_until(lambda: not alive(self._first))
        remove_cgroups(self.cgroup)

    def inside(self, *arguments: str) -> list[str]:
        """The command line that runs ``arguments`` in the machine."""
        return ["nsenter", f"--target={self._first}", "--net", "--mount", "--pid", "--", *arguments]

    def start(
        self, *arguments: str, environment: Mapping[str, str] | None = None, log: Path | None = None
    ) -> Run:
        """Starts a program in the machine; what it prints is kept, or goes to a file."""
        return Run(self.inside(*arguments), {**os.environ, **(environment or {})}, log)

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None, check: bool = True) -> str:
        """Runs a program in the machine to its end and returns what it printed."""
        return self.start(*arguments, environment=environment).output(check=check)

    def write(self, path: str, content: bytes | str, mode: int = 0o644) -> None:
        """Writes a file of the machine."""
        inside = self.path(path)
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_bytes(content.encode() if isinstance(content, str) else content)
        inside.chmod(mode)

    def path(self, path: str) -> Path:
        """A path of the machine as seen from outside."""
        return Path(f"/proc/{self._first}/root{path}")

    def processes(self, name: str) -> list[int]:
        """Programs of this name that run in the machine, as numbered outside."""
        ours = os.readlink(f"/proc/{self._first}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and (entry / "comm").read_text().strip() == name
                    and os.readlink(entry / "ns/pid") == ours
                ):
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def namespaces(self) -> set[str]:
        """Network namespaces that runtimes keep by name."""
        return {path.name for path in self.path("/run/netns").iterdir()}

    def remove_namespaces(self, *names: str) -> None:
        """What an operator does to namespaces that a runtime has forgotten when it was killed."""
        for name in names:
            self.run("ip", "netns", "delete", name)

    def links(self) -> set[str]:
        """Devices of the node's namespace."""
        return {line.split(": ")[1].partition("@")[0] for line in self.run("ip", "-o", "link").splitlines()}


class Run:
    """A program that runs in the machine."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path | None) -> None:
        self.command = list(command)
        with log.open("a") if log else nullcontext(subprocess.PIPE) as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                env=dict(environment),
            )

    @property
    def pid(self) -> int:
        """The program's own process, below the one that entered the namespaces."""
        found: list[int] = []

        def look() -> bool:
            found[:] = children(self.process.pid)
            return bool(found) or self.process.poll() is not None

        wait_until(look)
        assert found, f"{self.command} ended with {self.process.returncode}"
        return found[0]

    def kill(self) -> None:
        """SIGKILL to the program, as a crash would; not to what it started."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.communicate()

    def failure(self) -> str:
        """Waits for the end, which must be a failure, and returns what was said of it."""
        output, errors = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode != 0, output
        return errors

    def output(self, *, check: bool = True) -> str:
        """Waits for the end and returns standard output."""
        output, errors = self.process.communicate(timeout=SECONDS)
        if check and self.process.returncode != 0:
            raise AssertionError(f"{self.command} ended with {self.process.returncode}: {errors or output}")
        return output


def children(pid: int) -> list[int]:
    """Processes that a process started and that still run."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def wait_until(condition: object, seconds: float = SECONDS) -> None:
    """Fails unless a condition comes true in time."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def sweep_cgroups() -> None:
    """Removes what test runs that were killed have left."""
    for directory in [each for hierarchy in _hierarchies() for each in hierarchy.glob("fimbria-test-*")]:
        match = _CGROUP.fullmatch(directory.name)
        if match and not alive(int(match[1])):
            remove_cgroups(directory.name)


def remove_cgroups(name: str) -> None:
    """Removes a control group and those in it from every hierarchy; their processes are gone."""
    for hierarchy in _hierarchies():
        top = hierarchy / name.lstrip("/")
        if top.is_dir():
            for directory, _, _ in os.walk(top, topdown=False):
                os.rmdir(directory)


def _hierarchies() -> list[Path]:
    return [CGROUPS, *(each for each in CGROUPS.iterdir() if each.is_dir() and not each.is_symlink())]
