"""A lab with two replicas of each service over PostgreSQL: any of them may die, pods still come and go."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from cli.__main__ import run
from cli.commands.policy import apply_manifests
from cli.errors import BadInput
from cli.lab import sweep
from cli.lab.lab import Lab
from cli.lab.paths import POSTGRES_PARENT
from cli.lab.syntax import parse_pod
from tests.cluster.conftest import CLIENT, STRANGER, WEB
from tests.cluster.policies import CLIENT_TO_WEB
from tests.cluster.test_restart import Traffic, kill, poll

pytestmark = pytest.mark.cluster
# In this order each replica has to do without its brother once, and all without the database.
VICTIMS = ["ipam", "ipam-2", "identity", "identity-2", "policy", "policy-2"]
PROBES = [(CLIENT, WEB, 80, "TCP"), (STRANGER, WEB, 80, "TCP")]


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab") / "lab")
    try:
        made.up(nodes=2, replicas=2)
        made.run(WEB, node="node-1", labels=["app=web"], ports=["http:80/TCP"])
        made.run(CLIENT, node="node-2", labels=["app=client"])
        made.run(STRANGER, node="node-2", labels=["app=stranger"])
        apply_manifests(made.cluster, CLIENT_TO_WEB)
        yield made
    finally:
        made.down()
    assert not list(POSTGRES_PARENT.glob(f"*{made.paths.id}*"))


def verdicts(lab: Lab, extra: str = "") -> list[bool]:
    probes = [*PROBES, *([(extra, WEB, 80, "TCP")] if extra else [])]
    return [result.allowed for result in lab.probe_many(probes, timeout=0.3)]


def test_pods_come_and_go_while_each_replica_in_turn_is_dead(replicated: Lab) -> None:
    lab = replicated
    addresses: list[str] = []
    with Traffic(lab) as traffic:
        for number, name in enumerate(VICTIMS):
            kill(lab, name)
            # Not by `lab run`, which would start again what has died.
            pod, app = f"shop/late-{number}", "client" if number % 2 else "late"
            made = lab.runtime.run(parse_pod(pod), node=f"node-{number % 2 + 1}", labels={"app": app})
            addresses += made.ips
            assert verdicts(lab, pod) == [True, False, app == "client"], name
            assert {row["name"] for row in lab.status() if row["state"] == "dead"} == {name}
            if number % 2:
                lab.runtime.delete(parse_pod(pod))
                apply_manifests(lab.cluster, CLIENT_TO_WEB)
            lab.up()
        traffic.more(20)
    assert traffic.answers.count(False) == 0, f"{traffic.answers.count(False)} of {len(traffic.answers)} lost"
    assert len(set(addresses)) == len(addresses)
    assert all(row["state"] == "serving" for row in lab.status())
    for number in range(0, len(VICTIMS), 2):
        lab.delete(f"shop/late-{number}")
    assert verdicts(lab) == [True, False]


def test_without_the_database_traffic_goes_on_and_with_it_pods_come_again(replicated: Lab) -> None:
    lab = replicated
    with Traffic(lab) as traffic:
        victim = lab.process("postgres")
        os.kill(victim.pid, signal.SIGKILL)
        poll(lambda: not victim.alive)
        traffic.more(20)
        assert verdicts(lab) == [True, False]
        assert [row["name"] for row in lab.status() if row["state"] == "dead"] == ["postgres"]
        # `lab run` starts it again.
        lab.run("shop/after", node="node-1", labels=["app=client"])
        assert verdicts(lab, "shop/after") == [True, False, True]
        lab.delete("shop/after")
    assert traffic.answers.count(False) == 0


def test_a_lab_keeps_the_number_of_its_replicas(replicated: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="2 replicas each, not 3") as caught:
        replicated.up(replicas=3)
    assert caught.value.reason == "REPLICAS_DIFFER"
    with pytest.raises(BadInput, match="expected 1 to"):
        replicated.up(replicas=0)
    assert run(["--dir", str(replicated.paths.directory), "lab", "status"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown for name in (*VICTIMS, "postgres", "node-1"))


def test_a_lab_whose_records_are_lost_is_removed_all_the_same(replicated: Lab) -> None:
    paths = replicated.paths
    server = replicated.process("postgres")
    shutil.rmtree(paths.run)
    paths.state.unlink()
    (paths.postgres / "process.json").unlink()
    swept = sweep.remove(paths)
    assert swept.postgres and swept.processes == len(VICTIMS) + 3
    assert not server.alive
    assert sweep.leftovers(paths) == []
