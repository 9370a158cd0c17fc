"""What every server offers and how it starts and stops."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from fimbria.ipam.v1 import ipam_pb2_grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from services.chassis.errors import Unavailable, error_from_rpc
from services.chassis.server import ListenError, ServiceServer
from services.chassis.settings import CommonSettings
from services.chassis.telemetry import Telemetry, init_telemetry

from .conftest import FULL_NAME, Running, health, serving

BUF = Path(sys.executable).with_name("buf")


@pytest.fixture
def telemetry() -> Telemetry:
    return init_telemetry("echo", CommonSettings())


async def test_an_independent_client_lists_and_calls_by_reflection(running: Running) -> None:
    where, url = [], f"http://{running.address}"
    if running.address.startswith("unix:"):
        where, url = ["--unix-socket", running.address.removeprefix("unix:")], "http://localhost"
    common = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *where]

    async def curl(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *common, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = await process.communicate()
        return output.decode()

    services = (await curl("--list-services", url)).split()
    assert services == [
        "fimbria.echo.v1.EchoService",
        "grpc.channelz.v1.Channelz",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    answer = await curl("--data", '{"text": "by buf"}', f"{url}/fimbria.echo.v1.EchoService/Echo")
    assert json.loads(answer) == {"text": "by buf"}
    refusal = json.loads(await curl("--data", "{}", f"{url}/fimbria.echo.v1.EchoService/Echo"))
    assert refusal["code"] == "invalid_argument"
    details = {detail["type"]: base64.b64decode(detail["value"] + "==") for detail in refusal["details"]}
    assert b"REQUEST_INVALID" in details["google.rpc.ErrorInfo"]
    assert b"text" in details["google.rpc.BadRequest"]


async def test_health_follows_the_servers_life(running: Running) -> None:
    watch = health(running).Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(running.server.stop())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    async with asyncio.timeout(1.5):
        await stopping


async def test_a_name_of_ones_own_has_health_of_its_own(running: Running) -> None:
    ready, stub = health_pb2.HealthCheckRequest(service="echo.readiness"), health(running)
    with pytest.raises(grpc.RpcError) as caught:
        await stub.Check(ready)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    leaver, watch = stub.Watch(ready), stub.Watch(ready)
    for each in (leaver, watch):
        assert (await each.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    running.server.set_serving("echo.readiness", False)
    for each in (leaver, watch):
        assert (await each.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    # The process and its service live all the while.
    for name in ("", FULL_NAME):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver.read()
    running.server.set_serving("echo.readiness", True)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(running.server.stop())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await stopping


async def test_a_drain_ends_watches_and_lets_calls_finish(running: Running) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def act(request: object, context: object) -> None:
        if request.text == "slow":  # type: ignore[attr-defined]
            entered.set()
            await leave.wait()

    running.servicer.act = act
    watch = running.stub.Watch(running.request("forever"))
    await watch.read()
    slow = asyncio.ensure_future(running.stub.Echo(running.request("slow")))
    await entered.wait()
    stopping = asyncio.create_task(running.server.stop())
    with pytest.raises(grpc.RpcError) as caught:
        await watch.read()
    failure = error_from_rpc(caught.value)
    assert isinstance(failure, Unavailable) and failure.reason == "DRAINING"
    leave.set()
    assert (await slow).text == "slow"
    await stopping


async def test_a_busy_port_is_an_error_that_names_it(telemetry: Telemetry) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = ServiceServer(CommonSettings(listen=(address,)), telemetry)
        with pytest.raises(ListenError, match=f"cannot listen on {address}: address already in use"):
            await server.start()


@pytest.mark.parametrize(
    "address", ["nonsense", "127.0.0.1:http", "127.0.0.1:70000", "unix:relative.sock", ":80"]
)
async def test_a_malformed_address_is_refused(telemetry: Telemetry, address: str) -> None:
    with pytest.raises(ListenError, match="malformed"):
        await ServiceServer(CommonSettings(listen=(address,)), telemetry).start()


async def test_a_unix_socket_is_private_and_gone_afterwards(
    echo: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    path = tmp_path / "echo.sock"
    async with serving(echo, tmp_path, f"unix:{path}"):
        mode = os.stat(path).st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    assert not path.exists()


async def test_a_served_socket_is_never_taken_over(running: Running, telemetry: Telemetry) -> None:
    if not running.address.startswith("unix:"):
        return
    server = ServiceServer(CommonSettings(listen=(running.address,)), telemetry)
    with pytest.raises(ListenError, match="another process serves there"):
        await server.start()
    assert (await running.stub.Echo(running.request("still here"))).text == "still here"


async def test_a_socket_left_by_a_killed_process_is_replaced(
    echo: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    path = tmp_path / "echo.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serving(echo, tmp_path, f"unix:{path}") as running:
        assert (await running.stub.Echo(running.request("a"))).text == "a"


async def test_a_file_in_the_sockets_place_is_left_alone(telemetry: Telemetry, tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match="a file of another kind"):
        await ServiceServer(CommonSettings(listen=(f"unix:{path}",)), telemetry).start()
    assert path.read_text() == "precious"


async def test_reflection_tells_the_comments_of_the_protos(tmp_path: Path) -> None:
    settings = CommonSettings(listen=(f"unix:{tmp_path}/ipam.sock",))
    server = ServiceServer(settings, init_telemetry("ipam", settings))
    add = ipam_pb2_grpc.add_AddressServiceServicer_to_server
    server.add(add, Mock(spec=ipam_pb2_grpc.AddressServiceServicer), "fimbria.ipam.v1.AddressService")
    (address,) = await server.start()
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol="fimbria.ipam.v1.AddressService")
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        answer = await call(iter([asked])).read()
    await server.stop()
    files = map(FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
    (ipam,) = [file for file in files if file.name == "fimbria/ipam/v1/ipam.proto"]
    # Path 6, n, 2, m is the method m of service n; every one of them says what it is for.
    methods = {(6, n, 2, m) for n, service in enumerate(ipam.service) for m in range(len(service.method))}
    commented = {tuple(where.path) for where in ipam.source_code_info.location if where.leading_comments}
    assert methods and methods <= commented
