"""An OTLP collector: what it gets, and that its absence costs nothing."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.otlp import EXPORT_SECONDS
from services.chassis.server import ServiceServer
from services.chassis.settings import CommonSettings
from services.chassis.telemetry import SHUTDOWN_SECONDS, init_telemetry

from .conftest import FULL_NAME, EchoServicer


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps the names of what it is sent."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.resources: set[tuple[str, str]] = set()

    async def Export(self, request: Any, context: Any) -> Any:
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            for group in request.resource_spans:
                self.resources |= {(item.key, item.value.string_value) for item in group.resource.attributes}
                self.names |= {span.name for scope in group.scope_spans for span in scope.spans}
            return trace_service_pb2.ExportTraceServiceResponse()
        for metrics in request.resource_metrics:
            self.names |= {metric.name for scope in metrics.scope_metrics for metric in scope.metrics}
        return metrics_service_pb2.ExportMetricsServiceResponse()


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    servicer = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    await server.stop(None)


async def serve_calls(echo: tuple[ModuleType, ModuleType], endpoint: str, calls: int) -> tuple[float, float]:
    """Makes calls, exporting to ``endpoint``; returns the seconds of the median call and of the shutdown."""
    settings = CommonSettings(otlp_endpoint=endpoint, drain_seconds=1.0, instance="echo-0")
    telemetry = init_telemetry("echo", settings)
    server = ServiceServer(settings, telemetry)
    server.add(echo[1].add_EchoServiceServicer_to_server, EchoServicer(echo[0]), FULL_NAME)
    (address,) = await server.start()
    took = []
    async with open_channel(address) as channel:
        stub = echo[1].EchoServiceStub(channel)
        for _ in range(calls):
            started = time.perf_counter()
            await stub.Echo(echo[0].EchoRequest(text="a"))
            took.append(time.perf_counter() - started)
    await server.stop()
    started = time.perf_counter()
    await asyncio.to_thread(telemetry.shutdown)
    return sorted(took)[calls // 2], time.perf_counter() - started


async def test_spans_and_metrics_reach_a_collector(
    echo: tuple[ModuleType, ModuleType], collector: tuple[Collector, str]
) -> None:
    servicer, endpoint = collector
    await serve_calls(echo, endpoint, 5)
    assert servicer.names >= {"echo.Echo", "rpc.server.call.duration", "rpc.client.call.duration"}
    assert {("service.name", "echo"), ("service.instance.id", "echo-0")} <= servicer.resources


@pytest.mark.parametrize("kind", ["nobody there", "never answers"])
async def test_a_dead_collector_slows_nothing(
    echo: tuple[ModuleType, ModuleType], tmp_path: Path, kind: str
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if kind == "never answers":
            silent.listen(16)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        median, shutdown = await serve_calls(echo, endpoint, 300)
    # The export threads only take turns with the calls; waiting for a collector would take seconds.
    assert median < EXPORT_SECONDS / 2
    assert shutdown < SHUTDOWN_SECONDS + 5
