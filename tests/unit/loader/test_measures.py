"""What a metrics collector is told of a node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.loader.endpoints.endpoint import State
from services.loader.interfaces import TrafficCount
from services.loader.measures import observe
from services.loader.node import NodeRuntime


class Kernel:
    """Counters."""

    def traffic(self) -> list[TrafficCount]:
        return [
            TrafficCount("forwarded", 0, 0, 7, 700),
            TrafficCount("Policy denied", 133, 1, 2, 120),
        ]

    def lost_events(self) -> int:
        return 3


def read(node: NodeRuntime | None) -> dict[str, list[tuple[dict[str, Any], float]]]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    observe(provider.get_meter("test"), lambda: node)
    data = reader.get_metrics_data()
    provider.shutdown()
    if data is None:
        return {}
    return {
        metric.name: [
            (dict(point.attributes or {}), cast(Any, point).value) for point in metric.data.data_points
        ]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_traffic_endpoints_and_lost_events_are_told() -> None:
    registry = [SimpleNamespace(status=SimpleNamespace(state=State.READY)) for _ in range(2)]
    told = read(cast(NodeRuntime, SimpleNamespace(kernel=Kernel(), registry=registry)))
    assert told["fimbria.datapath.packets"] == [
        ({"reason": "forwarded", "direction": "ingress"}, 7),
        ({"reason": "Policy denied", "direction": "egress"}, 2),
    ]
    assert told["fimbria.datapath.bytes"][1][1] == 120
    assert ({"state": "ready"}, 2) in told["fimbria.endpoints"]
    assert ({"state": "degraded"}, 0) in told["fimbria.endpoints"]
    assert told["fimbria.flows.lost"] == [({}, 3)]


def test_a_node_that_is_not_ready_tells_nothing() -> None:
    assert not any(told for told in read(None).values())
