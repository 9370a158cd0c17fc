"""Addresses, pools, nodes and identities from the command line, on a lab whose pods run all the while."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fimbria.ipam.v1 import ipam_pb2

from cli.__main__ import run
from cli.client import call
from cli.lab.lab import Lab
from tests.cluster.conftest import CLIENT, WEB
from tests.patience import patient

pytestmark = pytest.mark.cluster

OK, FAILED, UNVERIFIED, FOUND = 0, 1, 3, 5
LEAKED = "dead0123/eth0"


@pytest.fixture(scope="module")
def pods(lab: Lab) -> dict[str, dict[str, Any]]:
    """A pod on each node; their rows by name."""
    rows = [
        lab.run(WEB, node="node-1", labels=["app=web"]),
        lab.run(CLIENT, node="node-2", labels=["app=client"]),
    ]
    return {f"{row['namespace']}/{row['name']}": row for row in rows}


@pytest.fixture
def fimbria(lab: Lab, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command that ends with `code`, and returns what it prints as JSON."""

    def command(*arguments: str, code: int = OK) -> Any:
        ended = run(["--dir", str(lab.paths.directory), *arguments, "-o", "json"])
        told = capsys.readouterr()
        assert ended == code, (told.out, told.err)
        return json.loads(told.out)

    return command


def leak(lab: Lab, node: str, owner: str = LEAKED) -> list[str]:
    """Addresses that an owner without endpoint holds on `node`."""
    request = ipam_pb2.AllocateRequest(node=node, owner=owner)
    made = call(lab.cluster.addresses.Allocate, request)
    return [address for address in (made.address, made.ipv6) if address]


def held_on(lab: Lab, node: str) -> dict[str, str]:
    request = ipam_pb2.ListAddressesRequest(node=node, page_size=1000)
    listed = call(lab.cluster.addresses.ListAddresses, request)
    return {item.owner: item.address for item in listed.addresses}


def kill(lab: Lab, name: str) -> None:
    """SIGKILL; returns when the process is gone."""
    pid = lab.process(name).pid
    end = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([end], [], [], patient(10.0))[0]
    finally:
        os.close(end)


def test_a_leak_is_found_and_given_back_and_live_addresses_stay(
    lab: Lab, pods: dict[str, dict[str, Any]], fimbria: Callable[..., Any], tmp_path: Path
) -> None:
    live = held_on(lab, "node-1")
    assert pods[WEB]["ips"][0] in live.values()
    assert fimbria("ipam", "check", "--min-age", "0")["findings"] == []
    addresses = leak(lab, "node-1")
    assert fimbria("ipam", "check")["findings"] == []

    report = str(tmp_path / "report.json")
    told = fimbria("ipam", "check", "--min-age", "0", "--report", report, code=FOUND)
    assert [node["verified"] for node in told["nodes"]] == [True, True]
    assert [(one["kind"], one["node"], one["holder"]) for one in told["findings"]] == [
        ("leaked", "node-1", LEAKED)
    ] * len(addresses)
    assert {one["address"] for one in told["findings"]} == set(addresses)

    released = fimbria("ipam", "release", "--from-report", report)["outcomes"]
    assert [(one["holder"], one["outcome"]) for one in released] == [(LEAKED, "released")]
    assert held_on(lab, "node-1") == live
    on_hold = fimbria("ip", "list", "--on-hold", "--node", "node-1")
    assert {row["address"] for row in on_hold} == set(addresses)
    assert {row["owner"] for row in on_hold} == {LEAKED}
    assert fimbria("ipam", "check", "--min-age", "0")["findings"] == []
    assert lab.probe_many([(CLIENT, WEB, 80, "TCP")])[0].allowed


def test_a_live_pods_address_is_never_given_back(
    lab: Lab, pods: dict[str, dict[str, Any]], fimbria: Callable[..., Any], tmp_path: Path
) -> None:
    leak(lab, "node-2")
    report = tmp_path / "report.json"
    fimbria("ipam", "check", "--min-age", "0", "--report", str(report), code=FOUND)
    # A report that calls a live pod's addresses leaked, allocation and all.
    live = held_on(lab, "node-2")
    told = json.loads(report.read_text())
    (owner,) = [owner for owner, address in live.items() if address == pods[CLIENT]["ips"][0]]
    listed = call(lab.cluster.addresses.ListAddresses, ipam_pb2.ListAddressesRequest(node="node-2"))
    (created,) = [item.create_time.ToJsonString() for item in listed.addresses if item.owner == owner]
    told["findings"].append(
        {"kind": "leaked", "node": "node-2", "holder": owner, "create_time": created, "address": live[owner]}
    )
    report.write_text(json.dumps(told))
    outcomes = fimbria("ipam", "release", "--from-report", str(report))["outcomes"]
    assert {one["holder"]: one["outcome"] for one in outcomes} == {LEAKED: "released", owner: "left"}
    assert held_on(lab, "node-2") == {owner: live[owner]}


