"""The span store and its trees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import traces, tracing
from cli.commands.trace import select
from cli.errors import BadInput, CliError

MS = 1_000_000


def span(
    name: str, own: str, parent: str = "", *, trace: str = "aa", start: int = 0, end: int = 1
) -> traces.StoredSpan:
    return traces.StoredSpan(trace, own, parent, name, "policy", "INTERNAL", start * MS, end * MS, "OK", {})


def test_spans_of_several_processes_make_one_tree() -> None:
    (trace,) = traces.traces(
        [
            span("endpoint.regenerate", "3", "2", start=4, end=9),
            span("policy.apply", "1", start=0, end=10),
            span("policy.ApplyPolicies", "2", "1", start=1, end=3),
            span("policy.WaitEnforced", "4", "1", start=3, end=10),
        ]
    )
    assert trace.root.name == "policy.apply"
    (root,) = trace.roots
    assert [child.span.name for child in root.children] == ["policy.ApplyPolicies", "policy.WaitEnforced"]
    assert [child.span.name for child in root.children[0].children] == ["endpoint.regenerate"]
    assert trace.seconds == pytest.approx(0.010)


def test_a_span_whose_parent_is_not_stored_is_shown_as_a_root() -> None:
    (trace,) = traces.traces([span("late", "2", "gone", start=5), span("cni.add", "1")])
    assert [node.span.name for node in trace.roots] == ["cni.add", "late"]
    assert trace.root.name == "cni.add"


def test_a_trace_is_chosen_by_age_root_or_id() -> None:
    found = traces.traces(
        [
            span("cni.add", "1", trace="aa11", start=1),
            span("policy.apply", "2", trace="ab22", start=2),
            span("cni.add", "3", trace="cc33", start=3),
        ]
    )
    assert select(found, "last").trace_id == "cc33"
    assert select(found, "last", "policy.apply").trace_id == "ab22"
    assert select(found, "aa").trace_id == "aa11"
    with pytest.raises(BadInput):
        select(found, "a")
    with pytest.raises(CliError):
        select(found, "last", "cni.del")


def test_half_written_lines_are_passed_over(tmp_path: Path) -> None:
    good = {**vars(span("cni.add", "1"))}
    (tmp_path / "node-1.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good)[:40])
    assert [item.name for item in traces.read(tmp_path)] == ["cni.add"]


def test_the_commands_own_spans_nest_and_name_their_failure(tmp_path: Path) -> None:
    tracing.use_store(tmp_path / "cli.jsonl")
    try:
        with pytest.raises(ValueError), tracing.span("policy.apply") as outer:
            outer.attributes["policy.revision"] = 3
            with tracing.span("policy.ApplyPolicies", kind="CLIENT") as inner:
                assert inner.traceparent == f"00-{outer.trace_id}-{inner.span_id}-01"
            raise ValueError
    finally:
        tracing.use_store(None)
    (trace,) = traces.traces(traces.read(tmp_path))
    assert trace.root.status == "ERROR"
    assert trace.root.attributes == {"policy.revision": 3}
    assert [node.span.name for node in trace.roots[0].children] == ["policy.ApplyPolicies"]
    assert (tmp_path / "cli.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_drawn_tree_has_a_line_for_each_span() -> None:
    (trace,) = traces.traces(
        [span("a", "1", end=9), span("b", "2", "1"), span("c", "3", "1"), span("d", "4", "2")]
    )
    drawn = "\n".join(traces.draw(trace))
    assert len(traces.draw(trace)) == 4
    assert "├─ b" in drawn and "└─ c" in drawn and "│  └─ d" in drawn
