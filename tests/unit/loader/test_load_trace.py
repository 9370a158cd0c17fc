"""What is told of the loads of the node's programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.chassis.settings import CommonSettings
from services.chassis.telemetry import Telemetry, init_telemetry, span
from services.loader import measure_points
from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.errors import DatapathUnavailable, MapMismatch
from services.loader.bpf.load_report import LoadReport, MigratedMap, ObjectReport
from services.loader.bpf.recovery import Recovered
from services.loader.load_trace import traced_open


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Telemetry]:
    made = init_telemetry("loader", CommonSettings(trace_file=str(tmp_path / "spans.jsonl")))
    yield made
    made.shutdown()


@pytest.fixture
def phases() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    measure_points.use(provider.get_meter("test"))
    yield reader
    measure_points.use(None)
    provider.shutdown()


def opened(report: LoadReport) -> KernelDatapath:
    return cast(KernelDatapath, SimpleNamespace(report=report))


def written(telemetry: Telemetry, tmp_path: Path) -> list[dict[str, Any]]:
    telemetry.flush()
    lines = (tmp_path / "spans.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda line: int(line["start_ns"]))


def measured(reader: InMemoryMetricReader) -> dict[tuple[str, str], float]:
    """Sums by phase and outcome."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (str(point.attributes["phase"]), str(point.attributes["outcome"])): cast(Any, point).sum
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        if point.attributes is not None
    }


def test_a_load_is_told_step_by_step(
    telemetry: Telemetry, tmp_path: Path, phases: InMemoryMetricReader
) -> None:
    report = LoadReport(
        (ObjectReport("bpf_lxc.c", False, 1.5, 0.25, ()),),
        attach_seconds=0.125,
        endpoints=3,
        migrated=(MigratedMap("ct4", "value has a new field", 50_000, 7, 0.5),),
    )
    with span("loader.Reload"):
        traced_open(lambda: opened(report))
    root, *steps = written(telemetry, tmp_path)
    assert [(step["name"], step["attributes"]) for step in steps] == [
        ("bpf.compile", {"source": "bpf_lxc.c", "cache.hit": False}),
        ("bpf.load", {"source": "bpf_lxc.c", "insns": 0, "verifier.time": 0.25}),
        ("bpf.migrate", {"map": "ct4", "entries": 50_000, "cause": "value has a new field"}),
        ("bpf.attach", {"endpoints": 3, "adopted": False}),
    ]
    assert {step["parent_id"] for step in steps} == {root["span_id"]}
    assert [step["end_ns"] for step in steps[:-1]] == [step["start_ns"] for step in steps[1:]]
    assert measured(phases) == {
        ("compile", "success"): 1.5,
        ("load", "success"): 0.25,
        ("migrate", "success"): 0.5,
        ("attach", "success"): 0.125,
    }


def test_what_was_in_force_already_was_not_loaded(
    telemetry: Telemetry, tmp_path: Path, phases: InMemoryMetricReader
) -> None:
    objects = (ObjectReport("bpf_lxc.c", True, 0.001, 0.0, ()),)
    report = LoadReport(objects, adopted=True, recovered=Recovered.COMPLETED)
    traced_open(lambda: opened(report))
    steps = written(telemetry, tmp_path)
    assert [step["name"] for step in steps] == ["bpf.compile", "bpf.attach"]
    assert steps[-1]["attributes"] == {"endpoints": 0, "adopted": True, "recovered": "completed"}
    assert ("load", "success") not in measured(phases)


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        (MapMismatch("ct4", "/sys/fs/bpf/x/ct4", "16", "8", "key size"), "bpf.migrate"),
        (DatapathUnavailable("no bpffs"), "bpf.load"),
    ],
)
def test_a_load_that_fails_is_told_as_failed(
    telemetry: Telemetry, tmp_path: Path, phases: InMemoryMetricReader, problem: Exception, name: str
) -> None:
    def refuse() -> KernelDatapath:
        raise problem

    with pytest.raises(type(problem)):
        traced_open(refuse)
    (step,) = written(telemetry, tmp_path)
    assert (step["name"], step["status"], step["status_message"]) == (name, "ERROR", str(problem))
    assert measured(phases).keys() == {(name.removeprefix("bpf."), "failure")}
