"""Containers of ``ctr run --cni``: containerd without Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.loader.rig import Rig
from tests.runtimes import image
from tests.runtimes.conftest import CONFLIST_PLACE, conflist
from tests.runtimes.containerd import PORT, Containerd
from tests.runtimes.footprint import nothing_left
from tests.runtimes.machine import Machine, wait_until

pytestmark = pytest.mark.cluster

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
"""


@pytest.fixture(autouse=True)
def all_gone(rig: Rig, machine: Machine) -> Iterator[None]:
    with nothing_left(rig, machine):
        yield


def serve(rig: Rig, containerd: Containerd, name: str) -> str:
    """Starts a container in the background and returns its address."""
    containerd.ctr("run", "--detach", "--cni", image.NAME, name, image.PROGRAM, "serve", PORT, name)
    (node,) = rig.nodes
    (endpoint,) = [each for each in node.endpoints() if each.pod_name == pod_name(containerd, name)]
    return endpoint.ipv4


def ask(containerd: Containerd, address: str) -> str:
    """What a container hears that lives for one question."""
    command = ("ask", address, PORT)
    return containerd.ctr("run", "--rm", "--cni", image.NAME, "one", image.PROGRAM, *command, check=False)


def end(containerd: Containerd, name: str) -> None:
    """Kills a container's program and removes the container."""

    def gone() -> bool:
        # A task that is still ending cannot be deleted.
        containerd.ctr("tasks", "delete", name, check=False)
        return name not in containerd.ctr("tasks", "list", "--quiet").split()

    containerd.ctr("tasks", "kill", "--signal", "SIGKILL", name)
    wait_until(gone)
    containerd.ctr("containers", "delete", name)


def pod_name(containerd: Containerd, name: str) -> str:
    """ctr names a container to plugins with the namespace that it is in."""
    return f"{containerd.namespace}-{name}"


def test_a_container_that_ends_gives_everything_back(rig: Rig, containerd: Containerd) -> None:
    """Its DEL comes when the namespace is gone, with an empty CNI_NETNS."""
    (node,) = rig.nodes
    web = serve(rig, containerd, "web")
    assert ask(containerd, web) == "web"
    assert [each.ipv4 for each in node.endpoints()] == [web]
    end(containerd, "web")


def test_labels_come_from_the_configuration(rig: Rig, machine: Machine, containerd: Containerd) -> None:
    def label(app: str) -> None:
        labels = [{"key": "app", "value": app}]
        machine.write(CONFLIST_PLACE, conflist(machine, args={"cni": {"labels": labels}}))

    rig.apply(POLICY)
    try:
        label("web")
        web = serve(rig, containerd, "web")
        label("client")
        assert ask(containerd, web) == "web"
        label("stranger")
        assert ask(containerd, web) == ""
    finally:
        rig.remove_policy(POLICY)
        machine.write(CONFLIST_PLACE, conflist(machine))
        end(containerd, "web")


def test_a_background_container_that_nobody_deletes_the_network_of(rig: Rig, containerd: Containerd) -> None:
    """ctr never sends a DEL for what it started with --detach; the namespace's end has to do."""
    (node,) = rig.nodes
    serve(rig, containerd, "web")
    end(containerd, "web")
    wait_until(lambda: node.endpoints() == [])
