"""What a server does with more than it can take on, and with work that nobody waits for any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import text

from services.chassis import names
from services.chassis.channel import open_channel
from services.chassis.db import Database
from services.chassis.errors import FimbriaError, ResourceExhausted, Unavailable, error_from_rpc
from services.chassis.overload import OVERLOADED, Room, when_there_is_room
from services.chassis.server import ServiceServer
from services.chassis.settings import CommonSettings
from services.chassis.telemetry import Telemetry, init_telemetry
from tests.patience import patient

from .conftest import FULL_NAME, EchoServicer, Running, health, serving

Echo = tuple[ModuleType, ModuleType]

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table("thing", sa.Column("name", sa.Text, primary_key=True))
"""


@pytest.fixture
async def small(echo: Echo, tmp_path: Path) -> AsyncIterator[Running]:
    """A server with room for two calls and one watch."""
    async with serving(echo, tmp_path, "127.0.0.1:0", max_calls=2, max_watches=1) as served:
        yield served


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + patient(10)
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def failure(call: Awaitable[Any]) -> FimbriaError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return error_from_rpc(caught.value)


async def test_a_call_beyond_the_limit_is_refused_at_once_and_the_others_go_on(small: Running) -> None:
    go = asyncio.Event()

    async def wait(*_: Any) -> None:
        await go.wait()

    small.servicer.act = wait
    held = [asyncio.create_task(call(small, name)) for name in ("one", "two")]
    await until(lambda: len(small.servicer.seen) == 2)
    refused = await failure(small.stub.Echo(small.request("three")))
    assert isinstance(refused, ResourceExhausted) and refused.reason == OVERLOADED
    assert refused.retry_after is not None and 0 < refused.retry_after < 1
    assert refused.metadata == {"limit": "2", "kind": "calls", "transient": "true"}
    assert "2 calls are running" in refused.message
    # Whoever asks whether the process lives gets an answer, and watches have a room of their own.
    checked = await health(small).Check(health_pb2.HealthCheckRequest(service=""))
    assert checked.status == health_pb2.HealthCheckResponse.SERVING
    watch = small.stub.Watch(small.request("forever"))
    assert (await watch.read()).text == "first"
    go.set()
    assert [answer.text for answer in await asyncio.gather(*held)] == ["one", "two"]
    assert (await small.stub.Echo(small.request("four"))).text == "four"
    assert "three" not in small.servicer.seen
    watch.cancel()


async def call(running: Running, name: str) -> Any:
    return await running.stub.Echo(running.request(name))


async def test_a_watch_beyond_the_limit_is_refused_until_another_ends(small: Running) -> None:
    first = small.stub.Watch(small.request("forever"))
    await first.read()
    refused = await failure(small.stub.Watch(small.request("another")).read())
    assert refused.reason == OVERLOADED and refused.metadata["kind"] == "watches"
    assert (await call(small, "still")).text == "still"
    first.cancel()
    await asyncio.wait_for(small.servicer.closed.wait(), patient(10))

    async def again() -> Any:
        watch = small.stub.Watch(small.request("again"))
        message = await watch.read()
        if message is grpc.aio.EOF:
            raise AssertionError(await watch.code())
        return message

    assert (await when_there_is_room(again, seconds=patient(10))).text == "first"


async def test_who_is_refused_comes_back_when_told_to(small: Running) -> None:
    go = asyncio.Event()

    async def wait(*_: Any) -> None:
        await go.wait()

    small.servicer.act = wait
    held = [asyncio.create_task(call(small, name)) for name in ("one", "two")]
    await until(lambda: len(small.servicer.seen) == 2)
    with pytest.raises(ResourceExhausted):
        await when_there_is_room(lambda: call(small, "too late"), seconds=0)
    patiently = asyncio.create_task(when_there_is_room(lambda: call(small, "back"), seconds=patient(20)))
    asyncio.get_running_loop().call_later(0.1, go.set)
    assert (await patiently).text == "back"
    await asyncio.gather(*held)


def test_refusals_are_counted_by_method() -> None:
    reader = InMemoryMetricReader()
    telemetry = init_telemetry("echo", CommonSettings())
    counting = Telemetry("echo", telemetry.tracer_provider, MeterProvider([reader]), None, None)
    room = Room("calls", 1, counting)
    for _ in range(3):
        room.refusal("/fimbria.echo.v1.EchoService/Echo")
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    (point,) = metric.data.data_points
    assert metric.name == names.CALLS_REFUSED and getattr(point, "value", None) == 3
    assert dict(point.attributes or {})[names.RPC_METHOD] == "fimbria.echo.v1.EchoService/Echo"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Database]:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_first.py").write_text(MIGRATION)
    async with await Database.open(f"sqlite:///{tmp_path}/thing.db", versions.parent) as database:
        yield database


