"""Ports that Podman publishes, by the plugin portmap chained behind Fimbria."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.loader.rig import Rig
from tests.runtimes.conftest import CONFLIST_PLACE, conflist
from tests.runtimes.footprint import nothing_left
from tests.runtimes.machine import Machine
from tests.runtimes.podman import PORT, Podman

pytestmark = pytest.mark.cluster

PUBLISHED = 9090


@pytest.fixture(scope="module")
def loader_flags() -> list[str]:
    """Answers must go the way of the questions, through the node's stack, whose netfilter translates."""
    return ["--host-routing=false"]


@pytest.fixture(scope="module")
def podman(machine: Machine, archive: Path) -> Podman:
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    config = conflist(machine, portmap, capabilities={"mac": True})
    machine.write(CONFLIST_PLACE, config)
    return Podman(machine, archive)


@pytest.fixture(autouse=True)
def all_gone(rig: Rig, machine: Machine, podman: Podman) -> Iterator[None]:
    with nothing_left(rig, machine):
        yield
        podman.remove("--all")
        assert "10.244." not in machine.run("iptables", "-t", "nat", "--list-rules")


def test_a_published_port_is_reached_from_outside_the_node(rig: Rig, podman: Podman) -> None:
    (node,) = rig.nodes
    podman.run("web", "--publish", f"{PUBLISHED}:{PORT}")
    outside = rig._underlay
    outside.command("ip", "address", "add", "172.31.9.9/16", "dev", "underlay")

    def hear() -> bytes:
        with socket.create_connection((node.ipv4, PUBLISHED), timeout=5) as connection:
            return connection.recv(16)

    assert outside.run(hear) == b"web"
