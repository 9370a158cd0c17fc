"""`fimbria pool …`: what a change makes of a pool, whoever changes it at the same time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fimbria.ipam.v1 import ipam_pb2

from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_cluster import FakeCluster


@pytest.fixture(autouse=True)
def blue(cluster: FakeCluster) -> ipam_pb2.Pool:
    pool = ipam_pb2.Pool(
        name="blue", cidrs=["10.1.0.0/16", "fd00:1::/48"], node_mask_size=24, node_mask_size_ipv6=112,
        node_cidrs_total=256, node_cidrs_used=2, excluded=["10.1.0.0/28", "10.1.1.4-10.1.1.9"], revision=1,
    )  # fmt: skip
    pool.usage.add(family="IPv4", node_cidrs_total=256, node_cidrs_used=2, capacity=500, held=7, on_hold=3)
    pool.usage.add(family="IPv6", node_cidrs_total=9, node_cidrs_used=2, capacity=1000, held=7, excluded=4)
    cluster.ipam.pools["blue"] = pool
    return pool


def ok(command: Run, *arguments: str) -> dict[str, Any]:
    code, out, err = command("pool", *arguments, "-o", "json")
    assert code == 0, err
    told: dict[str, Any] = json.loads(out)
    return told


def test_a_list_has_what_it_had_and_how_full_each_pool_is(command: Run) -> None:
    code, out, _ = command("pool", "list")
    assert code == 0
    header, row = (line.split() for line in out.splitlines())
    assert " ".join(header) == "POOL CIDRS NODE MASK USED TOTAL HELD ON HOLD FREE DRAINING"
    assert row == ["blue", "10.1.0.0/16,fd00:1::/48", "/24,/112", "2", "256", "7/7", "3/0", "490/993", "-"]
    (listed,) = json.loads(command("pool", "list", "-o", "json")[1])
    for key in ("name", "cidrs", "node_mask_size", "node_mask_size_ipv6", "node_masks"):
        assert listed[key]
    assert (listed["node_cidrs_total"], listed["node_cidrs_used"], listed["revision"]) == (256, 2, 1)
    assert listed["usage"][0]["free"] == 490


def test_one_pool_is_shown_with_each_family(command: Run) -> None:
    code, out, _ = command("pool", "get", "blue")
    assert code == 0
    assert "excluded        10.1.0.0/28,10.1.1.4-10.1.1.9" in out
    assert out.splitlines()[-1].split() == ["IPv6", "2", "9", "1000", "7", "0", "993", "4"]
    code, _, err = command("pool", "get", "green")
    assert code == 1 and "POOL_NOT_FOUND" in err


def test_cidrs_are_added_once_and_in_canonical_form(command: Run, blue: ipam_pb2.Pool) -> None:
    told = ok(command, "extend", "blue", "10.2.0.0/16", "FD00:2::/48", "10.2.0.0/16", "10.1.0.0/16")
    assert told["cidrs"] == ["10.1.0.0/16", "fd00:1::/48", "10.2.0.0/16", "fd00:2::/48"]
    assert told["excluded"] == ["10.1.0.0/28", "10.1.1.4-10.1.1.9"]
    ok(command, "extend", "blue", "10.2.0.0/16")
    assert blue.revision == 2


def test_drained_cidrs_leave_and_may_come_back(command: Run) -> None:
    told = ok(command, "drain", "blue", "10.1.0.0/16")
    assert told["cidrs"] == ["fd00:1::/48"]
    assert told["draining"] == [{"cidr": "10.1.0.0/16", "node_cidrs": 1, "addresses": 2}]
    assert ok(command, "drain", "blue", "10.1.0.0/16") == told
    assert "10.1.0.0/16 (1 node CIDR and 2 addresses left)" in command("pool", "get", "blue")[1]
    assert ok(command, "extend", "blue", "10.1.0.0/16")["cidrs"] == ["fd00:1::/48", "10.1.0.0/16"]


def test_ranges_are_excluded_and_included_however_they_are_written(command: Run) -> None:
    told = ok(command, "exclude", "blue", "10.1.2.7", "10.1.1.4 - 10.1.1.9")
    assert told["excluded"] == ["10.1.0.0/28", "10.1.1.4-10.1.1.9", "10.1.2.7"]
    told = ok(command, "include", "blue", "10.1.0.0-10.1.0.15", "10.1.2.7/32")
    assert told["excluded"] == ["10.1.1.4-10.1.1.9"]


def test_a_pool_is_made_for_whom_it_is_for_and_may_change_that(command: Run) -> None:
    told = ok(
        command, "create", "green", "10.3.0.0/16", "--node-mask", "26", "--exclude", "10.3.0.0/24",
        "--pods", "app=web", "--namespaces", "team in (a,b)",
    )  # fmt: skip
    assert (told["node_mask_size"], told["excluded"]) == (26, ["10.3.0.0/24"])
    assert (told["pod_selector"], told["namespace_selector"]) == ("app=web", "team in (a,b)")
    told = ok(command, "select", "green", "--pods", "", "--no-namespaces")
    assert (told["pod_selector"], told["namespace_selector"]) == ("(everything)", None)
    assert ok(command, "delete", "green") == {"name": "green", "deleted": True}


def test_a_pool_in_use_stays_and_the_way_out_is_told(command: Run, cluster: FakeCluster) -> None:
    code, _, err = command("pool", "delete", "blue")
    assert code == 1 and "POOL_IN_USE" in err and "hint: CIDRs go back when" in err
    assert "blue" in cluster.ipam.pools


def test_somebody_elses_change_is_built_upon(cluster: FakeCluster, command: Run, blue: ipam_pb2.Pool) -> None:
    cluster.ipam.others_change_first = 2
    told = ok(command, "extend", "blue", "10.200.0.0/16")
    assert told["cidrs"] == ["10.1.0.0/16", "fd00:1::/48", "10.2.0.0/16", "10.3.0.0/16", "10.200.0.0/16"]


def test_a_pool_that_never_rests_is_given_up(cluster: FakeCluster, command: Run) -> None:
    cluster.ipam.others_change_first = 1000
    code, _, err = command("pool", "extend", "blue", "10.200.0.0/16")
    assert code == 1 and "POOL_CHANGED" in err
    assert cluster.ipam.others_change_first > 900


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extend", "blue", "10.1.2.3/16"], "host bits"),
        (["extend", "blue", "ten"], "CIDR 'ten' is not valid"),
        (["extend", "blue"], "CIDR..."),
        (["drain", "blue", "10.9.0.0/16"], "no CIDR 10.9.0.0/16; it has 10.1.0.0/16, fd00:1::/48"),
        (["drain", "blue", "10.1.0.0/16", "fd00:1::/48"], "no CIDR in service"),
        (["exclude", "blue", "10.1.0.9-10.1.0.4"], "FIRST not above LAST"),
        (["exclude", "blue", "10.1.0.9-fd00::1"], "of one family"),
        (["exclude", "blue", "10.1.0.300"], "names no addresses"),
        (["include", "blue", "10.1.0.0/29"], "does not exclude 10.1.0.0/29; it excludes 10.1.0.0/28"),
        (["select", "blue"], "nothing was asked for"),
        (["select", "blue", "--pods", "a=b", "--no-pods"], "set and removed"),
        (["select", "blue", "--pods", "a = = b"], "is no requirement"),
        (["create", "green", "10.3.0.0/16", "--node-mask", "200"], "--node-mask 200"),
    ],
)
def test_what_cannot_be_is_bad_input_and_changes_nothing(
    command: Run, blue: ipam_pb2.Pool, arguments: list[str], said: str
) -> None:
    code, out, err = command("pool", *arguments)
    assert (code, out) == (2, "") and said in err
    assert blue.revision == 1
