"""Calls all the way: the plugin, the socket, the server, a handler, and back."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest

from services.chassis.errors import FailedPrecondition, FimbriaError, Internal, ResourceExhausted, Unavailable
from services.loader.cni import wire
from services.loader.cni.request import AddRequest
from services.loader.cni.server import CniServer, DrainReport
from tests.kernel.cni.conftest import Runtime, SmallHandler
from tests.kernel.netlink.namespaces import Namespace, Namespaces

pytestmark = pytest.mark.kernel


async def eventually(condition: object, seconds: float = 5.0) -> None:
    """Waits until ``condition()`` holds. Raises AssertionError when it does not in time."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_an_add_returns_a_result_of_its_version(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace, version: str
) -> None:
    answer = await runtime.acall("ADD", pod.path, runtime.config(cniVersion=version))
    assert answer.status == 0
    assert answer.json["cniVersion"] == version
    assert answer.json["interfaces"][1] == {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": pod.path}
    assert ("version" in answer.json["ips"][0]) == (version < "1.0.0")
    (request,) = handler.calls
    assert isinstance(request, AddRequest)
    assert request.pod.name == "web"


async def test_the_handler_gets_the_pods_namespace(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    seen: list[int] = []
    handler.gate = asyncio.Event()
    call = asyncio.create_task(
        runtime.acall("ADD", pod.path, TRACEPARENT="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    )
    await eventually(lambda: handler.calls)
    (request,) = handler.calls
    assert request.netns_fd is not None
    seen.append(os.fstat(request.netns_fd).st_ino)
    assert not os.get_inheritable(request.netns_fd)
    handler.gate.set()
    assert (await call).status == 0
    assert seen == [os.fstat(pod.fd).st_ino]
    assert request.traceparent.endswith("-01")
    assert abs(time.time_ns() - request.started_ns) < 60 * 10**9


async def test_descriptors_are_closed_after_each_call(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    await runtime.acall("ADD", pod.path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await runtime.acall("ADD", pod.path)
        await runtime.acall("DEL", pod.path)
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_add_check_del_and_del_again(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    added = await runtime.acall("ADD", pod.path)
    checked = await runtime.acall("CHECK", pod.path, runtime.config(prevResult=added.json))
    assert (checked.status, checked.text) == (0, "")
    for netns in (pod.path, "", "/run/netns/fcni-gone"):
        deleted = await runtime.acall("DEL", netns)
        assert (deleted.status, deleted.text) == (0, "")
    gone = await runtime.acall("CHECK", pod.path, runtime.config(prevResult=added.json))
    assert gone.code == 3


async def test_check_tells_what_is_not_as_the_runtime_remembers(
    runtime: Runtime, server: CniServer, pod: Namespace
) -> None:
    prev = (await runtime.acall("ADD", pod.path)).json
    prev["ips"][0]["address"] = "10.244.0.99/32"
    answer = await runtime.acall("CHECK", pod.path, runtime.config(prevResult=prev))
    assert answer.code == 105
    assert "10.244.0.99/32" in answer.msg


async def test_check_needs_a_result_and_a_version_that_has_it(
    runtime: Runtime, server: CniServer, pod: Namespace
) -> None:
    answer = await runtime.acall("CHECK", pod.path)
    assert (answer.code, "prevResult" in answer.msg) == (7, True)
    answer = await runtime.acall("CHECK", pod.path, runtime.config(cniVersion="0.3.1", prevResult={}))
    assert answer.code == 1


async def test_bad_labels_reach_the_runtime_with_their_field(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    conf = runtime.config(args={"cni": {"labels": [{"key": "app", "value": "no spaces"}]}})
    answer = await runtime.acall("ADD", pod.path, conf)
    assert answer.code == 7
    assert "args.cni.labels[0].value" in answer.msg
    assert handler.calls == []


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Unavailable("cannot reach ipam", reason="SERVICE_UNAVAILABLE"), 11),
        (ResourceExhausted("10.244.0.7 was released just now", reason="ADDRESSES_ON_HOLD"), 11),
        (ResourceExhausted("no address is free in 10.244.0.0/24", reason="CIDR_EXHAUSTED"), 106),
        (FailedPrecondition("no clang", reason="COMPILER_MISSING"), 101),
        (Internal("broken", reason="INTERNAL"), 100),
        (ValueError("a bug"), 100),
    ],
)
async def test_a_failure_has_its_code(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace, failure: Exception, code: int
) -> None:
    handler.failure = failure
    answer = await runtime.acall("ADD", pod.path)
    assert answer.code == code
    if isinstance(failure, FimbriaError):
        assert answer.msg == failure.message
    else:
        assert "a bug" not in answer.text


async def test_the_nodes_own_namespace_is_no_pods(
    runtime: Runtime, server: CniServer, handler: SmallHandler
) -> None:
    answer = await runtime.acall("ADD", "/proc/self/ns/net")
    assert answer.code == 4
    assert "the node's own" in answer.msg
    assert handler.calls == []


async def test_twenty_adds_at_once(
    runtime: Runtime, server: CniServer, handler: SmallHandler, namespaces: Namespaces
) -> None:
    pods = [namespaces.make() for _ in range(20)]
    answers = await asyncio.gather(
        *(runtime.acall("ADD", pod.path, CNI_CONTAINERID=f"c{n}") for n, pod in enumerate(pods))
    )
    assert [answer.status for answer in answers] == [0] * 20
    assert len({answer.json["ips"][0]["address"] for answer in answers}) == 20


async def test_calls_for_one_attachment_run_one_after_the_other(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    handler.gate = asyncio.Event()
    first = asyncio.create_task(runtime.acall("ADD", pod.path))
    await eventually(lambda: handler.commands == ["ADD"])
    second = asyncio.create_task(runtime.acall("DEL", pod.path))
    other = asyncio.create_task(runtime.acall("DEL", pod.path, CNI_CONTAINERID="c2"))
    await eventually(lambda: len(handler.calls) == 2)
    assert handler.calls[1].container_id == "c2"
    handler.gate.set()
    assert [(await call).status for call in (first, second, other)] == [0, 0, 0]
    assert handler.attached == {}


# -- a loader or a service that is down


async def test_waiting_dels_are_done_when_the_loader_is_back(
    runtime: Runtime, handler: SmallHandler, pod: Namespace
) -> None:
    runtime.socket.parent.mkdir()
    for container in ("c1", "c2"):
        await runtime.acall("DEL", pod.path, CNI_CONTAINERID=container)
    (runtime.queue / "c3@65746830.json").write_text("{")
    server = CniServer(handler, socket_path=str(runtime.socket))
    await server.start()
    assert await server.drain_queue() == DrainReport(done=2, waiting=0)
    assert {call.container_id for call in handler.calls} == {"c1", "c2"}
    assert all(call.netns_fd is None for call in handler.calls)
    assert runtime.queued() == ["c3@65746830.json.bad"]
    await server.close()


async def test_a_del_that_fails_again_goes_on_waiting(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    handler.failure = Unavailable("ipam is down", reason="SERVICE_UNAVAILABLE")
    answer = await runtime.acall("DEL", pod.path)
    assert (answer.status, answer.text) == (0, "")
    assert runtime.queued() == ["c1@65746830.json"]
    assert await server.drain_queue() == DrainReport(done=0, waiting=1)
    handler.failure = RuntimeError("a bug")
    assert await server.drain_queue() == DrainReport(done=0, waiting=1)
    handler.failure = None
    assert await server.drain_queue() == DrainReport(done=1, waiting=0)
    assert runtime.queued() == []


async def test_a_del_that_can_never_succeed_is_an_error_the_runtime_sees(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    handler.failure = Internal("broken", reason="INTERNAL")
    assert (await runtime.acall("DEL", pod.path)).code == 100
    assert runtime.queued() == []


async def test_a_waiting_del_goes_before_the_next_add_of_the_same_container(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    handler.failure = Unavailable("ipam is down", reason="SERVICE_UNAVAILABLE")
    await runtime.acall("DEL", pod.path)
    assert (await runtime.acall("ADD", pod.path)).code == 11
    handler.failure = None
    handler.calls.clear()
    assert (await runtime.acall("ADD", pod.path)).status == 0
    assert handler.commands == ["DEL", "ADD"]
    assert await server.drain_queue() == DrainReport(done=0, waiting=0)
    assert len(handler.attached) == 1


async def test_a_del_done_directly_clears_the_one_that_waited(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    handler.failure = Unavailable("ipam is down", reason="SERVICE_UNAVAILABLE")
    await runtime.acall("DEL", pod.path)
    handler.failure = None
    await runtime.acall("DEL", pod.path)
    assert runtime.queued() == []


async def test_an_add_that_nobody_waits_for_is_undone(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    handler.gate = asyncio.Event()
    answer = await runtime.acall("ADD", pod.path, runtime.config(timeout_seconds=0.2))
    assert answer.code == 11
    handler.gate.set()
    await eventually(lambda: handler.commands == ["ADD", "DEL"])
    await eventually(lambda: handler.attached == {})


async def test_a_failing_call_leaves_the_server_serving(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    handler.failure = ValueError("a bug")
    await runtime.acall("ADD", pod.path)
    handler.failure = None
    assert (await runtime.acall("ADD", pod.path)).status == 0


# -- the socket


async def test_socket_and_directories_are_private(runtime: Runtime, server: CniServer) -> None:
    assert runtime.socket.stat().st_mode & 0o777 == 0o600
    assert runtime.socket.parent.stat().st_mode & 0o777 == 0o700
    assert runtime.queue.stat().st_mode & 0o777 == 0o700


async def test_another_user_is_refused(
    runtime: Runtime, server: CniServer, handler: SmallHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "peer_uid", lambda _: 65534)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, str(runtime.socket))
        assert await asyncio.wait_for(loop.sock_recv(client, 1), 5) == b""
    assert handler.calls == []


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"FCN1" + b"\0" * 4, b"FCN1" + b"\0" * 4 + b"\0\0\0\x08{}"],
    ids=["nothing", "http", "half a header", "half a body"],
)
async def test_strange_clients_do_no_harm(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace, sent: bytes
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, str(runtime.socket))
        await loop.sock_sendall(client, sent)
    assert (await runtime.acall("ADD", pod.path)).status == 0
    assert handler.commands == ["ADD"]


async def test_a_request_that_is_too_large_is_told_so(runtime: Runtime, server: CniServer) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, str(runtime.socket))
        await loop.sock_sendall(client, b"FCN1" + b"\0" * 4 + b"\xff" * 4)
        assert b'"code":6' in await asyncio.wait_for(loop.sock_recv(client, 4096), 5)


async def test_a_second_loader_on_the_same_socket_is_refused(runtime: Runtime, server: CniServer) -> None:
    with pytest.raises(FailedPrecondition, match="another loader") as caught:
        await CniServer(SmallHandler(), socket_path=str(runtime.socket)).start()
    assert caught.value.reason == "CNI_SOCKET_BUSY"


async def test_the_socket_of_a_killed_loader_is_taken_over(
    runtime: Runtime, handler: SmallHandler, pod: Namespace
) -> None:
    runtime.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(runtime.socket))
    server = CniServer(handler, socket_path=str(runtime.socket))
    await server.start()
    assert (await runtime.acall("ADD", pod.path)).status == 0
    await server.close()
    assert not runtime.socket.exists()
    assert os.listdir(runtime.socket.parent) == ["deletes"]


async def test_an_unusable_socket_path_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "cni.sock", tmp_path / ("x" * 120)):
        with pytest.raises(FailedPrecondition) as caught:
            await CniServer(SmallHandler(), socket_path=str(path)).start()
        assert caught.value.reason == "CNI_SOCKET_UNUSABLE"
        assert str(path) in caught.value.message


async def test_closing_lets_a_call_end(runtime: Runtime, handler: SmallHandler, pod: Namespace) -> None:
    server = CniServer(handler, socket_path=str(runtime.socket))
    await server.start()
    handler.gate = asyncio.Event()
    call = asyncio.create_task(runtime.acall("ADD", pod.path))
    await eventually(lambda: handler.calls)
    closing = asyncio.create_task(server.close(grace=5))
    await eventually(lambda: not runtime.socket.exists())
    handler.gate.set()
    await closing
    assert (await call).status == 0