def test_a_pool_is_extended_and_drained_under_its_pods(
    lab: Lab, pods: dict[str, dict[str, Any]], fimbria: Callable[..., Any]
) -> None:
    before = fimbria("pool", "get", "default")
    assert before["usage"][0]["held"] == 2
    assert before["usage"][0]["capacity"] >= before["usage"][0]["held"] + before["usage"][0]["free"]
    told = fimbria("pool", "extend", "default", "10.99.0.0/16")
    assert told["cidrs"] == [*before["cidrs"], "10.99.0.0/16"]
    assert told["revision"] > before["revision"]
    old = before["cidrs"][0]
    told = fimbria("pool", "drain", "default", old)
    assert old not in told["cidrs"]
    (draining,) = told["draining"]
    assert (draining["cidr"], draining["node_cidrs"]) == (old, 2) and draining["addresses"] >= 2
    made = lab.run("shop/late", node="node-1")
    assert made["ips"][0].startswith("10.99.")
    nodes = {row["name"]: row for row in fimbria("node", "list")}
    assert [(one["cidr"].startswith("10.99."), one["draining"]) for one in nodes["node-1"]["cidrs"][::2]] == [
        (False, True),
        (True, False),
    ]
    rows = {row["prefix"]: row for row in fimbria("ip", "list")}
    assert rows[f"{made['ips'][0]}/32"]["pool"] == "default"
    assert [
        probe.allowed for probe in lab.probe_many([(CLIENT, WEB, 80, "TCP"), ("shop/late", WEB, 80, "TCP")])
    ]
    lab.delete("shop/late")
    told = fimbria("pool", "extend", "default", old)
    assert told["draining"] == [] and set(told["cidrs"]) == {*before["cidrs"], "10.99.0.0/16"}


def test_identities_are_counted_and_their_holders_named(
    lab: Lab, pods: dict[str, dict[str, Any]], fimbria: Callable[..., Any]
) -> None:
    told = fimbria("identity", "status")
    spaces = {space["name"]: space for space in told["spaces"]}
    assert spaces["cluster"]["taken"] >= 2 and spaces["cluster"]["size"] == 65280
    assert told["collection"]["backlog"] == 0
    assert {"node/node-1", "node/node-2"} <= {row["name"] for row in fimbria("identity", "holders")}
    patterns = fimbria("identity", "filter", "show")["patterns"]
    assert patterns
    would = fimbria("identity", "filter", "set", *patterns, "!k8s:app$", "--dry-run")
    assert not would["applied"]
    assert {change["identity"] for change in would["changes"]} >= {
        pods[WEB]["identity"],
        pods[CLIENT]["identity"],
    }
    assert would["merged"] >= 1
    assert fimbria("identity", "filter", "show")["patterns"] == patterns


def test_a_node_frees_nothing_until_it_is_declared_gone(
    lab: Lab,
    pods: dict[str, dict[str, Any]],
    fimbria: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    delete = ["--dir", str(lab.paths.directory), "node", "delete", "node-2"]
    assert run(delete) == FAILED
    assert "its loader answers" in capsys.readouterr().err
    kill(lab, "node-2")

    told = fimbria("ipam", "check", "--min-age", "0", "--report", str(tmp_path / "r"), code=UNVERIFIED)
    assert [(node["node"], node["verified"]) for node in told["nodes"]] == [
        ("node-1", True),
        ("node-2", False),
    ]
    assert told["findings"] == []
    assert run(delete) == FAILED
    assert "it holds " in capsys.readouterr().err
    before = fimbria("node", "get", "node-2")
    assert before["addresses_held"] and before["ipcache_entries"] and before["lease"]

    gone = fimbria("node", "delete", "node-2", "--gone")
    assert gone["deleted"] and gone["pod_cidrs"] == before["pod_cidrs"]
    assert gone["ipcache_entries"] == before["ipcache_entries"]
    assert [row["name"] for row in fimbria("node", "list")] == ["node-1"]
    assert {row["node"] for row in fimbria("ip", "list")} == {"node-1"}
    assert "node/node-2" not in {row["name"] for row in fimbria("identity", "holders")}
    assert held_on(lab, "node-2") == {} and pods[WEB]["ips"][0] in held_on(lab, "node-1").values()
    assert fimbria("node", "delete", "node-2")["deleted"] is False
