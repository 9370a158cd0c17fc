"""containerd, or the loader under it, killed while pods come and go: what is left can be got rid of."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import pytest

from tests.kernel.loader.rig import Rig
from tests.runtimes.containerd import Containerd
from tests.runtimes.cri import Cri, Sandbox
from tests.runtimes.footprint import nothing_left
from tests.runtimes.loader_stops import held_loader, plugin_under_way, plugins_done
from tests.runtimes.machine import Machine, wait_until

pytestmark = pytest.mark.cluster

AT_ONCE = 20
KILLS = 5


@pytest.fixture(autouse=True)
def all_gone(rig: Rig, machine: Machine, cri: Cri) -> Iterator[None]:
    with nothing_left(rig, machine):
        yield
        clean(machine, cri)


def clean(machine: Machine, cri: Cri) -> None:
    """What a kubelet does after a crash (remove the pods that it finds), and an operator with namespaces that
    containerd has lost.
    """
    plugins_done(machine)
    for sandbox in cri.sandboxes():
        cri.remove(sandbox)
    machine.remove_namespaces(*machine.namespaces())


def outcome(future: Future[Sandbox]) -> Sandbox | str:
    """The pod, or why there is none."""
    try:
        return future.result()
    except grpc.RpcError as problem:
        return str(problem.details())


def test_containerd_killed_in_an_add_leaves_no_endpoint(
    rig: Rig, machine: Machine, containerd: Containerd, cri: Cri
) -> None:
    (node,) = rig.nodes
    with ThreadPoolExecutor() as workers:
        with held_loader(machine):
            making = workers.submit(cri.run, "web")
            plugin_under_way(machine)
            containerd.kill()
        assert isinstance(outcome(making), str)
    plugins_done(machine)
    # The plugin found nobody to tell, and took it back.
    assert node.endpoints() == []
    containerd.start()
    clean(machine, cri)
    assert cri.run("web").ip


def test_containerd_and_plugin_killed_in_an_add_leave_no_endpoint(
    rig: Rig, machine: Machine, containerd: Containerd, cri: Cri
) -> None:
    (node,) = rig.nodes
    with ThreadPoolExecutor() as workers:
        with held_loader(machine):
            making = workers.submit(cri.run, "web")
            plugin = plugin_under_way(machine)
            containerd.kill()
            os.kill(plugin, signal.SIGKILL)
            plugins_done(machine)
        assert isinstance(outcome(making), str)
    wait_until(lambda: node.endpoints() == [])
    containerd.start()


def test_containerd_killed_in_a_del_is_asked_again(
    machine: Machine, containerd: Containerd, cri: Cri
) -> None:
    web = cri.run("web")
    with ThreadPoolExecutor() as workers:
        with held_loader(machine):
            removing = workers.submit(cri.remove, web.id)
            plugin = plugin_under_way(machine)
            containerd.kill()
            os.kill(plugin, signal.SIGKILL)
        assert isinstance(removing.exception(), grpc.RpcError)
    containerd.start()
    assert list(cri.sandboxes()) == [web.id]


def test_containerd_killed_at_any_time_leaves_what_can_be_removed(
    machine: Machine, containerd: Containerd, cri: Cri
) -> None:
    dice = random.Random(4)
    for round_ in range(KILLS):
        with ThreadPoolExecutor(4) as workers:
            making = [workers.submit(cri.run, f"p{round_}-{number}") for number in range(4)]
            time.sleep(dice.uniform(0, 0.5))
            containerd.kill()
            made = [found for each in making if isinstance(found := outcome(each), Sandbox)]
        containerd.start()
        assert {sandbox.id for sandbox in made} <= set(cri.sandboxes())


def test_the_loader_restarted_under_many_pods(rig: Rig, machine: Machine, cri: Cri) -> None:
    (node,) = rig.nodes
    before = len(machine.links())
    with ThreadPoolExecutor(AT_ONCE) as workers:
        making = [workers.submit(cri.run, f"p{number}") for number in range(AT_ONCE)]
        wait_until(lambda: len(machine.links()) > before)
        node.loader.kill()
        with pytest.raises(grpc.RpcError, match="loader cannot be reached"):
            cri.run("refused")
        node.loader.start()
        found = [outcome(each) for each in making]
    made = [each for each in found if isinstance(each, Sandbox)]
    assert all("loader" in each for each in found if isinstance(each, str)), found
    assert len({sandbox.ip for sandbox in made}) == len(made)
    assert cri.run("after").ip not in {sandbox.ip for sandbox in made}