@pytest.mark.parametrize("gives_up", ["cancels", "deadline"])
async def test_what_nobody_waits_for_any_more_is_not_written(
    running: Running, store: Database, gives_up: str
) -> None:
    slow, go = asyncio.Event(), asyncio.Event()

    async def write(request: Any, _: Any) -> None:
        async def operation(conn: Any) -> None:
            if request.text == "slow":
                slow.set()
                await go.wait()
            await conn.execute(text("INSERT INTO thing (name) VALUES (:name)"), {"name": request.text})

        await store.write(operation)

    running.servicer.act = write
    first = asyncio.create_task(call(running, "slow"))
    await asyncio.wait_for(slow.wait(), patient(10))
    timeout = None if gives_up == "cancels" else 0.2
    behind = running.stub.Echo(running.request("abandoned"), timeout=timeout)
    await until(lambda: "abandoned" in running.servicer.seen)
    if gives_up == "cancels":
        behind.cancel()
    with pytest.raises((grpc.RpcError, asyncio.CancelledError)):
        await behind
    kept = asyncio.create_task(call(running, "kept"))
    await until(lambda: "kept" in running.servicer.seen)
    go.set()
    await asyncio.gather(first, kept)
    async with store.read() as conn:
        rows = await conn.execute(text("SELECT name FROM thing ORDER BY name"))
        assert [row.name for row in rows] == ["kept", "slow"]


async def test_a_watcher_that_does_not_read_holds_its_stream_up_and_nothing_grows(echo: Echo) -> None:
    messages, services = echo
    made = 0

    class Endless(EchoServicer):
        async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
            nonlocal made
            while True:
                made += 1
                yield messages.EchoResponse(text="x" * 100_000)

    settings = CommonSettings(drain_seconds=0.0)
    server = ServiceServer(settings, init_telemetry("echo", settings))
    server.add(services.add_EchoServiceServicer_to_server, Endless(messages), FULL_NAME)
    (address,) = await server.start()
    async with open_channel(address) as channel:
        watch = services.EchoServiceStub(channel).Watch(messages.EchoRequest(text="all"))
        await watch.read()
        before, still = -1, 0
        while still < 3:
            still = still + 1 if made == before else 0
            before = made
            await asyncio.sleep(0.1)
        # What the connection's window holds, at most, and no more: 100 kB each.
        assert 0 < made < 600
        for _ in range(before):
            await watch.read()
        await until(lambda: made > before)
        watch.cancel()
    await server.stop()


class Replicas:
    """Two servers of the same service and one channel to both."""

    def __init__(self, servers: list[Running], channel: grpc.aio.Channel, stub: Any) -> None:
        self.servers = servers
        self.channel = channel
        self.stub = stub

    async def served_by(self, calls: int) -> set[int]:
        """Which of them answered so many calls."""
        before = [len(server.servicer.seen) for server in self.servers]
        for _ in range(calls):
            await self.stub.Echo(self.servers[0].request("balanced"))
        pairs = zip(self.servers, before, strict=True)
        return {number for number, (server, had) in enumerate(pairs) if len(server.servicer.seen) > had}


@pytest.fixture(params=["tcp", "unix"])
async def replicas(request: pytest.FixtureRequest, echo: Echo, tmp_path: Path) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        servers = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            listen = "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/{name}/echo.sock"
            servers.append(await stack.enter_async_context(serving(echo, tmp_path / name, listen)))
        addresses = [server.address.removeprefix("unix:") for server in servers]
        target = ("ipv4:" if request.param == "tcp" else "unix:") + ",".join(addresses)
        channel = await stack.enter_async_context(open_channel(target))
        yield Replicas(servers, channel, echo[1].EchoServiceStub(channel))


async def eventually_by(replicas: Replicas, expected: set[int]) -> None:
    deadline = time.monotonic() + patient(10)
    while await replicas.served_by(4) != expected:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_calls_take_turns_and_leave_a_replica_that_does_not_serve(replicas: Replicas) -> None:
    await eventually_by(replicas, {0, 1})
    replicas.servers[0].server.set_serving("", False)
    await eventually_by(replicas, {1})
    replicas.servers[0].server.set_serving("", True)
    await eventually_by(replicas, {0, 1})


async def test_no_call_fails_while_a_replica_stops(replicas: Replicas) -> None:
    await eventually_by(replicas, {0, 1})
    stopping = asyncio.create_task(replicas.servers[0].server.stop())
    while not stopping.done():
        await replicas.served_by(2)
    await stopping
    assert await replicas.served_by(6) == {1}


async def test_without_any_replica_calls_say_so(replicas: Replicas) -> None:
    await eventually_by(replicas, {0, 1})
    for server in replicas.servers:
        server.server.set_serving("", False)

    async def left() -> FimbriaError | None:
        try:
            await replicas.served_by(1)
        except grpc.RpcError as error:
            return error_from_rpc(error)
        return None

    deadline = time.monotonic() + patient(10)
    while (problem := await left()) is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert isinstance(problem, Unavailable)
