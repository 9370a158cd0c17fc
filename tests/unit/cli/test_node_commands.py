"""`fimbria node …` and `fimbria ip list`: what is kept for a node, and what is freed when it is gone."""

from __future__ import annotations

import json

import pytest
from fimbria.identity.v1 import identity_pb2

from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_cluster import NOW, SECOND, FakeCluster, Held


@pytest.fixture
def busy(cluster: FakeCluster) -> FakeCluster:
    """A cluster whose node-1 has a pod, entries and a lease."""
    cluster.pod("node-1", "a/eth0", "10.244.1.2", "fd00:1::2")
    cluster.pod("node-2", "b/eth0", "10.244.2.2")
    for prefix, node in (
        ("10.244.1.2/32", "node-1"),
        ("fd00:1::2/128", "node-1"),
        ("10.244.2.2/32", "node-2"),
    ):
        cluster.identity.entries.append(identity_pb2.IpCacheEntry(prefix=prefix, identity=256, node=node))
    cluster.identity.holders = {"node/node-1": 3, "node/node-2": 1, "policy": 7}
    return cluster


def test_nodes_are_listed_with_the_pools_of_their_cidrs(command: Run) -> None:
    code, out, _ = command("node", "list")
    assert code == 0
    assert out.splitlines()[1].split() == ["node-1", "172.31.0.1", "default", "10.244.1.0/24", "-"]
    first = json.loads(command("node", "list", "-o", "json")[1])[0]
    assert first["pod_cidrs"] == ["10.244.1.0/24"]
    assert first["cidrs"] == [{"cidr": "10.244.1.0/24", "pool": "default", "draining": False}]


def test_one_node_is_shown_with_what_is_kept_for_it(busy: FakeCluster, command: Run) -> None:
    told = json.loads(command("node", "get", "node-1", "-o", "json")[1])
    assert (told["owners"], told["addresses_held"], told["ipcache_entries"]) == (1, 2, 2)
    assert (told["lease"], told["identities"]) == (True, 3)
    assert "10.244.1.0/24 (default)" in command("node", "get", "node-1")[1]
    code, _, err = command("node", "get", "node-9")
    assert code == 2 and "node 'node-9' is not registered" in err


def test_a_node_that_does_not_look_gone_is_kept(busy: FakeCluster, command: Run) -> None:
    code, _, err = command("node", "delete", "node-1")
    assert code == 1
    assert "it holds 2 addresses, and its loader answers and serves 1 endpoint(s)" in err
    assert "NODE_IN_USE" in err and "fimbria node delete node-1 --gone" in err
    busy.kill("node-1")
    code, _, err = command("node", "delete", "node-1")
    assert code == 1 and "it holds 2 addresses" in err and "loader" not in err
    assert "node-1" in busy.ipam.nodes and len(busy.identity.entries) == 3


def test_a_loader_that_answers_keeps_its_node(busy: FakeCluster, command: Run) -> None:
    busy.ipam.held.clear()
    code, _, err = command("node", "delete", "node-1")
    assert code == 1 and "its loader answers" in err
    busy.kill("node-1")
    assert command("node", "delete", "node-1")[0] == 0


@pytest.mark.parametrize("option", ["--gone", "--force"])
def test_a_node_that_is_gone_frees_all_that_it_had_and_nothing_else(
    busy: FakeCluster, command: Run, option: str
) -> None:
    code, out, _ = command("node", "delete", "node-1", option)
    assert code == 0
    assert out == (
        "node node-1 is gone; freed: 10.244.1.0/24 (default), 2 addresses of 1 owner, 2 ipcache"
        " entries, the use of 3 identities\n"
    )
    assert list(busy.ipam.nodes) == ["node-2"] and list(busy.ipam.held) == [("node-2", "b/eth0")]
    assert [entry.node for entry in busy.identity.entries] == ["node-2"]
    assert set(busy.identity.holders) == {"node/node-2", "policy"}
    code, out, _ = command("node", "delete", "node-1", option)
    assert code == 0 and "nothing to free" in out


def test_a_deletion_that_was_cut_short_is_finished(busy: FakeCluster, command: Run) -> None:
    del busy.ipam.nodes["node-1"], busy.ipam.held["node-1", "a/eth0"]
    busy.kill("node-1")
    told = json.loads(command("node", "delete", "node-1", "-o", "json")[1])
    assert told["deleted"] and not told["registered"]
    assert (told["ipcache_entries"], told["identities"]) == (2, 3)
    assert [entry.node for entry in busy.identity.entries] == ["node-2"]
    assert "node/node-1" not in busy.identity.holders


def test_addresses_are_listed_with_their_pools(busy: FakeCluster, command: Run) -> None:
    busy.ipam.held["node-2", "b/eth0"].pool = "blue"
    rows = json.loads(command("ip", "list", "-o", "json")[1])
    assert [(row["prefix"], row["pool"]) for row in rows] == [
        ("10.244.1.2/32", "default"),
        ("fd00:1::2/128", "default"),
        ("10.244.2.2/32", "blue"),
    ]
    assert command("ip", "list")[1].splitlines()[0].split()[-1] == "POOL"


def test_without_ipam_the_list_is_there_all_the_same(
    busy: FakeCluster, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIMBRIA_IPAM_TARGET")
    code, out, err = command("ip", "list", "-o", "json")
    assert code == 0 and "warning: the addresses' pools are not known" in err
    assert [row["pool"] for row in json.loads(out)] == ["", "", ""]


def test_addresses_on_hold_are_listed_with_the_end_of_it(cluster: FakeCluster, command: Run) -> None:
    held = Held(("10.244.1.9",)).message("node-1", "gone/eth0")
    held.hold_until.FromNanoseconds(NOW + 30 * SECOND)
    cluster.ipam.on_hold.append(held)
    (row,) = json.loads(command("ip", "list", "--on-hold", "-o", "json")[1])
    assert row == {
        "address": "10.244.1.9",
        "pool": "default",
        "node": "node-1",
        "owner": "gone/eth0",
        "hold_until": "2027-01-15T08:00:30Z",
    }
    assert json.loads(command("ip", "list", "--on-hold", "--node", "node-2", "-o", "json")[1]) == []
