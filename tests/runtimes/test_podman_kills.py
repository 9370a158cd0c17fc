"""Podman, or the loader under it, killed while containers come and go: what is left can be got rid of."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kernel.loader.rig import REPOSITORY, Rig
from tests.runtimes.conftest import conflist
from tests.runtimes.footprint import nothing_left
from tests.runtimes.loader_stops import held_loader, plugin_under_way, plugins_done
from tests.runtimes.machine import Machine, wait_until
from tests.runtimes.podman import Podman

pytestmark = pytest.mark.cluster

AT_ONCE = 20
KILLS = 12
COLLECT = REPOSITORY / "deploy" / "podman" / "collect-garbage"
NETWORK = {"cniVersion": "1.0.0", "name": "fimbria"}


@pytest.fixture(scope="module")
def podman(machine: Machine, archive: Path) -> Podman:
    return Podman(machine, archive)


@pytest.fixture(autouse=True)
def all_gone(rig: Rig, machine: Machine, podman: Podman) -> Iterator[None]:
    with nothing_left(rig, machine):
        yield
        clean(machine, podman)


def clean(machine: Machine, podman: Podman) -> None:
    """What an operator does after a crash: containers removed, and namespaces that Podman has lost."""
    plugins_done(machine)

    def none_left() -> bool:
        # A container whose start was cut off is removed by the second try.
        if left := podman.names():
            podman("rm", "--force", "--time", "0", *left, check=False)
        return not podman.names()

    wait_until(none_left)
    machine.remove_namespaces(*machine.namespaces())


def test_podman_killed_in_an_add_leaves_no_endpoint(rig: Rig, machine: Machine, podman: Podman) -> None:
    (node,) = rig.nodes
    with held_loader(machine):
        starting = podman.start("web")
        plugin_under_way(machine)
        starting.kill()
    plugins_done(machine)
    # The plugin found nobody to tell, and took it back: not even the namespace's end is needed.
    assert node.endpoints() == []
    assert machine.namespaces()
    clean(machine, podman)
    assert podman.run("web")


def test_podman_and_plugin_killed_in_an_add_leave_no_endpoint(
    rig: Rig, machine: Machine, podman: Podman
) -> None:
    (node,) = rig.nodes
    with held_loader(machine):
        starting = podman.start("web")
        plugin = plugin_under_way(machine)
        starting.kill()
        os.kill(plugin, signal.SIGKILL)
        plugins_done(machine)
    wait_until(lambda: node.endpoints() == [])


def test_podman_killed_in_a_del_can_be_asked_again(rig: Rig, machine: Machine, podman: Podman) -> None:
    podman.run("web")
    with held_loader(machine):
        removing = machine.start("podman", "rm", "--force", "--time", "0", "web")
        plugin = plugin_under_way(machine)
        removing.kill()
        os.kill(plugin, signal.SIGKILL)


def test_containers_go_while_the_loader_is_away(rig: Rig, podman: Podman) -> None:
    (node,) = rig.nodes
    podman.run("web")
    node.loader.kill()
    podman.remove("web")
    assert len(list((node.directory / "deletes").iterdir())) == 1
    node.loader.start()
    wait_until(lambda: node.endpoints() == [])


def test_what_podman_has_lost_is_collected(rig: Rig, machine: Machine, podman: Podman) -> None:
    """An ADD that Podman heard of, and died before it wrote that down."""
    (node,) = rig.nodes
    web = podman.run("web")
    machine.run("ip", "netns", "add", "lost")
    machine.write("/run/lost.json", json.dumps(json.loads(conflist(machine))["plugins"][0] | NETWORK))
    lost = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "lost", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}
    lost["CNI_NETNS"] = "/run/netns/lost"
    machine.run("sh", "-c", "/opt/cni/bin/fimbria-cni </run/lost.json", environment=lost)
    assert {each.container_id == "lost" for each in node.endpoints()} == {True, False}
    machine.write("/run/collect-garbage", COLLECT.read_bytes(), mode=0o755)
    machine.run("/run/collect-garbage", str(node.socket))
    assert [each.ipv4 for each in node.endpoints()] == [web]


def test_podman_killed_at_any_time_leaves_what_can_be_removed(machine: Machine, podman: Podman) -> None:
    dice = random.Random(4)
    for number in range(KILLS):
        starting = podman.start(f"c{number}")
        pid = starting.pid
        time.sleep(dice.uniform(0, 0.25))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        starting.output(check=False)


def test_the_loader_restarted_under_many_runs(rig: Rig, machine: Machine, podman: Podman) -> None:
    (node,) = rig.nodes
    before = len(machine.links())
    starting = [podman.start(f"c{number}") for number in range(AT_ONCE)]
    wait_until(lambda: len(machine.links()) > before)
    node.loader.kill()
    refused = podman.start("refused")
    assert "loader cannot be reached" in refused.failure()
    node.loader.start()
    started = []
    for number, each in enumerate(starting):
        each.process.wait()
        if each.process.returncode == 0:
            started.append(f"c{number}")
        else:
            assert "loader" in each.failure()
    assert len({podman.address(name) for name in started}) == len(started)
    first = podman.run("after")
    for name in started:
        assert podman.ask(name, first) == "after"
