"""The spans of a call, on both sides, and what surrounds them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from opentelemetry import trace

from services.chassis.errors import NotFound
from services.chassis.telemetry import inject, remote_context, span

from .conftest import Running, health

Spans = list[dict[str, Any]]


def spans_of(running: Running) -> Spans:
    running.telemetry.flush()
    return [json.loads(line) for line in running.trace_file.read_text().splitlines()]


def one(spans: Spans, **wanted: object) -> dict[str, Any]:
    (found,) = [item for item in spans if all(item[key] == value for key, value in wanted.items())]
    return found


async def spans_when(running: Running, count: int) -> Spans:
    """The spans, once there are ``count``: the client's ends a moment after its caller has the answer."""
    for _ in range(500):
        spans = spans_of(running)
        if len(spans) >= count:
            return spans
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(spans)} spans after 5 s, expected {count}")


async def test_a_call_is_a_client_span_with_the_server_span_below(running: Running) -> None:
    with span("cni.add"):
        await running.stub.Echo(running.request("a"))
    spans = await spans_when(running, 3)
    root = one(spans, name="cni.add")
    client = one(spans, name="echo.Echo", kind="CLIENT")
    server = one(spans, name="echo.Echo", kind="SERVER")
    assert root["parent_id"] == ""
    assert client["parent_id"] == root["span_id"]
    assert server["parent_id"] == client["span_id"]
    assert {item["trace_id"] for item in spans} == {root["trace_id"]}
    for item in (client, server):
        assert item["attributes"]["rpc.method"] == "fimbria.echo.v1.EchoService/Echo"
        assert item["attributes"]["rpc.response.status_code"] == "OK"
        assert item["start_ns"] <= item["end_ns"]


async def test_handlers_of_every_kind_run_inside_the_server_span(running: Running) -> None:
    current: list[int] = []

    async def act(request: Any, context: Any) -> None:
        current.append(trace.get_current_span().get_span_context().span_id)
        with span("work"):
            await asyncio.sleep(0)

    running.servicer.act = act
    await running.stub.Echo(running.request("a"))
    assert [answer.text async for answer in running.stub.Watch(running.request("b"))] == ["first", "last"]
    spans = await spans_when(running, 6)
    servers = {item["span_id"] for item in spans if item["kind"] == "SERVER"}
    assert {f"{span_id:016x}" for span_id in current} == servers
    assert {item["parent_id"] for item in spans if item["name"] == "work"} == servers


async def test_a_failed_call_marks_both_spans(running: Running) -> None:
    async def act(request: Any, context: Any) -> None:
        raise NotFound("no pool x", reason="POOL_NOT_FOUND")

    running.servicer.act = act
    with pytest.raises(grpc.RpcError):
        await running.stub.Echo(running.request("a"))
    spans = await spans_when(running, 2)
    server = one(spans, kind="SERVER")
    assert server["status"] == "ERROR" and server["status_message"] == "no pool x"
    assert server["attributes"]["error.type"] == "POOL_NOT_FOUND"
    for item in spans:
        assert item["attributes"]["rpc.response.status_code"] == "NOT_FOUND"


async def test_a_watch_that_is_given_up_is_no_error(running: Running) -> None:
    call = running.stub.Watch(running.request("forever"))
    await call.read()
    call.cancel()
    for item in await spans_when(running, 2):
        assert item["status"] == "UNSET"
        assert item["attributes"]["rpc.response.status_code"] == "CANCELLED"
        assert [event["name"] for event in item["events"]] == ["cancelled"]


async def test_a_stored_context_continues_the_trace_later(running: Running) -> None:
    with span("policy.apply") as cause:
        carried = inject()
    with span("endpoint.regenerate", parent=remote_context(carried.traceparent, carried.tracestate)):
        await running.stub.Echo(running.request("a"))
    spans = await spans_when(running, 4)
    assert {item["trace_id"] for item in spans} == {f"{cause.get_span_context().trace_id:032x}"}


async def test_health_checks_leave_no_spans(running: Running) -> None:
    answer = await health(running).Check(health_pb2.HealthCheckRequest(service="fimbria.echo.v1.EchoService"))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert spans_of(running) == []
