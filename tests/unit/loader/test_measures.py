"""What a metrics collector is told of a node."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.loader.bpf.errors import BpfError
from services.loader.endpoints.endpoint import State
from services.loader.endpoints.engine import Load
from services.loader.interfaces import DatapathError, MapInfo, ProgramAttachment, ProgramInfo, TrafficCount
from services.loader.measures import observe
from services.loader.measures_maps import MapFills
from services.loader.node import NodeRuntime
from services.loader.streams.watch import WatchState


class Kernel:
    """Counters, programs, and no maps."""

    def traffic(self) -> list[TrafficCount]:
        return [
            TrafficCount("forwarded", 0, 0, 7, 700),
            TrafficCount("Policy denied", 133, 1, 2, 120),
        ]

    def lost_events(self) -> int:
        return 3

    def maps(self, *, count: bool = True) -> list[MapInfo]:
        assert not count
        return []

    def programs(self) -> list[ProgramInfo]:
        places = [("pod1", "tcx"), ("pod2", "tcx"), ("eth0", "clsact")]
        attachments = tuple(ProgramAttachment(device, "ingress", kind) for device, kind in places)
        return [
            ProgramInfo("from_container", 1, "", 0, ("pod1", "pod2", "eth0"), attachments=attachments),
            ProgramInfo("to_netdev", 2, "", 0, ()),
        ]


class Gone(Kernel):
    """Let go of while it is looked at."""

    def programs(self) -> list[ProgramInfo]:
        raise DatapathError("no such program")

    def traffic(self) -> list[TrafficCount]:
        raise KeyError("metrics")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def running(kernel: Kernel) -> NodeRuntime:
    """A node with two endpoints."""
    registry = [SimpleNamespace(status=SimpleNamespace(state=State.READY)) for _ in range(2)]
    nodes, ipcache, policy, uses = (
        WatchState(name) for name in ("nodes", "ipcache", "policy", "identity-use")
    )
    nodes.opened()
    nodes.in_force(4)
    return cast(
        NodeRuntime,
        SimpleNamespace(
            kernel=kernel,
            registry=registry,
            manager=SimpleNamespace(regenerator=SimpleNamespace(load=lambda: Load(5, 4, 1))),
            nodes=SimpleNamespace(state=nodes),
            ipcache=SimpleNamespace(state=ipcache),
            policy=SimpleNamespace(state=policy),
            uses=SimpleNamespace(state=uses),
            start_time=time.time() - 1000,
        ),
    )


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
    told = read(running(Kernel()))
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


def test_regenerations_programs_and_watches_are_told() -> None:
    told = read(running(Kernel()))
    assert told["fimbria.endpoint.regenerations"] == [
        ({"state": "queued"}, 5),
        ({"state": "running"}, 4),
        ({"state": "retrying"}, 1),
    ]
    assert told["fimbria.programs.attached"] == [
        ({"program": "from_container", "kind": "tcx"}, 2),
        ({"program": "from_container", "kind": "clsact"}, 1),
        ({"program": "to_netdev"}, 0),
    ]
    ages = {attributes["watch"]: age for attributes, age in told["fimbria.watch.sync.age"]}
    assert ages["nodes"] < 900 < 1000 <= ages["ipcache"] and ages.keys() == {"nodes", "ipcache", "policy"}
    connected = {attributes["watch"]: value for attributes, value in told["fimbria.watch.connected"]}
    assert connected == {"nodes": 1, "ipcache": 0, "policy": 0, "identity-use": 0}


def test_what_cannot_be_read_just_now_keeps_nothing_else_from_being_told() -> None:
    told = read(running(Gone()))
    assert not told.get("fimbria.programs.attached")
    assert not told.get("fimbria.datapath.packets")
    assert told["fimbria.flows.lost"] == [({}, 3)]


def test_the_fullest_maps_are_named_and_all_above_a_half() -> None:
    maps = [MapInfo(f"map{number}", "hash", 100, None, id=number) for number in range(20)]
    maps.append(MapInfo("events", "ringbuf", 100, None, id=99))

    def few(map_id: int) -> int:
        return map_id

    found = MapFills(few).fullest(maps)
    assert [(fill.name, fill.entries, fill.pressure) for fill in found] == [
        (f"map{number}", number, number / 100) for number in (19, 18, 17, 16, 15)
    ]
    assert len(MapFills(lambda map_id: 40 + map_id).fullest(maps)) == 9
    assert MapFills(lambda map_id: None).fullest(maps) == []


def test_a_map_that_takes_long_to_count_is_counted_rarely() -> None:
    clock, counted = Clock(), []

    def count(map_id: int) -> int:
        counted.append(map_id)
        clock.now += 0.2 if map_id == 1 else 0.0001
        return 7

    fills = MapFills(count, clock)
    maps = [MapInfo(name, "hash", 100, None, id=number) for number, name in ((1, "ct4"), (2, "ipcache4"))]
    for _ in range(4):
        # Both gauges of a round.
        fills.fullest(maps)
        assert len(fills.fullest(maps)) == 2
        clock.now += 10
    assert (counted.count(1), counted.count(2)) == (2, 4)


def test_a_map_that_cannot_be_counted_is_left_out_and_one_that_is_gone_is_forgotten() -> None:
    def count(map_id: int) -> int:
        if map_id == 1:
            raise BpfError(1, "count map", "")
        return 7

    fills = MapFills(count)
    maps = [MapInfo(name, "hash", 100, None, id=number) for number, name in ((1, "ct4"), (2, "ipcache4"))]
    assert [fill.name for fill in fills.fullest(maps)] == ["ipcache4"]
    assert fills.fullest(maps[:1]) == []
