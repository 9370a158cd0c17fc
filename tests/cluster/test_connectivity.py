"""Pods of a lab without any policy, as a user makes and reaches them."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import permutations

import pytest

from cli.__main__ import run
from cli.errors import BadInput
from cli.lab import netns
from cli.lab.lab import Lab
from tests.cluster.conftest import CLIENT, STRANGER, WEB

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
def test_every_pod_reaches_every_other_within_a_node_and_across(
    shop: Lab, protocol: str, family: int
) -> None:
    pairs = list(permutations((WEB, CLIENT, STRANGER), 2))
    results = shop.probe_many([(source, target, 80, protocol) for source, target in pairs], family=family)
    assert [(r.source, r.target, r.how) for r in results if not r.allowed] == []
    assert all((":" in r.target_ip) == (family == 6) for r in results)


@pytest.mark.parametrize("family", [4, 6])
def test_the_node_reaches_its_pods_and_they_reach_it(shop: Lab, family: int) -> None:
    results = shop.probe_many(
        [
            ("@host", WEB, 80, "TCP"),
            ("@host", CLIENT, 80, "UDP"),
            (WEB, "@host", 80, "TCP"),
            (CLIENT, "@host", 80, "UDP"),
        ],
        family=family,
    )
    assert [(r.source, r.target, r.how) for r in results if not r.allowed] == []


def test_pods_reach_the_world_outside_and_are_reached_from_there(shop: Lab) -> None:
    results = shop.probe_many(
        [
            (WEB, "198.51.100.7", 80, "TCP"),
            ("198.18.0.1", CLIENT, 80, "UDP"),
            (CLIENT, "172.31.0.1", 80, "TCP"),
            (WEB, "2001:db8::7", 80, "TCP"),
            ("2001:db8:1::1", CLIENT, 80, "UDP"),
            (CLIENT, "fd00:ac1f::1", 80, "TCP"),
        ]
    )
    assert [(r.source, r.target, r.how) for r in results if not r.allowed] == []
    # The addresses were borrowed for the probe.
    assert not {"198.51.100.7", "2001:db8::7"} & set(
        netns.ip("addr", netns=shop.paths.underlay_netns).split()
    )


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_reaches_itself(shop: Lab, family: int) -> None:
    assert shop.probe_many([(WEB, WEB, 80, "TCP")], family=family)[0].allowed


def test_a_probe_has_one_family(shop: Lab) -> None:
    for probe, family in (
        (("198.18.0.1", "2001:db8::1", 80, "TCP"), None),
        ((WEB, "2001:db8::1", 80, "TCP"), 4),
        ((shop.pods()[0]["ips"][1], WEB, 80, "TCP"), 4),
    ):
        with pytest.raises(BadInput, match="not of one family"):
            shop.probe_many([probe], family=family)


def test_the_list_tells_where_a_pod_is_and_who(shop: Lab) -> None:
    rows = {f"{row['namespace']}/{row['name']}": row for row in shop.pods()}
    web = rows[WEB]
    assert web["node"] == "node-1" and rows[CLIENT]["node"] == "node-2"
    assert web["labels"] == {"app": "web"}
    assert web["identity"] >= 256 and web["endpoint_id"] >= 1
    assert len({row["identity"] for row in rows.values()}) == 3
    name = web["netns"].rpartition("/")[2]
    shown = json.loads(netns.ip("-j", "addr", "show", "eth0", netns=name))
    held = [info["local"] for info in shown[0]["addr_info"] if info["scope"] == "global"]
    assert sorted(held) == sorted(web["ips"])
    # IPv4 first: whoever takes one takes that.
    assert [":" in ip for ip in web["ips"]] == [False, True]
    for family in ("-4", "-6"):
        routes = json.loads(netns.ip("-j", family, "route", "show", "default", netns=name))
        # What fits into VXLAN on an underlay of 1500 bytes.
        assert [metric["mtu"] for metric in routes[0]["metrics"]] == [1450]


def test_exec_passes_output_and_exit_code_and_keeps_sys(shop: Lab) -> None:
    base = ["fimbria", "--dir", str(shop.paths.directory), "lab", "exec", WEB, "--"]
    command = [sys.executable, "-m", "cli", *base[1:]]
    done = subprocess.run(
        [*command, "sh", "-c", "ip -4 -o addr; exit 7"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 7
    row = next(row for row in shop.pods() if row["name"] == "web")
    assert row["ips"][0] in done.stdout
    pins = subprocess.run([*command, "ls", str(shop.paths.pins)], capture_output=True, text=True, check=True)
    assert pins.stdout.split() == ["node-1", "node-2"]


def test_a_pod_may_be_removed_and_made_again(shop: Lab) -> None:
    row = shop.run("shop/short", node="node-1", labels=["app=short"])
    assert shop.probe_many([(CLIENT, "shop/short", 80, "TCP")])[0].allowed
    shop.delete("shop/short")
    assert "shop/short" not in {f"{r['namespace']}/{r['name']}" for r in shop.pods()}
    assert not netns.exists(row["netns"].rpartition("/")[2])
    again = shop.run("shop/short", node="node-2", labels=["app=short"])
    assert again["identity"] == row["identity"] and again["node"] == "node-2"
    assert shop.probe_many([(WEB, "shop/short", 80, "TCP")])[0].allowed
    shop.delete("shop/short")


def test_a_command_in_a_pod_ends_with_the_pod(shop: Lab) -> None:
    shop.run("shop/short")
    child = shop.command("shop/short", ["sleep", "60"])
    shop.delete("shop/short")
    assert child.wait(5) == -9


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["lab", "status"],
        ["lab", "list"],
        ["lab", "namespace", "list"],
        ["endpoint", "list"],
        ["identity", "list", "--reserved"],
        ["ip", "list"],
        ["node", "list"],
        ["pool", "list"],
        ["policy", "list"],
        ["flows"],
        ["trace", "list"],
    ],
)
def test_whatever_lists_prints_a_table_and_json(
    shop: Lab, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--dir", str(shop.paths.directory)]
    assert run([*where, *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[0].isupper()
    assert run([*where, *arguments, "-o", "json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)
