"""A service with one method of each kind, over a proto that only these tests know."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.server import ServiceServer
from services.chassis.settings import CommonSettings
from services.chassis.telemetry import Telemetry, init_telemetry

ROOT = Path(__file__).resolve().parents[3]
FULL_NAME = "fimbria.echo.v1.EchoService"

PROTO = """
syntax = "proto3";
package fimbria.echo.v1;
import "buf/validate/validate.proto";

message EchoRequest {
  string text = 1 [(buf.validate.field).string = {min_len: 1, max_len: 40}];
  repeated Part parts = 2;
}
message Part {
  int32 port = 1 [(buf.validate.field).int32 = {gte: 1, lte: 65535}];
}
message EchoResponse {
  string text = 1;
}
service EchoService {
  rpc Echo(EchoRequest) returns (EchoResponse);
  rpc Watch(EchoRequest) returns (stream EchoResponse);
  rpc Collect(stream EchoRequest) returns (EchoResponse);
  rpc Talk(stream EchoRequest) returns (stream EchoResponse);
}
"""


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The generated modules: messages, service."""
    protoc = importlib.import_module("grpc_tools.protoc")

    directory = tmp_path_factory.mktemp("echo")
    (directory / "chassis_echo.proto").write_text(PROTO)
    arguments = [
        f"-I{directory}",
        f"-I{ROOT / 'third_party'}",
        f"-I{Path(str(protoc.__file__)).parent / '_proto'}",
    ]
    outputs = [f"--python_out={directory}", f"--grpc_python_out={directory}"]
    assert protoc.main(["protoc", *arguments, *outputs, "chassis_echo.proto"]) == 0
    sys.path.insert(0, str(directory))
    try:
        yield importlib.import_module("chassis_echo_pb2"), importlib.import_module("chassis_echo_pb2_grpc")
    finally:
        sys.path.remove(str(directory))


@dataclass
class EchoServicer:
    """Answers with what it is told to do: the text of a request chooses the behaviour."""

    messages: ModuleType
    seen: list[str] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    act: Any = None

    async def Echo(self, request: Any, context: Any) -> Any:
        self.seen.append(request.text)
        if self.act is not None:
            await self.act(request, context)
        return self.messages.EchoResponse(text=request.text)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.seen.append(request.text)
        try:
            yield self.messages.EchoResponse(text="first")
            if self.act is not None:
                await self.act(request, context)
            if request.text == "forever":
                await asyncio.Event().wait()
            yield self.messages.EchoResponse(text="last")
        finally:
            self.closed.set()

    async def Collect(self, requests: AsyncIterator[Any], context: Any) -> Any:
        return self.messages.EchoResponse(text="+".join([request.text async for request in requests]))

    async def Talk(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield self.messages.EchoResponse(text=request.text)


@dataclass
class Running:
    """A served EchoService: its servicer, a stub on a traced channel, and where it is."""

    messages: ModuleType
    servicer: EchoServicer
    server: ServiceServer
    telemetry: Telemetry
    channel: grpc.aio.Channel
    stub: Any
    address: str
    trace_file: Path

    def request(self, text: str, *ports: int) -> Any:
        parts = [self.messages.Part(port=port) for port in ports]
        return self.messages.EchoRequest(text=text, parts=parts)


def health(running: Running) -> Any:
    """A stub of the health service; the published type stubs know its methods on servers only."""
    return health_pb2_grpc.HealthStub(running.channel)


@asynccontextmanager
async def serving(
    echo: tuple[ModuleType, ModuleType], directory: Path, listen: str, **more: Any
) -> AsyncIterator[Running]:
    """Serves on one address until the block ends; ``more`` are other settings."""
    messages, services = echo
    trace_file = directory / "spans.jsonl"
    settings = CommonSettings(
        listen=(listen,), trace_file=str(trace_file), drain_seconds=2.0, instance="test", **more
    )
    telemetry = init_telemetry("echo", settings)
    server = ServiceServer(settings, telemetry)
    servicer = EchoServicer(messages)
    server.add(services.add_EchoServiceServicer_to_server, servicer, FULL_NAME)
    (address,) = await server.start()
    channel = open_channel(address)
    stub = services.EchoServiceStub(channel)
    try:
        yield Running(messages, servicer, server, telemetry, channel, stub, address, trace_file)
    finally:
        await channel.close()
        await server.stop()
        telemetry.shutdown()


@pytest.fixture(params=["tcp", "unix"])
async def running(
    request: pytest.FixtureRequest, echo: tuple[ModuleType, ModuleType], tmp_path: Path
) -> AsyncIterator[Running]:
    """The service over TCP, and over a unix socket."""
    listen = "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/echo.sock"
    async with serving(echo, tmp_path, listen) as served:
        yield served
