"""The real plugin against a real server with a small handler, in namespaces of the test's own."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from services.chassis.errors import NotFound
from services.loader.cni.request import AddRequest, CniRequest
from services.loader.cni.result import CniResult
from services.loader.cni.server import CniServer
from tests.kernel.netlink.namespaces import Namespace, Namespaces

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Answer:
    """What a runtime gets back."""

    status: int
    text: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found

    @property
    def code(self) -> int:
        assert self.status == 1, self
        assert set(self.json) == {"cniVersion", "code", "msg", "details"}
        return int(self.json["code"])

    @property
    def msg(self) -> str:
        return str(self.json["msg"])


@dataclass
class Runtime:
    """Executes the plugin as a container runtime does."""

    binary: Path
    socket: Path

    def config(self, **members: Any) -> dict[str, Any]:
        conf = {
            "cniVersion": "1.0.0",
            "name": "fimbria",
            "type": "fimbria-cni",
            "socket": str(self.socket),
            "timeout_seconds": 10,
        }
        return {key: value for key, value in (conf | members).items() if value is not None}

    def environment(self, command: str, netns: str, **changes: str) -> dict[str, str]:
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web",
            "CNI_PATH": "/opt/cni/bin",
        }
        return {key: value for key, value in (variables | changes).items() if value != "-"}

    def call(self, command: str, netns: str = "", conf: Any = None, **changes: str) -> Answer:
        """Runs the plugin; ``conf`` is the configuration or its text, ``changes`` variables ("-": unset)."""
        text = (
            conf if isinstance(conf, bytes) else json.dumps(self.config() if conf is None else conf).encode()
        )
        done = subprocess.run(
            [self.binary],
            input=text,
            env=self.environment(command, netns, **changes),
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.stderr == b""
        return Answer(done.returncode, done.stdout.decode())

    async def acall(self, command: str, netns: str = "", conf: Any = None, **changes: str) -> Answer:
        """The same without holding up a server that lives in this process."""
        return await asyncio.to_thread(lambda: self.call(command, netns, conf, **changes))

    @property
    def queue(self) -> Path:
        return self.socket.parent / "deletes"

    def queued(self) -> list[str]:
        return sorted(path.name for path in self.queue.iterdir()) if self.queue.exists() else []


@dataclass
class SmallHandler:
    """Remembers what it was asked; fails or waits when told to."""

    calls: list[CniRequest] = field(default_factory=list)
    attached: dict[tuple[str, str], CniResult] = field(default_factory=dict)
    networks: dict[tuple[str, str], str] = field(default_factory=dict)
    failure: Exception | None = None
    gate: asyncio.Event | None = None

    async def add(self, request: AddRequest) -> CniResult:
        await self._enter(request)
        if request.key in self.attached:
            return self.attached[request.key]
        number = len(self.attached) + 2
        result = CniResult.for_link(
            host_name=f"lxc{number:012x}",
            host_mac="02:00:00:00:00:01",
            ifname=request.ifname,
            pod_mac="02:00:00:00:00:02",
            netns_path=request.netns_path,
            addresses=[
                (IPv4Address("10.244.0.0") + number, IPv4Address("10.244.0.1")),
                (IPv6Address("fd00:10:244::") + number, IPv6Address("fd00:10:244::1")),
            ],
        )
        self.attached[request.key] = result
        self.networks[request.key] = request.network
        return result

    async def delete(self, request: CniRequest) -> None:
        await self._enter(request)
        self.attached.pop(request.key, None)

    async def check(self, request: CniRequest) -> CniResult:
        await self._enter(request)
        if request.key not in self.attached:
            raise NotFound(f"container {request.container_id} is not known", reason="ENDPOINT_NOT_FOUND")
        return self.attached[request.key]

    async def status(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def attachments(self, network: str) -> list[tuple[str, str]]:
        return [key for key in self.attached if self.networks[key] == network]

    async def _enter(self, request: CniRequest) -> None:
        self.calls.append(request)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    @property
    def commands(self) -> list[str]:
        return [call.command for call in self.calls]


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    with Namespaces() as made:
        yield made


@pytest.fixture
def pod(namespaces: Namespaces) -> Namespace:
    return namespaces.make()


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin as `make build` makes it, but for traps where the C of it would be undefined."""
    binary = tmp_path_factory.mktemp("plugin") / "fimbria-cni"
    source = REPOSITORY / "services/loader/cni/fimbria_cni.c"
    compiler = shutil.which("clang-19") or shutil.which("clang")
    assert compiler, "clang is missing: apt-get install clang-19"
    flags = ["-O2", "-static", "-Wall", "-Wextra", "-Werror", "-Wshadow"]
    flags += ["-fsanitize=undefined", "-fsanitize-trap=all", "-fstack-protector-strong"]
    subprocess.run([compiler, *flags, "-o", str(binary), str(source)], check=True)
    return binary


@pytest.fixture
def runtime(plugin: Path, tmp_path: Path) -> Runtime:
    return Runtime(plugin, tmp_path / "run" / "cni.sock")


@pytest.fixture
def handler() -> SmallHandler:
    return SmallHandler()


@pytest.fixture
async def server(runtime: Runtime, handler: SmallHandler) -> AsyncIterator[CniServer]:
    made = CniServer(handler, socket_path=str(runtime.socket))
    await made.start()
    yield made
    await made.close(grace=1)
