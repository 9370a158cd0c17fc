"""Podman's containers on a node: addresses, policy, and what is left when they are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.loader.rig import Rig
from tests.runtimes.footprint import nothing_left
from tests.runtimes.machine import Machine
from tests.runtimes.podman import Podman

pytestmark = pytest.mark.cluster

AT_ONCE = 50

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
"""


@pytest.fixture(scope="module")
def podman(machine: Machine, archive: Path) -> Iterator[Podman]:
    yield Podman(machine, archive)


@pytest.fixture(autouse=True)
def all_gone(rig: Rig, machine: Machine, podman: Podman) -> Iterator[None]:
    with nothing_left(rig, machine):
        yield
        if left := podman.names():
            podman.remove(*left)


def test_containers_get_addresses_and_talk(rig: Rig, podman: Podman) -> None:
    web, client = podman.run("web"), podman.run("client")
    assert web != client
    assert podman.ask("client", web) == "web"
    assert podman.ask("web", client) == "client"
    (node,) = rig.nodes
    assert {(each.pod_name, each.ipv4) for each in node.endpoints()} == {
        ("web", web),
        ("client", client),
    }


def test_policy_counts_by_labels_in_cni_args(rig: Rig, podman: Podman) -> None:
    web = podman.run("web", labels="app=web,tier=front")
    podman.run("client", labels="app=client")
    podman.run("stranger", labels="app=stranger")
    assert podman.ask("stranger", web) == "web"
    rig.apply(POLICY)
    try:
        assert podman.ask("client", web) == "web"
        assert podman.ask("stranger", web) == ""
    finally:
        rig.remove_policy(POLICY)
    assert podman.ask("stranger", web) == "web"


def test_fifty_at_once_get_fifty_addresses(podman: Podman) -> None:
    starting = [podman.start(f"c{number}") for number in range(AT_ONCE)]
    for each in starting:
        each.output()
    addresses = {podman.address(f"c{number}") for number in range(AT_ONCE)}
    assert len(addresses) == AT_ONCE
    podman.remove("--all")
