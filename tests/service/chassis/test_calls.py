"""A call through the chassis: validation, errors, deadlines, retries."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
import structlog

from services.chassis import interceptor
from services.chassis.channel import open_channel
from services.chassis.errors import (
    DeadlineExceeded,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    error_from_rpc,
)
from services.chassis.logs import configure_logging
from services.chassis.settings import CommonSettings

from .conftest import Running, serving


async def failure_of(call: Any, target: str = "") -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return error_from_rpc(caught.value, target)


async def test_all_four_kinds_of_call_are_served(running: Running) -> None:
    stub, request = running.stub, running.request
    assert (await stub.Echo(request("a"))).text == "a"
    assert [answer.text async for answer in stub.Watch(request("b"))] == ["first", "last"]
    assert (await stub.Collect(iter([request("c"), request("d")]))).text == "c+d"
    assert [answer.text async for answer in stub.Talk(iter([request("e")]))] == ["e"]


async def test_an_invalid_request_names_field_value_and_expectation(running: Running) -> None:
    failure = await failure_of(running.stub.Echo(running.request("x", 80, 70_000)))
    assert isinstance(failure, InvalidArgument)
    assert failure.reason == "REQUEST_INVALID"
    (violation,) = failure.violations
    assert violation.field == "parts[1].port"
    assert "70000" in violation.description and "65535" in violation.description
    assert running.servicer.seen == []


async def test_every_message_of_a_request_stream_is_validated(running: Running) -> None:
    requests = [running.request("a"), running.request("")]
    failure = await failure_of(running.stub.Collect(iter(requests)))
    assert isinstance(failure, InvalidArgument)
    assert failure.violations[0].field == "text"


async def test_a_domain_error_arrives_as_it_was_raised(running: Running) -> None:
    async def act(request: Any, context: Any) -> None:
        raise ResourceExhausted(
            "pool default is full",
            reason="POOL_EXHAUSTED",
            metadata={"pool": "default", "size": 254},
            violations=[FieldViolation("pool", "has no free address")],
            retry_after=1.5,
        )

    running.servicer.act = act
    for call in (running.stub.Echo(running.request("a")), running.stub.Watch(running.request("a"))):
        failure = await failure_of(call if hasattr(call, "__await__") else drained(call))
        assert isinstance(failure, ResourceExhausted)
        assert (failure.message, failure.reason) == ("pool default is full", "POOL_EXHAUSTED")
        assert failure.metadata == {"pool": "default", "size": "254"}
        assert failure.violations == (FieldViolation("pool", "has no free address"),)
        assert failure.retry_after == 1.5


async def drained(call: Any) -> None:
    async for _ in call:
        continue


async def test_an_unexpected_exception_tells_nothing_but_its_trace(running: Running) -> None:
    async def act(request: Any, context: Any) -> None:
        raise RuntimeError("password=hunter2")

    running.servicer.act = act
    failure = await failure_of(running.stub.Echo(running.request("a")))
    assert isinstance(failure, Internal)
    assert failure.reason == "INTERNAL"
    assert len(failure.metadata["trace_id"]) == 32 and failure.metadata["trace_id"] in failure.message
    assert "hunter2" not in failure.message


async def test_a_status_set_by_the_handler_itself_is_kept(running: Running) -> None:
    async def act(request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    running.servicer.act = act
    failure = await failure_of(running.stub.Echo(running.request("a")))
    assert isinstance(failure, NotFound)
    assert (failure.message, failure.reason) == ("no such thing", "NOT_FOUND")


async def test_a_huge_error_still_arrives(running: Running) -> None:
    async def act(request: Any, context: Any) -> None:
        violations = [FieldViolation(f"rules[{n}].ports", "é" * 200) for n in range(500)]
        raise InvalidArgument("y" * 50_000, reason="MANIFEST_INVALID", violations=violations)

    running.servicer.act = act
    failure = await failure_of(running.stub.Echo(running.request("a")))
    assert isinstance(failure, InvalidArgument)
    assert failure.reason == "MANIFEST_INVALID"
    assert failure.violations[0].field == "rules[0].ports"
    assert failure.metadata["violations_left_out"].isdigit()


async def test_a_call_without_deadline_gets_one_from_the_server(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "DEFAULT_DEADLINE_SECONDS", 0.05)

    async def act(request: Any, context: Any) -> None:
        await asyncio.Event().wait()

    running.servicer.act = act
    async with grpc.aio.insecure_channel(running.address) as plain:
        call = plain.unary_unary(
            "/fimbria.echo.v1.EchoService/Echo",
            request_serializer=running.messages.EchoRequest.SerializeToString,
            response_deserializer=running.messages.EchoResponse.FromString,
        )
        failure = await failure_of(call(running.request("a")))
    assert isinstance(failure, DeadlineExceeded)
    assert failure.reason == "DEADLINE_EXCEEDED"


async def test_a_channel_gives_unary_calls_a_deadline(running: Running) -> None:
    async def act(request: Any, context: Any) -> None:
        await asyncio.Event().wait()

    running.servicer.act = act
    async with open_channel(running.address, timeout=0.1) as channel:
        method = channel.unary_unary(
            "/fimbria.echo.v1.EchoService/Echo",
            request_serializer=running.messages.EchoRequest.SerializeToString,
            response_deserializer=running.messages.EchoResponse.FromString,
        )
        assert isinstance(await failure_of(method(running.request("a"))), DeadlineExceeded)


async def test_calls_made_while_serving_are_held_to_the_callers_deadline(running: Running) -> None:
    left: list[float] = []

    async def act(request: Any, context: Any) -> None:
        if request.text == "outer":
            await running.stub.Echo(running.request("inner"))
        else:
            left.append(context.time_remaining())

    running.servicer.act = act
    await running.stub.Echo(running.request("outer"), timeout=0.8)
    # gRPC rounds what it puts on the wire up.
    assert 0 < left[0] < 1.0


async def test_a_service_that_is_down_is_named(tmp_path: Path, echo: tuple[ModuleType, ModuleType]) -> None:
    target = f"unix:{tmp_path}/nobody.sock"
    async with open_channel(target) as channel:
        started = time.monotonic()
        failure = await failure_of(
            echo[1].EchoServiceStub(channel).Echo(echo[0].EchoRequest(text="a")), target
        )
    assert isinstance(failure, Unavailable)
    assert failure.reason == "SERVICE_UNAVAILABLE"
    assert target in failure.message
    assert time.monotonic() - started < 5


async def test_a_call_is_retried_while_the_service_says_unavailable(running: Running) -> None:
    async def act(request: Any, context: Any) -> None:
        if len(running.servicer.seen) < 3:
            raise Unavailable("not yet", reason="STARTING")

    running.servicer.act = act
    assert (await running.stub.Echo(running.request("again"))).text == "again"
    assert running.servicer.seen == ["again"] * 3


async def test_a_channel_finds_a_service_that_comes_back(
    tmp_path: Path, echo: tuple[ModuleType, ModuleType]
) -> None:
    listen = f"unix:{tmp_path}/echo.sock"
    async with open_channel(listen) as channel:
        stub = echo[1].EchoServiceStub(channel)
        for text in ("before", "after"):
            async with serving(echo, tmp_path, listen):
                answer = await stub.Echo(echo[0].EchoRequest(text=text), wait_for_ready=True)
                assert answer.text == text


async def test_a_cancelled_stream_closes_its_handler(running: Running) -> None:
    call = running.stub.Watch(running.request("forever"))
    assert (await call.read()).text == "first"
    call.cancel()
    async with asyncio.timeout(5):
        await running.servicer.closed.wait()


async def test_failed_calls_are_logged_once_with_their_trace(
    running: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    configure_logging("echo", CommonSettings(instance="test"))

    async def act(request: Any, context: Any) -> None:
        raise NotFound("no pool", reason="POOL_NOT_FOUND")

    running.servicer.act = act
    await failure_of(running.stub.Echo(running.request("a")))
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert line["reason"] == "POOL_NOT_FOUND" and line["code"] == "NOT_FOUND"
    running.telemetry.flush()
    spans = [json.loads(line) for line in running.trace_file.read_text().splitlines()]
    assert line["trace_id"] in {span["trace_id"] for span in spans}
    structlog.reset_defaults()
