"""A container of Podman's on one node and a pod of containerd's on another, under one policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.loader.rig import Rig
from tests.runtimes import image
from tests.runtimes.conftest import configured_machine
from tests.runtimes.containerd import PORT, Containerd
from tests.runtimes.cri import Cri, generate
from tests.runtimes.footprint import nothing_left
from tests.runtimes.machine import Machine
from tests.runtimes.podman import Podman

pytestmark = pytest.mark.cluster

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}
      podSelector: {matchLabels: {app: client}}
"""


@pytest.fixture(scope="module")
def node_count() -> int:
    return 2


@pytest.fixture(scope="module")
def podman(machine: Machine, archive: Path) -> Podman:
    return Podman(machine, archive)


@pytest.fixture(scope="module")
def cri(rig: Rig, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    with configured_machine(rig.nodes[1]) as machine:
        containerd = Containerd(machine, archive, generate(tmp_path_factory.mktemp("cri")))
        with containerd.cri() as client:
            yield client


def test_runtimes_on_two_nodes_share_the_network_and_its_policy(
    rig: Rig, machine: Machine, podman: Podman, cri: Cri
) -> None:
    with nothing_left(rig, machine):
        web = podman.run("web", labels="app=web")
        pods = [
            cri.run(name, annotations={"io.fimbria.labels": f"app={name}"}) for name in ("client", "stranger")
        ]
        client, stranger = (cri.start(pod, "ask") for pod in pods)

        def hears(container: str, address: str) -> str:
            return cri.exec(container, image.PROGRAM, "ask", address, PORT)[1]

        assert hears(stranger, web) == "web"
        assert hears(stranger, podman.address6("web")) == "web"
        rig.apply(POLICY)
        assert hears(client, web) == "web"
        assert hears(stranger, web) == ""
        rig.remove_policy(POLICY)
        podman.remove("web")
        for pod in pods:
            cri.remove(pod.id)
