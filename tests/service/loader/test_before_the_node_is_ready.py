"""A loader whose node is not registered yet: it serves, says what it waits for, keeps what it is asked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.service.curl import call, listed, refuse
from tests.service.processes import ServiceProcess, run_to_end, start

PLUGIN = Path(__file__).resolve().parents[3] / "build" / "fimbria-cni"
SERVICES = ("EndpointService", "DatapathService", "ObserverService")


@dataclass
class Loader:
    process: ServiceProcess
    directory: Path

    @property
    def target(self) -> str:
        return self.process.target


def flags(directory: Path) -> list[str]:
    nowhere = f"unix:{directory}/nobody.sock"
    return [
        "--listen=127.0.0.1:0",
        "--node-name=node-1",
        "--node-ipv4=192.0.2.1",
        f"--ipam-target={nowhere}",
        f"--identity-target={nowhere}",
        f"--policy-target={nowhere}",
        f"--state-dir={directory}/state",
        f"--cni-socket={directory}/cni.sock",
        "--start-seconds=0",
    ]


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    directory = tmp_path_factory.mktemp("loader")
    process = start("loader", directory, *flags(directory))
    yield Loader(process, directory)
    process.terminate()


def test_a_stranger_finds_every_service_and_method(loader: Loader) -> None:
    services = listed(loader.target, "--list-services")
    assert {f"fimbria.loader.v1.{name}" for name in SERVICES} | {"grpc.health.v1.Health"} <= services
    methods = listed(loader.target, "--list-methods")
    assert {
        "fimbria.loader.v1.EndpointService/ListEndpoints",
        "fimbria.loader.v1.DatapathService/GetStatus",
        "fimbria.loader.v1.ObserverService/GetFlows",
    } <= methods


def test_it_serves(loader: Loader) -> None:
    assert call(loader.target, "grpc.health.v1.Health/Check", {}) == {"status": "SERVING"}


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("EndpointService/ListEndpoints", {}),
        ("EndpointService/GetEndpoint", {"id": 1}),
        ("EndpointService/UpdateEndpointLabels", {"id": 1, "labels": ["k8s:app=web"]}),
        ("EndpointService/DeleteEndpoint", {"id": 1}),
        ("EndpointService/RegenerateEndpoint", {"id": 1}),
        ("EndpointService/WatchEndpoints", {}),
        ("DatapathService/GetStatus", {}),
        ("DatapathService/ListPolicyEntries", {"endpointId": 1}),
        ("DatapathService/ListIpCache", {}),
        ("DatapathService/ListConnections", {}),
        ("DatapathService/WaitApplied", {}),
        ("ObserverService/GetFlows", {}),
    ],
)
def test_every_method_says_what_the_node_waits_for(
    loader: Loader, method: str, request_: dict[str, object]
) -> None:
    error = refuse(loader.target, f"fimbria.loader.v1.{method}", request_)
    assert error["code"] == "unavailable"
    assert "node-1 is not ready" in error["message"]
    assert "nobody.sock" in error["message"]


def test_a_bad_request_names_its_field(loader: Loader) -> None:
    error = refuse(loader.target, "fimbria.loader.v1.EndpointService/GetEndpoint", {"id": 0})
    assert error["code"] == "invalid_argument"


def plugin(loader: Loader, command: str) -> tuple[int, dict[str, object]]:
    config = {
        "cniVersion": "1.0.0",
        "name": "fimbria",
        "type": "fimbria-cni",
        "socket": f"{loader.directory}/cni.sock",
    }
    done = subprocess.run(
        [PLUGIN],
        input=json.dumps(config).encode(),
        capture_output=True,
        timeout=30,
        check=False,
        env={
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/proc/self/ns/net" if command == "ADD" else "",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
        },
    )
    return done.returncode, json.loads(done.stdout or b"{}")


def test_a_delete_is_kept_for_later_and_succeeds(loader: Loader) -> None:
    assert plugin(loader, "DEL") == (0, {})
    assert len(list((loader.directory / "deletes").glob("*.json"))) == 1


def test_it_ends_when_told_to(tmp_path: Path) -> None:
    assert start("loader", tmp_path, *flags(tmp_path)).terminate() == 0


def test_a_second_loader_is_refused(loader: Loader) -> None:
    code, log = run_to_end("loader", loader.directory, *flags(loader.directory))
    assert code == 1
    assert "another loader uses the state directory" in log


def test_an_address_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    code, log = run_to_end("loader", tmp_path, *flags(tmp_path), "--node-ipv4=nonsense")
    assert code == 1
    assert "FIMBRIA_NODE_IPV4" in log
    assert "nonsense" in log
