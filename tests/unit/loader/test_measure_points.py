"""How long things take, as a metrics collector is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.loader import measure_points


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    made = InMemoryMetricReader()
    provider = MeterProvider([made])
    measure_points.use(provider.get_meter("test"))
    yield made
    measure_points.use(None)
    provider.shutdown()


def read(reader: InMemoryMetricReader) -> dict[str, tuple[str, list[tuple[dict[str, Any], Any]]]]:
    """Unit and points by name."""
    data = reader.get_metrics_data()
    return {
        metric.name: (
            metric.unit or "",
            [(dict(point.attributes or {}), cast(Any, point)) for point in metric.data.data_points],
        )
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_a_regeneration_is_told_by_level_phase_and_outcome(reader: InMemoryMetricReader) -> None:
    measure_points.regenerated("policy", "queue", 0.0004)
    measure_points.regenerated("policy", "queue", 0.0006)
    with measure_points.regenerating("reload", "attach"):
        pass
    with pytest.raises(OSError), measure_points.regenerating("reload", "attach"):
        raise OSError
    measure_points.retried("reload")
    told = read(reader)
    unit, points = told["fimbria.endpoint.regeneration.duration"]
    assert unit == "s"
    assert [(attributes, point.count) for attributes, point in points] == [
        ({"level": "policy", "phase": "queue", "outcome": "success"}, 2),
        ({"level": "reload", "phase": "attach", "outcome": "success"}, 1),
        ({"level": "reload", "phase": "attach", "outcome": "failure"}, 1),
    ]
    assert told["fimbria.endpoint.regeneration.retries"][1][0][0] == {"level": "reload"}


def test_tenths_of_milliseconds_and_seconds_are_told_apart(reader: InMemoryMetricReader) -> None:
    for seconds in (0.00008, 0.0002, 0.004, 1.8):
        measure_points.bpf_done("load", seconds)
    _, ((attributes, point),) = read(reader)["fimbria.bpf.phase.duration"]
    assert attributes == {"phase": "load", "outcome": "success"}
    assert sum(1 for count in point.bucket_counts if count) == 4


def test_a_phase_that_fails_is_told_as_failed(reader: InMemoryMetricReader) -> None:
    with pytest.raises(ValueError, match="refused"), measure_points.in_bpf_phase("migrate"):
        raise ValueError("refused")
    _, ((attributes, _),) = read(reader)["fimbria.bpf.phase.duration"]
    assert attributes == {"phase": "migrate", "outcome": "failure"}


def test_without_a_collector_nothing_is_recorded(reader: InMemoryMetricReader) -> None:
    measure_points.use(None)
    measure_points.regenerated("policy", "total", 1.0)
    measure_points.retried("policy")
    with measure_points.in_bpf_phase("compile"), measure_points.regenerating("policy", "policy"):
        pass
    assert not read(reader)
