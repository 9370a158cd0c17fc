"""Any process may die at any time: traffic goes on, and the lab recovers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from cli.commands.policy import apply_manifests
from cli.lab import netns
from cli.lab.lab import Lab
from cli.lab.paths import netns_path
from cli.lab.probing import Ends
from tests.cluster.conftest import CLIENT, STRANGER, WEB
from tests.cluster.policies import CLIENT_TO_WEB

pytestmark = pytest.mark.cluster
PROCESSES = ["ipam", "identity", "policy", "node-1", "node-2"]


def poll(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not become true"
        time.sleep(0.01)


def kill(lab: Lab, name: str) -> None:
    victim = lab.process(name)
    os.kill(victim.pid, signal.SIGKILL)
    poll(lambda: not victim.alive)


class Traffic:
    """Connections from client to web, one after another, until it is left."""

    def __init__(self, lab: Lab) -> None:
        ends = Ends(lab)
        self._pair = ends.pair(CLIENT, WEB)
        self.answers: list[bool] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        import socket

        target, source = self._pair[1].netns, self._pair[0].netns
        assert target is not None and source is not None
        netns.enter_path(target)
        with socket.create_server(("", 80), backlog=64) as server:
            netns.enter_path(source)
            while not self._stop.is_set():
                try:
                    with socket.create_connection((self._pair[1].address, 80), timeout=0.5):
                        server.accept()[0].close()
                    self.answers.append(True)
                except OSError:
                    self.answers.append(False)
                self._stop.wait(0.002)

    def __enter__(self) -> Traffic:
        self._thread.start()
        self.more(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int) -> None:
        """Wait for `count` more connections."""
        goal = len(self.answers) + count
        poll(lambda: len(self.answers) >= goal)


@pytest.fixture(scope="module")
def guarded(shop: Lab) -> Lab:
    """The shop, with client allowed to reach web and stranger not."""
    apply_manifests(shop.cluster, CLIENT_TO_WEB)
    return shop


@pytest.mark.parametrize("name", PROCESSES)
def test_traffic_goes_on_while_a_process_is_dead_and_after(guarded: Lab, name: str) -> None:
    with Traffic(guarded) as traffic:
        kill(guarded, name)
        traffic.more(50)
        assert not guarded.probe_many([(STRANGER, WEB, 80, "TCP")], timeout=0.3)[0].allowed
        assert {row["name"] for row in guarded.status() if row["state"] == "dead"} == {name}
        guarded.up()
        traffic.more(50)
    assert traffic.answers.count(False) == 0, f"{traffic.answers.count(False)} of {len(traffic.answers)} lost"
    assert all(row["state"] == "serving" for row in guarded.status())
    assert not guarded.probe_many([(STRANGER, WEB, 80, "TCP")], timeout=0.3)[0].allowed


def test_after_all_died_at_once_the_lab_is_as_before(guarded: Lab) -> None:
    before = guarded.pods()
    with Traffic(guarded) as traffic:
        for name in PROCESSES:
            kill(guarded, name)
        traffic.more(50)
        guarded.up()
        traffic.more(50)
    assert traffic.answers.count(False) == 0
    assert guarded.pods() == before
    guarded.label(STRANGER, ["app=client"])
    assert guarded.probe_many([(STRANGER, WEB, 80, "TCP")])[0].allowed
    guarded.label(STRANGER, ["app=stranger"])
    assert not guarded.probe_many([(STRANGER, WEB, 80, "TCP")])[0].allowed


def test_a_pod_may_be_run_while_something_is_dead(guarded: Lab) -> None:
    kill(guarded, "node-1")
    kill(guarded, "identity")
    guarded.run("shop/late", node="node-1", labels=["app=client"])
    try:
        assert guarded.probe_many([("shop/late", WEB, 80, "TCP")])[0].allowed
    finally:
        guarded.delete("shop/late")


def test_a_pod_may_be_deleted_while_its_loader_is_dead(guarded: Lab) -> None:
    row = guarded.run("shop/late", node="node-2", labels=["app=late"])
    kill(guarded, "node-2")
    guarded.delete("shop/late")
    assert not netns_path(row["netns"].rpartition("/")[2]).exists()
    guarded.up()
    listed = guarded.runtime.endpoints("node-2")
    poll(lambda: "late" not in {e.pod_name for e in guarded.runtime.endpoints("node-2")})
    assert listed is not None
    # The address goes back: the next pod of the node may have it.
    again = guarded.run("shop/late", node="node-2", labels=["app=late"])
    assert again["ips"]
    guarded.delete("shop/late")
