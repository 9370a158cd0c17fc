"""A runtime that dies while its ADD is under way: nobody gets the result, and nobody will ask for the DEL."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess

import pytest

from services.loader.cni.delete_queue import DeleteQueue
from services.loader.cni.server import CniServer
from tests.kernel.cni.conftest import Runtime, SmallHandler
from tests.kernel.cni.test_calls import eventually
from tests.kernel.netlink.namespaces import Namespace

pytestmark = pytest.mark.kernel


def start(runtime: Runtime, pod: Namespace) -> tuple[subprocess.Popen[bytes], int]:
    """The plugin in the middle of an ADD, and the end of the pipe that its result goes to."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [runtime.binary], stdin=subprocess.PIPE, stdout=writer, env=runtime.environment("ADD", pod.path)
    )
    os.close(writer)
    assert process.stdin is not None
    process.stdin.write(json.dumps(runtime.config()).encode())
    process.stdin.close()
    return process, reader


async def test_an_add_whose_result_nobody_reads_is_undone(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    handler.gate = asyncio.Event()
    process, reader = start(runtime, pod)
    await eventually(lambda: handler.commands == ["ADD"])
    os.close(reader)
    handler.gate.set()
    assert await asyncio.to_thread(process.wait, 10) == 1
    assert handler.commands == ["ADD", "DEL"]
    assert handler.attached == {}


async def test_the_undoing_waits_in_the_queue_when_the_loader_is_gone_too(
    runtime: Runtime, handler: SmallHandler, pod: Namespace
) -> None:
    server = CniServer(handler, socket_path=str(runtime.socket))
    await server.start()
    handler.gate = asyncio.Event()
    process, reader = start(runtime, pod)
    await eventually(lambda: handler.commands == ["ADD"])
    os.close(reader)
    # The server lets calls that are under way end, and takes no new ones.
    closing = asyncio.create_task(server.close())
    await eventually(lambda: not runtime.socket.exists())
    handler.gate.set()
    await closing
    assert await asyncio.to_thread(process.wait, 10) == 1
    assert handler.commands == ["ADD"]
    (owed,) = DeleteQueue(runtime.queue).waiting()
    assert (owed.request.command, owed.request.key) == ("DEL", ("c1", "eth0"))


async def test_a_refusal_that_nobody_reads_is_left_alone(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    handler.gate = asyncio.Event()
    handler.failure = RuntimeError("no")
    process, reader = start(runtime, pod)
    await eventually(lambda: handler.commands == ["ADD"])
    os.close(reader)
    handler.gate.set()
    assert await asyncio.to_thread(process.wait, 10) == 1
    assert handler.commands == ["ADD"]
