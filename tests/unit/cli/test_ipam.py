"""`fimbria ipam check` and `release`: what is found, what is given back, and what never is."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from cli.__main__ import run
from cli.errors import BadInput
from cli.ipam_check import parse_seconds
from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_cluster import NOW, SECOND, FakeCluster, Held

FOUND, UNREACHABLE = 5, 3


def check(command: Run, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = command("ipam", "check", *arguments, "-o", "json")
    return code, json.loads(out)


def kinds(told: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(each["kind"], each["address"], each["node"]) for each in told["findings"]]


def report_of(command: Run, tmp_path: Path) -> str:
    path = tmp_path / "report.json"
    check(command, "--report", str(path))
    return str(path)


def release(command: Run, report: str, *arguments: str) -> tuple[int, dict[str, str]]:
    code, out, _ = command("ipam", "release", "--from-report", report, *arguments, "-o", "json")
    return code, {each["holder"]: each["outcome"] for each in json.loads(out)["outcomes"]}


def test_a_cluster_that_agrees_has_no_findings(cluster: FakeCluster, command: Run) -> None:
    for number in range(2, 7):
        cluster.pod("node-1", f"c{number}/eth0", f"10.244.1.{number}", f"fd00:1::{number}")
    cluster.pod("node-2", "c2/eth0", "10.244.2.2")
    code, told = check(command)
    assert (code, told["findings"]) == (0, [])
    assert [
        (node["node"], node["verified"], node["endpoints"], node["checked"]) for node in told["nodes"]
    ] == [
        ("node-1", True, 5, 5),
        ("node-2", True, 1, 1),
    ]
    code, out, _ = command("ipam", "check")
    assert code == 0 and out == "0 findings; 6 owners compared with 6 endpoints on 2 nodes\n"


def test_a_leak_is_found_told_and_written_for_its_reader_only(
    cluster: FakeCluster, command: Run, tmp_path: Path
) -> None:
    cluster.pod("node-1", "live/eth0", "10.244.1.2")
    cluster.leak("node-1", "dead/eth0", "10.244.1.9", "fd00:1::9")
    path = tmp_path / "report.json"
    code, told = check(command, "--report", str(path))
    assert code == FOUND
    assert kinds(told) == [("leaked", "10.244.1.9", "node-1"), ("leaked", "fd00:1::9", "node-1")]
    assert told["findings"][0]["holder"] == "dead/eth0"
    assert told["version"] == 1 and told["min_age_seconds"] == 60
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["findings"] == told["findings"]
    assert [each.name for each in tmp_path.iterdir() if "report" in each.name] == ["report.json"]
    code, out, err = command("ipam", "check")
    assert code == FOUND and "leaked" in out and "dead/eth0" in out
    assert "fimbria ipam release --from-report" in err


def test_what_is_young_or_being_made_is_not_called_leaked(cluster: FakeCluster, command: Run) -> None:
    cluster.leak("node-1", "young/eth0", "10.244.1.9", age=10)
    cluster.leak("node-1", "made/eth0", "10.244.1.10")
    cluster.loaders["node-1"].endpoints["made/eth0"] = ()
    assert check(command)[0] == 0
    code, told = check(command, "--min-age", "5s")
    assert code == FOUND and kinds(told) == [("leaked", "10.244.1.9", "node-1")]


def test_a_pod_that_goes_while_it_is_looked_at_is_no_finding(cluster: FakeCluster, command: Run) -> None:
    cluster.pod("node-1", "going/eth0", "10.244.1.2")
    del cluster.ipam.held["node-1", "going/eth0"]
    cluster.ipam.after_check = cluster.loaders["node-1"].endpoints.clear
    assert check(command)[0] == 0


def test_users_without_holder_and_with_another_are_told(cluster: FakeCluster, command: Run) -> None:
    cluster.loaders["node-1"].endpoints |= {"a/eth0": ("10.244.1.2",), "b/eth0": ("10.244.1.3",)}
    cluster.leak("node-2", "b/eth0", "10.244.1.3", age=0)
    code, told = check(command)
    assert code == FOUND
    assert kinds(told) == [("not_held", "10.244.1.2", "node-1"), ("held_by_another", "10.244.1.3", "node-1")]
    assert told["findings"][1]["holder_node"] == "node-2"
    assert told["findings"][0]["users"] == [{"node": "node-1", "owner": "a/eth0"}]


def test_an_address_on_two_nodes_is_told_and_what_it_hangs_on_is_not_called_leaked(
    cluster: FakeCluster, command: Run, tmp_path: Path
) -> None:
    cluster.pod("node-1", "a/eth0", "10.244.1.2")
    cluster.loaders["node-2"].endpoints["b/eth0"] = ("10.244.1.2",)
    cluster.leak("node-1", "old/eth0", "10.244.1.5", "fd00:1::5")
    cluster.loaders["node-2"].endpoints["c/eth0"] = ("fd00:1::5",)
    code, told = check(command)
    assert code == FOUND
    assert kinds(told) == [
        ("held_by_another", "10.244.1.2", "node-2"),
        ("held_by_another", "fd00:1::5", "node-2"),
        ("used_on_several_nodes", "10.244.1.2", "node-1"),
    ]
    assert told["findings"][2]["holder"] == "a/eth0"
    assert [user["node"] for user in told["findings"][2]["users"]] == ["node-1", "node-2"]
    assert release(command, report_of(command, tmp_path)) == (0, {})


def test_of_a_node_that_cannot_be_asked_nothing_is_called_leaked(cluster: FakeCluster, command: Run) -> None:
    cluster.leak("node-2", "dead/eth0", "10.244.2.9")
    cluster.kill("node-2")
    code, told = check(command)
    assert (code, told["findings"]) == (UNREACHABLE, [])
    assert [node["verified"] for node in told["nodes"]] == [True, False]
    assert "does not answer" in told["nodes"][1]["problem"]
    cluster.leak("node-1", "dead/eth0", "10.244.1.9")
    code, out, _ = command("ipam", "check")
    assert code == FOUND and "unverified: node-2" in out and "10.244.2.9" not in out
    assert check(command, "--node", "node-1")[0] == FOUND


@pytest.mark.parametrize("case", ["damaged", "misled", "no loader", "not registered"])
def test_a_node_that_may_not_show_all_is_unverified(
    cluster: FakeCluster, command: Run, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.leak("node-2", "dead/eth0", "10.244.2.9")
    if case == "damaged":
        cluster.loaders["node-2"].problems = ["/var/lib/x.damaged cannot be read: set aside before"]
        cluster.loaders["node-2"].endpoints["some/eth0"] = ("10.244.2.7",)
        cluster.ipam.held["node-2", "some/eth0"] = Held(("10.244.2.7",))
    elif case == "misled":
        cluster.loaders["node-2"].node = "node-3"
    elif case == "no loader":
        monkeypatch.setenv("FIMBRIA_LOADER_TARGETS", f"node-1=unix:{cluster.directory}/node-1.sock")
    else:
        del cluster.ipam.nodes["node-2"]
    code, told = check(command)
    assert (code, told["findings"]) == (UNREACHABLE, [])
    assert [node["verified"] for node in told["nodes"]] == [True, False]


def test_leaks_are_given_back_and_live_addresses_are_not(
    cluster: FakeCluster, command: Run, tmp_path: Path
) -> None:
    cluster.pod("node-1", "live/eth0", "10.244.1.2")
    cluster.leak("node-1", "dead/eth0", "10.244.1.9", "fd00:1::9")
    cluster.leak("node-2", "dead/eth0", "10.244.2.9")
    report = report_of(command, tmp_path)
    assert release(command, report, "--dry-run") == (0, {"dead/eth0": "would be released"})
    assert cluster.ipam.released == []
    code, out, _ = command("ipam", "release", "--from-report", report)
    assert code == 0 and "2 leaks in the report: 2 released" in out
    assert sorted(cluster.ipam.held) == [("node-1", "live/eth0")]
    assert release(command, report) == (0, {"dead/eth0": "gone"})
    assert check(command)[0] == 0


def test_what_is_not_a_leak_any_more_is_left(cluster: FakeCluster, command: Run, tmp_path: Path) -> None:
    for owner, address in (("back", "2"), ("again", "3"), ("used", "4"), ("away", "5"), ("leak", "6")):
        cluster.leak("node-1", f"{owner}/eth0", f"10.244.1.{address}")
    report = report_of(command, tmp_path)
    cluster.loaders["node-1"].endpoints["back/eth0"] = ("10.244.1.2",)
    cluster.ipam.held["node-1", "again/eth0"] = Held(("10.244.1.3",), NOW - 7 * SECOND)
    cluster.loaders["node-2"].endpoints["stranger/eth0"] = ("10.244.1.4",)
    del cluster.ipam.held["node-1", "away/eth0"]
    code, outcomes = release(command, report)
    assert (code, outcomes) == (
        0,
        {
            "back/eth0": "left",
            "again/eth0": "gone",
            "used/eth0": "left",
            "away/eth0": "gone",
            "leak/eth0": "released",
        },
    )
    assert cluster.ipam.released == ["leak/eth0"]


def test_of_a_node_that_cannot_be_asked_nothing_is_given_back(
    cluster: FakeCluster, command: Run, tmp_path: Path
) -> None:
    cluster.leak("node-1", "one/eth0", "10.244.1.9")
    cluster.leak("node-2", "two/eth0", "10.244.2.9")
    report = report_of(command, tmp_path)
    cluster.kill("node-2")
    assert release(command, report) == (UNREACHABLE, {"one/eth0": "released", "two/eth0": "unverified"})
    assert cluster.ipam.released == ["one/eth0"]


def test_an_allocation_that_changes_under_the_release_stays(
    cluster: FakeCluster, command: Run, tmp_path: Path
) -> None:
    cluster.leak("node-1", "dead/eth0", "10.244.1.9")
    report = report_of(command, tmp_path)

    def renew() -> None:
        cluster.ipam.held["node-1", "dead/eth0"] = Held(("10.244.1.10",), NOW)

    cluster.ipam.before_release = renew
    assert release(command, report) == (0, {"dead/eth0": "gone"})
    assert ("node-1", "dead/eth0") in cluster.ipam.held


@pytest.mark.parametrize("addresses", [("10.244.1.9",), ()])
def test_an_endpoint_that_appears_at_that_very_moment_is_told(
    cluster: FakeCluster, command: Run, tmp_path: Path, addresses: tuple[str, ...]
) -> None:
    cluster.leak("node-1", "dead/eth0", "10.244.1.9")
    report = report_of(command, tmp_path)
    cluster.ipam.before_release = lambda: cluster.loaders["node-1"].endpoints.update({"dead/eth0": addresses})
    assert release(command, report) == (1, {"dead/eth0": "released under an endpoint"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "list `findings`"),
        ('{"findings": []}', "version is None; expected 1"),
        ('{"version": 1, "findings": [3]}', "findings[0] is not a finding"),
        (
            '{"version": 1, "findings": [{"kind": "leaked", "node": 7}]}',
            "findings[0].node is 7; expected a text",
        ),
        (
            '{"version": 1, "findings": [{"kind": "leaked", "node": "n", "holder": "o", '
            '"create_time": "x"}]}',
            "findings[0].create_time is 'x'; expected a time",
        ),
    ],
)
def test_a_report_that_is_none_is_refused(command: Run, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    code, out, err = command("ipam", "release", "--from-report", str(path))
    assert (code, out) == (2, "") and said in err


def test_files_that_cannot_be_read_or_written_are_named(command: Run, tmp_path: Path) -> None:
    code, _, err = command("ipam", "release", "--from-report", str(tmp_path / "none.json"))
    assert code == 2 and f"cannot read {tmp_path}/none.json: No such file" in err
    code, _, err = command("ipam", "check", "--report", str(tmp_path / "none" / "report.json"))
    assert code == 1 and f"cannot be written to {tmp_path}/none/report.json: No such file" in err


def test_a_node_that_nobody_knows_is_bad_input(command: Run) -> None:
    code, _, err = command("ipam", "check", "--node", "nood-1")
    assert code == 2 and "node 'nood-1' is not known; the cluster's nodes: node-1, node-2" in err


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("90s", 90), ("5m", 300), ("1h", 3600)])
def test_ages_are_written_with_a_unit(text: str, seconds: int) -> None:
    assert parse_seconds(text, "--min-age") == seconds


@pytest.mark.parametrize("text", ["60", "-5s", "1d", "", "9999999h"])
def test_other_ages_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--min-age"):
        parse_seconds(text, "--min-age")


def test_without_a_cluster_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--dir", str(tmp_path / "lab"), "ipam", "check"]) == UNREACHABLE
    assert "there is no lab" in capsys.readouterr().err
