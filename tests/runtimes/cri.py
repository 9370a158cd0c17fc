"""A client of containerd's CRI, as the kubelet is one: pods (sandboxes) and containers in them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

from tests.runtimes import image

PROTOS = Path(__file__).with_name("protos")
SECONDS = 60.0


def generate(directory: Path) -> tuple[ModuleType, ModuleType]:
    """The modules of cri.proto: messages and stubs, generated in ``directory``."""
    outputs = [f"--python_out={directory}", f"--grpc_python_out={directory}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, "cri.proto"]
    subprocess.run(command, check=True)
    return _load(directory, "cri_pb2"), _load(directory, "cri_pb2_grpc")


def _load(directory: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, directory / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # The stubs import the messages by this name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Sandbox:
    """A pod that runs."""

    id: str
    ip: str
    config: Any


class Cri:
    """Calls containerd; errors of its are grpc.RpcError."""

    def __init__(self, messages: ModuleType, stub: Any, cgroup: str) -> None:
        self._messages = messages
        self._stub = stub
        self._cgroup = cgroup

    def run(self, name: str, *, annotations: dict[str, str] | None = None, **more: Any) -> Sandbox:
        """Makes a pod in the namespace ``shop`` and asks for its address."""
        m = self._messages
        config = m.PodSandboxConfig(
            metadata=m.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="shop"),
            annotations=annotations or {},
            linux=m.LinuxPodSandboxConfig(cgroup_parent=self._cgroup),
            **more,
        )
        made = self._stub.RunPodSandbox(m.RunPodSandboxRequest(config=config), timeout=SECONDS)
        return Sandbox(made.pod_sandbox_id, self.ip(made.pod_sandbox_id), config)

    def ip(self, sandbox: str) -> str:
        answer = self._stub.PodSandboxStatus(
            self._messages.PodSandboxStatusRequest(pod_sandbox_id=sandbox), timeout=SECONDS
        )
        return str(answer.status.network.ip)

    def sandboxes(self) -> dict[str, str]:
        """Names of all pods, ready or not, by id."""
        answer = self._stub.ListPodSandbox(self._messages.ListPodSandboxRequest(), timeout=SECONDS)
        return {item.id: item.metadata.name for item in answer.items}

    def remove(self, sandbox: str) -> None:
        """Stops a pod and removes it."""
        m = self._messages
        self._stub.StopPodSandbox(m.StopPodSandboxRequest(pod_sandbox_id=sandbox), timeout=SECONDS)
        self._stub.RemovePodSandbox(m.RemovePodSandboxRequest(pod_sandbox_id=sandbox), timeout=SECONDS)

    def start(self, sandbox: Sandbox, name: str, *arguments: str) -> str:
        """Starts a container in a pod and returns its id."""
        m = self._messages
        config = m.ContainerConfig(
            metadata=m.ContainerMetadata(name=name), image=m.ImageSpec(image=image.NAME), args=arguments
        )
        made = self._stub.CreateContainer(
            m.CreateContainerRequest(pod_sandbox_id=sandbox.id, config=config, sandbox_config=sandbox.config),
            timeout=SECONDS,
        )
        self._stub.StartContainer(m.StartContainerRequest(container_id=made.container_id), timeout=SECONDS)
        return str(made.container_id)

    def exec(self, container: str, *command: str) -> tuple[int, str]:
        """Runs a command in a container: its exit code and what it printed."""
        request = self._messages.ExecSyncRequest(container_id=container, cmd=command)
        answer = self._stub.ExecSync(request, timeout=SECONDS)
        return int(answer.exit_code), answer.stdout.decode()

    def network_ready(self) -> bool:
        """Whether containerd has read a network configuration."""
        answer = self._stub.Status(self._messages.StatusRequest(), wait_for_ready=True, timeout=SECONDS)
        return any(each.type == "NetworkReady" and each.status for each in answer.status.conditions)


@contextmanager
def connect(socket: Path, modules: tuple[ModuleType, ModuleType], cgroup: str) -> Iterator[Cri]:
    """A client of the containerd that serves ``socket``, whatever becomes of that meanwhile."""
    messages, stubs = modules
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        yield Cri(messages, stubs.RuntimeServiceStub(channel), cgroup)
