"""An OTLP collector: what it gets, and that one that is of no use costs nothing."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from services.chassis import interceptor
from services.chassis.channel import open_channel
from services.chassis.logs import configure_logging, get_logger
from services.chassis.otlp import EXPORT_SECONDS, MAX_QUEUED_SPANS
from services.chassis.otlp_logs import MAX_QUEUED_LINES, MAX_TEXT
from services.chassis.server import ServiceServer
from services.chassis.settings import CommonSettings
from services.chassis.telemetry import SHUTDOWN_SECONDS, init_telemetry, span
from tests.collector import USELESS, Line, Received, collecting, useless
from tests.patience import patient
from tests.service.processes import start

from .conftest import FULL_NAME, EchoServicer


async def serve_calls(
    echo: tuple[ModuleType, ModuleType],
    endpoint: str,
    calls: int,
    arrived: Callable[[], bool] = lambda: True,
) -> tuple[float, float]:
    """Makes calls that log, exporting to ``endpoint``, and waits until what they said has ``arrived``; the
    seconds of the median call and of the shutdown, which waits for a collector no longer than two seconds.
    """
    settings = CommonSettings(otlp_endpoint=endpoint, drain_seconds=1.0, instance="echo-0", log_level="debug")
    configure_logging("echo", settings)
    telemetry = init_telemetry("echo", settings)
    server = ServiceServer(settings, telemetry)
    server.add(echo[1].add_EchoServiceServicer_to_server, EchoServicer(echo[0]), FULL_NAME)
    (address,) = await server.start()
    took = []
    try:
        async with open_channel(address) as channel:
            stub = echo[1].EchoServiceStub(channel)
            for _ in range(calls):
                started = time.perf_counter()
                await stub.Echo(echo[0].EchoRequest(text="a"))
                took.append(time.perf_counter() - started)
        async with asyncio.timeout(patient(30)):
            while not arrived():  # noqa: ASYNC110 - the collector is another thread's
                await asyncio.sleep(0.01)
    finally:
        # One that is left to the garbage collector would wait for ever.
        await server.stop()
    started = time.perf_counter()
    await asyncio.to_thread(telemetry.shutdown)
    return sorted(took)[calls // 2], time.perf_counter() - started


async def test_spans_metrics_and_logs_reach_a_collector(echo: tuple[ModuleType, ModuleType]) -> None:
    with collecting() as collector:
        await serve_calls(echo, collector.endpoint, 5)
        received = collector.received
    assert len(received.named("echo.Echo")) == 10
    for name in ("rpc.server.call.duration", "rpc.client.call.duration"):
        metric = received.metrics["echo-0", name]
        assert (metric.kind, metric.unit) == ("histogram", "s")
        assert sum(point.count for point in metric.points) == 5
        # Calls take milliseconds.
        assert metric.points[0].bounds[0] < 0.001
    assert {("service.name", "echo"), ("service.instance.id", "echo-0")} <= received.resources


def calls_of(received: Received) -> list[Line]:
    """The lines about calls, once their spans are there too."""
    spans = {span.span_id for span in received.named("echo.Echo")}
    return [line for line in received.lines if line.body == "call" and line.span_id in spans]


async def test_a_line_of_a_call_has_the_ids_of_its_span(
    echo: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that has spoken keeps the level of that time: an earlier test's, in this process.
    monkeypatch.setattr(interceptor, "log", get_logger(interceptor.__name__))
    with collecting() as collector:
        received = collector.received
        await serve_calls(echo, collector.endpoint, 3, lambda: len(calls_of(received)) == 3)
    spans = {
        (span.trace_id, span.span_id)
        for span in received.named("echo.Echo")
        if "server.address" not in span.attributes
    }
    lines = calls_of(received)
    assert {(line.trace_id, line.span_id) for line in lines} <= spans
    for line in lines:
        assert line.severity == "debug"
        assert line.attributes["method"] == "/fimbria.echo.v1.EchoService/Echo"
        assert line.attributes["code"] == "OK"
        assert isinstance(line.attributes["milliseconds"], float)


def test_a_collector_gets_the_lines_of_standard_error_and_no_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with collecting() as collector:
        settings = CommonSettings(otlp_endpoint=collector.endpoint, instance="it-0")
        configure_logging("it", settings)
        telemetry = init_telemetry("it", settings)
        log = get_logger("services.it")
        with span("work"):
            log.warning(
                "refused", count=2**70, mask=7, ratio=0.5, gone=None, ok=True, names=["a", 1], more={"a": 1},
                api_token="hunter2", url="postgresql://me:hunter2@db/x", file="\udc80", text="x" * 100_000,
            )  # fmt: skip
        try:
            raise ValueError("what went wrong")
        except ValueError:
            log.error("failed", exc_info=True)
        log.debug("not of this level")
        telemetry.shutdown()
        lines = collector.received.lines
    shown = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line["event"] for line in shown] == [line.body for line in lines] == ["refused", "failed"]
    refused, failed = lines
    assert (refused.trace_id, refused.span_id) == (shown[0]["trace_id"], shown[0]["span_id"])
    assert (failed.trace_id, failed.span_id) == ("", "")
    assert (refused.severity, failed.severity) == ("warning", "error")
    attributes = refused.attributes
    assert len(attributes.pop("text")) == MAX_TEXT + 1
    assert attributes == {
        "logger": "services.it", "count": str(2**70), "mask": 7, "ratio": 0.5, "ok": True,
        "names": ["a", "1"], "more": '{"a":1}', "api_token": "***", "url": "postgresql://me:***@db/x",
        "file": "?",
    }  # fmt: skip
    assert "ValueError: what went wrong" in failed.attributes["exception"]


@pytest.mark.parametrize("kind", USELESS)
async def test_a_collector_of_no_use_slows_nothing(
    echo: tuple[ModuleType, ModuleType], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    with useless(kind) as endpoint:
        median, shutdown = await serve_calls(echo, endpoint, 300)
    # The export threads only take turns with the calls; waiting for a collector would take seconds.
    assert median < patient(EXPORT_SECONDS / 2)
    assert shutdown < patient(SHUTDOWN_SECONDS + 5)
    # What the exporters say of it is said on standard error, now and then, and never sent.
    complaints = [line for line in capsys.readouterr().err.splitlines() if "opentelemetry" in line]
    assert len(complaints) < 10


def test_what_waits_for_a_collector_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    with useless("accepts and says nothing") as endpoint:
        settings = CommonSettings(otlp_endpoint=endpoint)
        configure_logging("it", settings)
        telemetry = init_telemetry("it", settings)
        log = get_logger("services.it")

        def flood(count: int) -> int:
            for number in range(count):
                with span("work", number=number):
                    log.info("line", number=number)
            capsys.readouterr()
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            # All of it would take more than 60 MB.
            assert flood(12_000) < 7_000 * (MAX_QUEUED_SPANS + MAX_QUEUED_LINES)
        finally:
            tracemalloc.stop()
            telemetry.shutdown()


@pytest.mark.parametrize("kind", ["is absent", "never answers"])
def test_a_process_stops_although_its_collector_does_not_answer(tmp_path: Path, kind: str) -> None:
    with useless(kind) as endpoint:
        service = start("ipam", tmp_path, f"--otlp-endpoint={endpoint}")
        started = time.monotonic()
        assert service.terminate() == 0
        assert time.monotonic() - started < patient(SHUTDOWN_SECONDS + 8)


def test_a_collector_that_comes_back_gets_what_follows(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/otlp.sock"
    settings = CommonSettings(otlp_endpoint=address)
    telemetry = init_telemetry("it", settings)
    with span("before"):
        pass
    try:
        with collecting(address) as collector:

            def came(received: Received) -> Any:
                with span("after"):
                    pass
                return received.named("after")

            assert collector.wait(came)
    finally:
        telemetry.shutdown()
