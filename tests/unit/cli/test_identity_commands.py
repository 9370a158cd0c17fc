"""`fimbria identity status|holders|filter`: what is said, and what is asked before identities change."""

from __future__ import annotations

import json
import sys

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_cluster import NOW, SECOND, FakeCluster


@pytest.fixture
def changing(cluster: FakeCluster) -> FakeCluster:
    """A cluster in which any filter changes an identity."""
    change = cluster.identity.change
    change.changed, change.entries, change.merged = 21, 40, 1
    one = change.changes.add(labels=["k8s:app=web"], becomes=300, entries=2)
    one.identity.id = 256
    one.identity.labels[:] = ["k8s:app=web", "k8s:hash=x"]
    return cluster


def test_the_status_says_how_full_how_fast_and_until_when(cluster: FakeCluster, command: Run) -> None:
    status = cluster.identity.status
    space = status.spaces.add(
        name="cluster", first=256, last=65535, taken=32640, unused=100, growth_per_hour=1000.0
    )
    space.exhausted_time.FromNanoseconds(NOW)
    status.spaces.add(name="prefixes", first=16711680, last=16777215, taken=3, growth_per_hour=-2.25)
    collection = status.collection
    collection.collected, collection.rate, collection.backlog = 700, 41.25, 12
    collection.lag_seconds, collection.grace_seconds = 1.5, 300
    collection.sweep_time.FromNanoseconds(NOW + SECOND)
    status.holders = 3
    code, out, _ = command("identity", "status")
    assert code == 0
    _, first, second, _, *rest = out.splitlines()
    assert first.split() == [
        "cluster", "256-65535", "32640", "100", "50.0%", "+1000.0/h", "2027-01-15T08:00:00Z"
    ]  # fmt: skip
    assert second.split()[:6] == ["prefixes", "16711680-16777215", "3", "0", "0.0%", "-2.2/h"]
    assert second.endswith("not in sight")
    assert rest == [
        "garbage collection: 700 collected, 41.2/s, 12 waiting, lag 1.5 s (unused for 300 s before; last look"
        " 2027-01-15T08:00:01Z)",
        "holders with a lease: 3",
    ]
    told = json.loads(command("identity", "status", "-o", "json")[1])
    assert told["spaces"][0]["size"] == 65280 and told["spaces"][0]["used"] == 32540
    assert told["spaces"][1]["exhausted_time"] is None
    assert told["collection"]["backlog"] == 12 and told["holders"] == 3


def test_holders_are_listed_with_their_last_report(cluster: FakeCluster, command: Run) -> None:
    cluster.identity.holders = {"node/node-1": 3, "policy": 7}
    rows = json.loads(command("identity", "holders", "-o", "json")[1])
    assert rows[1] == {"name": "policy", "identities": 7, "report_time": "2027-01-15T08:00:00Z"}
    assert command("identity", "holders")[1].splitlines()[0].split() == ["HOLDER", "IDENTITIES", "REPORTED"]


def test_the_filter_is_shown_as_it_can_be_said(command: Run) -> None:
    assert command("identity", "filter", "show") == (0, "!k8s:hash$\n", "")
    told = json.loads(command("identity", "filter", "show", "-o", "json")[1])
    assert told == {"patterns": ["!k8s:hash$"], "revision": 3}


def test_a_filter_that_changes_nothing_is_set_at_once(cluster: FakeCluster, command: Run) -> None:
    code, out, _ = command("identity", "filter", "set", "!k8s:other$")
    assert (
        code == 0
        and "identities that change: 0, with 0 ipcache entries" in out
        and "the filter is set, revision 4" in out
    )
    assert list(cluster.identity.filter.patterns) == ["!k8s:other$"]
    code, out, _ = command("identity", "filter", "set", "!k8s:other$")
    assert code == 0 and "the filter is that already, revision 4" in out
    assert cluster.identity.filter.revision == 4


def test_a_change_is_shown_first_and_needs_a_yes(changing: FakeCluster, command: Run) -> None:
    code, out, err = command("identity", "filter", "set", "k8s:app")
    assert code == 2 and out == "" and "NOT_CONFIRMED" in err and "--yes" in err
    assert "identities that change: 21, with 40 ipcache entries; label sets" in err
    assert "k8s:hash=x" in err and "… and 20 more" in err
    assert changing.identity.filter_calls == [True] and changing.identity.filter.revision == 3
    code, out, _ = command("identity", "filter", "set", "k8s:app", "--dry-run")
    assert code == 0 and "nothing was changed (dry run)" in out
    assert changing.identity.filter_calls == [True, True]
    code, out, _ = command("identity", "filter", "set", "k8s:app", "--yes", "-o", "json")
    told = json.loads(out)
    assert code == 0 and told["applied"] and told["filter"] == {"patterns": ["k8s:app"], "revision": 4}
    assert told["changes"] == [
        {
            "identity": 256,
            "labels": ["k8s:app=web", "k8s:hash=x"],
            "new_labels": ["k8s:app=web"],
            "becomes": 300,
            "entries": 2,
        }
    ]


@pytest.mark.parametrize(("answer", "code", "revision"), [("y", 0, 4), ("n", 130, 3)])
def test_at_a_terminal_it_is_asked(
    changing: FakeCluster,
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
    revision: int,
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda *_: answer)
    assert command("identity", "filter", "set", "k8s:app")[0] == code
    assert changing.identity.filter.revision == revision


def test_the_default_filter_is_asked_for_by_name(cluster: FakeCluster, command: Run) -> None:
    assert command("identity", "filter", "set", "--default")[0] == 0
    assert list(cluster.identity.filter.patterns) == ["!k8s:default$"]
    for arguments in ([], ["k8s:app", "--default"]):
        code, _, err = command("identity", "filter", "set", *arguments)
        assert code == 2 and "either patterns or --default" in err


def test_somebody_elses_filter_is_not_overwritten(changing: FakeCluster, command: Run) -> None:
    changing.identity.others_set_it_first = True
    code, _, err = command("identity", "filter", "set", "k8s:app", "--yes")
    assert code == 1 and "FILTER_CHANGED" in err and "somebody else has set it" in err
