"""A lab leaves nothing, however it ends, and keeps away from everything that is not its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from cli.errors import BadInput, CliError
from cli.lab import netns, sweep
from cli.lab.lab import Lab
from tests.cluster.conftest import CLIENT, WEB
from tests.cluster.policies import DENY_ALL

pytestmark = pytest.mark.cluster


def host_state() -> tuple[list[str], str]:
    return sorted(os.listdir("/sys/class/net")), netns.ip("-4", "route", "show", "table", "all")


def fimbria(lab: Lab, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "cli", "--dir", str(lab.paths.directory), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_down_removes_all_and_may_be_said_again(new_lab: Callable[..., Lab]) -> None:
    before = host_state()
    lab = new_lab()
    lab.up()
    lab.run(WEB, labels=["app=web"])
    child = lab.command(WEB, ["sleep", "60"])
    swept = lab.down()
    assert swept.processes >= 6 and len(swept.namespaces) == 5
    assert child.wait(5) == -9
    assert sweep.leftovers(lab.paths) == []
    assert not lab.paths.directory.exists()
    assert host_state() == before
    assert not lab.down().anything


def test_up_may_be_said_again_and_changes_nothing(new_lab: Callable[..., Lab]) -> None:
    lab = new_lab()
    lab.up(nodes=1)
    first = lab.status()
    lab.up()
    # The same processes, by pid.
    assert lab.status() == first


def test_a_lab_grows(new_lab: Callable[..., Lab]) -> None:
    lab = new_lab()
    lab.up(nodes=1)
    lab.run(WEB, labels=["app=web"])
    lab.up(nodes=3)
    lab.run(CLIENT, node="node-3")
    assert lab.probe_many([(CLIENT, WEB, 80, "TCP")])[0].allowed
    with pytest.raises(BadInput, match="does not shrink"):
        lab.up(nodes=2)


@pytest.mark.parametrize("milliseconds", [30, 150, 400, 800, 1200, 1600, 2000])
def test_up_that_is_killed_can_be_said_again_or_removed(
    new_lab: Callable[..., Lab], milliseconds: int
) -> None:
    for again in (False, True):
        lab = new_lab(f"lab-{again}")
        command = fimbria(lab, "lab", "up")
        # The moment is arbitrary on purpose: whatever state it leaves has to be a good one.
        time.sleep(milliseconds / 1000)
        command.kill()
        command.communicate()
        if again:
            lab.up()
            lab.run(WEB, labels=["app=web"])
            lab.run(CLIENT)
            assert lab.probe_many([(CLIENT, WEB, 80, "TCP")])[0].allowed
        lab.down()
        assert sweep.leftovers(lab.paths) == []


@pytest.mark.parametrize("victim", ["run", "node-1", "node-2", "ipam", "identity", "policy"])
@pytest.mark.parametrize("milliseconds", [120, 250])
def test_whoever_is_killed_during_run_the_lab_recovers(shop: Lab, victim: str, milliseconds: int) -> None:
    command = fimbria(shop, "lab", "run", "shop/new", "--node", "node-1", "--label", "app=new")
    time.sleep(milliseconds / 1000)
    if victim == "run":
        command.kill()
    else:
        os.kill(shop.process(victim).pid, signal.SIGKILL)
    command.communicate()
    shop.up()
    assert all(row["state"] == "serving" for row in shop.status())
    rows = {row["name"]: row for row in shop.pods()}
    if "new" not in rows or rows["new"]["state"] != "ready":
        shop.run("shop/new", node="node-1", labels=["app=new"])
    assert shop.probe_many([(CLIENT, "shop/new", 80, "TCP"), ("shop/new", WEB, 80, "TCP")])[0].allowed
    shop.delete("shop/new")
    # Nothing of it is left: no endpoint, no address, no namespace.
    assert "new" not in {endpoint.pod_name for endpoint in shop.runtime.endpoints("node-1")}
    assert not [name for name in netns.named(shop.paths.netns_prefix) if name.endswith("_new")]


def test_two_labs_do_not_meet(new_lab: Callable[..., Lab]) -> None:
    from cli.commands.policy import apply_manifests

    first, second = new_lab("first"), new_lab("second")
    for lab in (first, second):
        lab.up(nodes=1)
        lab.run(WEB, labels=["app=web"])
        lab.run(CLIENT, labels=["app=client"])
    apply_manifests(first.cluster, DENY_ALL)
    probe = (CLIENT, WEB, 80, "TCP")
    assert [lab.probe_many([probe])[0].allowed for lab in (first, second)] == [False, True]
    first.down()
    assert second.probe_many([probe])[0].allowed
    assert all(row["state"] == "serving" for row in second.status())


def test_two_ups_on_one_directory_make_one_lab(new_lab: Callable[..., Lab]) -> None:
    lab = new_lab()
    commands = [fimbria(lab, "lab", "up", "--nodes", "1") for _ in range(2)]
    for command in commands:
        assert command.wait(60) == 0, command.communicate()[1]
    assert lab.down().processes == 4


def test_files_of_others_in_the_directory_are_kept(new_lab: Callable[..., Lab]) -> None:
    lab = new_lab()
    lab.up(nodes=1)
    (lab.paths.directory / "notes.txt").write_text("mine")
    assert lab.down().kept == ["notes.txt"]
    assert [path.name for path in lab.paths.directory.iterdir()] == ["notes.txt"]
    with pytest.raises(BadInput, match="is not a lab"):
        lab.up()
    (lab.paths.directory / "notes.txt").unlink()


def test_a_pod_that_is_there_is_refused_and_kept(shop: Lab) -> None:
    before = shop.pods()
    with pytest.raises(CliError) as caught:
        shop.run(WEB, labels=["app=other"])
    assert caught.value.reason == "POD_EXISTS"
    with pytest.raises(BadInput, match="node-1, node-2"):
        shop.run("shop/other", node="node-7")
    assert shop.pods() == before
