"""containerd on a machine, and its own client ``ctr``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from tests.kernel.loader.rig import REPOSITORY
from tests.runtimes import cri, image
from tests.runtimes.machine import Machine, Run, wait_until

CONFIG = REPOSITORY / "deploy" / "containerd" / "config.toml"
SOCKET = "/run/containerd/containerd.sock"
# Where the image of a pod's own container comes from is nothing that Fimbria could say; and without
# CAP_SYS_RESOURCE nobody's OOM score can be lowered.
MORE = f"""
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image.NAME}"
  restrict_oom_score_adj = true
"""
KUBERNETES = "k8s.io"
PORT = "8080"


class Containerd:
    """The daemon; it may be killed and started again, and its containers live on."""

    def __init__(self, machine: Machine, archive: Path, modules: tuple[ModuleType, ModuleType]) -> None:
        self.machine = machine
        self._modules = modules
        self._log = machine.node.directory / "containerd.log"
        self._daemon: Run | None = None
        self.namespace = machine.cgroup.lstrip("/")
        machine.write("/etc/containerd/config.toml", CONFIG.read_text() + MORE)
        self.start()
        for namespace in (KUBERNETES, self.namespace):
            machine.run("ctr", "--namespace", namespace, "images", "import", str(archive))

    def start(self) -> None:
        """Starts the daemon and returns when pods can be made."""
        self._daemon = self.machine.start("containerd", log=self._log)
        wait_until(self._serves)

    def kill(self) -> None:
        """SIGKILL to the daemon; shims, containers and plugins under way go on."""
        assert self._daemon is not None
        self._daemon.kill()

    @contextmanager
    def cri(self) -> Iterator[cri.Cri]:
        """A client of its CRI; it outlives the daemon."""
        socket = self.machine.path(SOCKET)
        with cri.connect(socket, self._modules, self.machine.cgroup) as client:
            yield client

    def ctr(self, *arguments: str, check: bool = True) -> str:
        """Runs a command of ctr in a namespace of the test's own."""
        return self.machine.run("ctr", "--namespace", self.namespace, *arguments, check=check)

    def _serves(self) -> bool:
        assert self._daemon is not None
        if self._daemon.process.poll() is not None:
            raise AssertionError(f"containerd ended:\n{self._log.read_text()}")
        if not self.machine.path(SOCKET).exists():
            return False
        with self.cri() as client:
            return client.network_ready()
