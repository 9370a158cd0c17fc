"""Podman's containers on a node: addresses, policy, and what is left when they are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.loader.rig import Rig
from tests.runtimes.conftest import CONFLIST_PLACE, conflist
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
    assert podman.ask("client", podman.address6("web")) == "web"
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


def test_a_container_stopped_and_started_gets_another_endpoint(rig: Rig, podman: Podman) -> None:
    """With the labels that are given then."""
    (node,) = rig.nodes
    podman.run("web", labels="app=web")
    (first,) = node.endpoints()
    podman("stop", "--time", "0", "web")
    assert node.endpoints() == []
    podman("start", "web")
    (second,) = node.endpoints()
    assert second.id != first.id
    assert "k8s:app=web" in set(first.labels) - set(second.labels)
    podman.run("client")
    assert podman.ask("client", podman.address("web")) == "web"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ip", "10.244.0.99"], "unsupported field CNI_ARGS: IP"),
        (["--publish", "9090:8080"], "unsupported field runtimeConfig.portMappings"),
    ],
)
def test_what_the_network_cannot_do_is_refused(podman: Podman, flags: list[str], said: str) -> None:
    assert said in podman.start("web", *flags).failure()


def test_a_mac_address_of_ones_own_choice(rig: Rig, podman: Podman) -> None:
    (node,) = rig.nodes
    podman.run("web", "--mac-address", "02:00:5e:10:00:01")
    assert [each.mac for each in node.endpoints()] == ["02:00:5e:10:00:01"]


def test_containers_get_names_of_podmans_choice(rig: Rig, podman: Podman) -> None:
    """Such as eager_mendel, which no pod could have."""
    (node,) = rig.nodes
    podman.run("Eager_Mendel")
    assert [each.pod_name for each in node.endpoints()] == ["eager-mendel"]


@pytest.mark.parametrize("broken", ['{"cniVersion": "1.0.0", "name": "fimbria", "plugins": [', ""])
def test_without_a_readable_configuration_containers_get_no_other_network(
    machine: Machine, podman: Podman, broken: str
) -> None:
    """Podman falls back to a bridge of its own there, which must not be found."""
    before = machine.links()
    machine.write(CONFLIST_PLACE, broken)
    try:
        assert 'failed to find plugin "bridge"' in podman.start("web").failure()
        assert machine.links() == before
    finally:
        machine.write(CONFLIST_PLACE, conflist(machine))
