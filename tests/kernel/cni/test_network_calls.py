"""STATUS and GC through the plugin and the server; calls that arrive late, and ADDs that are repeated."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from services.chassis.errors import Internal, Unavailable
from services.loader.cni.errors import CniCode, CniError
from services.loader.cni.server import CniServer, DrainReport
from tests.kernel.cni.conftest import Answer, Runtime, SmallHandler
from tests.kernel.cni.test_calls import eventually
from tests.kernel.netlink.namespaces import Namespace

pytestmark = pytest.mark.kernel

NOBODY = {"CNI_CONTAINERID": "-", "CNI_IFNAME": "-", "CNI_NETNS": "-", "CNI_ARGS": "-"}
VALID = "cni.dev/valid-attachments"


async def status(runtime: Runtime, version: str = "1.1.0") -> Answer:
    return await runtime.acall("STATUS", conf=runtime.config(cniVersion=version), **NOBODY)


async def collect(runtime: Runtime, *valid: str, name: str = "fimbria") -> Answer:
    listed = [{"containerID": container, "ifname": "eth0"} for container in valid]
    conf = runtime.config(cniVersion="1.1.0", name=name, **{VALID: listed})
    return await runtime.acall("GC", conf=conf, **NOBODY)


async def test_status_is_empty_when_all_is_well(runtime: Runtime, server: CniServer) -> None:
    answer = await status(runtime)
    assert (answer.status, answer.text) == (0, "")


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
async def test_older_versions_have_neither(runtime: Runtime, server: CniServer, version: str) -> None:
    assert (await status(runtime, version)).code == 1
    assert (
        await runtime.acall("GC", conf=runtime.config(cniVersion=version, **{VALID: []}), **NOBODY)
    ).code == 1


async def test_status_tells_what_is_away(runtime: Runtime, server: CniServer, handler: SmallHandler) -> None:
    handler.failure = Unavailable("cannot reach ipam", reason="SERVICE_UNAVAILABLE")
    answer = await status(runtime)
    assert (answer.code, answer.msg) == (50, "cannot reach ipam")
    handler.failure = CniError(CniCode.LIMITED_CONNECTIVITY, "cannot reach ipam")
    assert (await status(runtime)).code == 51


async def test_status_without_a_loader_is_code_50_and_quick(runtime: Runtime) -> None:
    started = time.monotonic()
    answer = await status(runtime)
    assert answer.code == 50
    assert str(runtime.socket) in answer.msg
    assert time.monotonic() - started < 5


async def test_gc_removes_what_is_not_listed(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    for container in ("c1", "c2", "c3"):
        await runtime.acall("ADD", pod.path, CNI_CONTAINERID=container)
    await runtime.acall("ADD", pod.path, runtime.config(name="other"), CNI_CONTAINERID="c4")
    assert (await collect(runtime, "c2", "c9")).status == 0
    assert sorted(handler.attached) == [("c2", "eth0"), ("c4", "eth0")]


async def test_gc_goes_on_after_a_failure_and_tells_of_all(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    for container in ("c1", "c2"):
        await runtime.acall("ADD", pod.path, CNI_CONTAINERID=container)
    handler.failure = Internal("broken", reason="INTERNAL")
    answer = await collect(runtime)
    assert answer.code == 11
    assert "2 attachments of fimbria" in answer.msg
    assert all(f"{container}/eth0: broken" in answer.json["details"] for container in ("c1", "c2"))
    handler.failure = None
    assert (await collect(runtime)).status == 0
    assert handler.attached == {}


@pytest.mark.parametrize(
    "listed", [None, "c1", {}, ["c1"], [{"containerID": "c1"}], [{"containerID": 1, "ifname": "eth0"}]]
)
async def test_gc_without_a_proper_list_removes_nothing(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace, listed: object
) -> None:
    await runtime.acall("ADD", pod.path)
    answer = await runtime.acall("GC", conf=runtime.config(cniVersion="1.1.0", **{VALID: listed}), **NOBODY)
    assert answer.code == 7
    assert VALID in answer.msg
    assert len(handler.attached) == 1


async def test_gc_tells_of_dels_that_still_wait(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    handler.failure = Unavailable("ipam is down", reason="SERVICE_UNAVAILABLE")
    await runtime.acall("DEL", pod.path)
    answer = await collect(runtime)
    assert (answer.code, "c1/eth0: its DEL still waits" in answer.msg) == (11, True)
    handler.failure = None
    assert (await collect(runtime)).status == 0
    assert runtime.queued() == []


async def test_a_del_from_before_an_add_does_not_remove_it(
    runtime: Runtime, handler: SmallHandler, pod: Namespace
) -> None:
    runtime.socket.parent.mkdir()
    await runtime.acall("DEL", pod.path)
    (name,) = runtime.queued()
    written = (runtime.queue / name).read_bytes()
    assert json.loads(written)["startedBootNs"] > 0
    server = CniServer(handler, socket_path=str(runtime.socket))
    await server.start()
    assert (await runtime.acall("ADD", pod.path)).status == 0
    # It could not connect while there was no loader, and gets to write its file only now.
    (runtime.queue / name).write_bytes(written)
    assert await server.drain_queue() == DrainReport(done=1, waiting=0)
    assert len(handler.attached) == 1
    assert runtime.queued() == []
    await runtime.acall("DEL", pod.path)
    assert handler.attached == {}
    await server.close()


async def test_an_add_after_one_that_was_killed_is_made_anew(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    handler.gate = asyncio.Event()
    killed = await asyncio.create_subprocess_exec(
        runtime.binary, stdin=asyncio.subprocess.PIPE, env=runtime.environment("ADD", pod.path)
    )
    assert killed.stdin is not None
    killed.stdin.write(json.dumps(runtime.config()).encode())
    killed.stdin.close()
    await eventually(lambda: handler.commands == ["ADD"])
    killed.kill()
    await killed.wait()
    second = asyncio.create_task(runtime.acall("ADD", pod.path))
    handler.gate.set()
    assert (await second).status == 0
    assert handler.commands == ["ADD", "DEL", "ADD"]
    assert len(handler.attached) == 1


async def test_an_add_that_repeats_another_and_is_given_up_leaves_the_first(
    runtime: Runtime, server: CniServer, handler: SmallHandler, pod: Namespace
) -> None:
    first = await runtime.acall("ADD", pod.path)
    handler.gate = asyncio.Event()
    assert (await runtime.acall("ADD", pod.path, runtime.config(timeout_seconds=0.2))).code == 11
    handler.gate.set()
    await eventually(lambda: handler.commands == ["ADD", "ADD"])
    assert (await runtime.acall("ADD", pod.path)).json == first.json
    assert "DEL" not in handler.commands
