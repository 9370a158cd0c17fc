"""The identity process: what SIGKILL leaves, and starts that must fail."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc

from services.chassis.channel import open_channel
from tests.service.processes import run_to_end, start


async def test_everything_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    service = start("identity", tmp_path)
    identities: dict[str, identity_pb2.Identity] = {}
    published: dict[str, int] = {}
    try:
        async with open_channel(service.target, retry=False) as channel:
            resolver = identity_pb2_grpc.IdentityServiceStub(channel)
            ipcache = identity_pb2_grpc.IpCacheServiceStub(channel)
            enough = asyncio.Event()

            async def work(worker: int) -> None:
                number = 0
                while True:
                    label, prefix = f"k8s:app=w{worker}-{number}", f"10.0.{worker}.{number % 250}/32"
                    try:
                        made = await resolver.Resolve(identity_pb2.ResolveRequest(labels=[label]))
                        identities[label] = made
                        entry = identity_pb2.IpCacheEntry(prefix=prefix, identity=made.id)
                        answer = await ipcache.Publish(
                            identity_pb2.PublishRequest(node="node-1", entries=[entry])
                        )
                    except grpc.aio.AioRpcError:
                        return
                    published[prefix] = max(answer.revision, published.get(prefix, 0))
                    number += 1
                    if len(published) >= 60:
                        enough.set()

            workers = [asyncio.create_task(work(number)) for number in range(4)]
            await asyncio.wait_for(enough.wait(), 20)
            service.kill()
            await asyncio.gather(*workers)

        service = start("identity", tmp_path)
        async with open_channel(service.target) as channel:
            resolver = identity_pb2_grpc.IdentityServiceStub(channel)
            ipcache = identity_pb2_grpc.IpCacheServiceStub(channel)
            for label, known in identities.items():
                again = await resolver.Resolve(identity_pb2.ResolveRequest(labels=[label]))
                assert again == known
            new = await resolver.Resolve(identity_pb2.ResolveRequest(labels=["k8s:app=new"]))
            assert new.id not in {known.id for known in identities.values()}
            assert new.revision > max(known.revision for known in identities.values())
            listed = await ipcache.ListIpCacheEntries(identity_pb2.ListIpCacheEntriesRequest(page_size=1000))
            stored = {entry.prefix: entry.revision for entry in listed.entries}
            assert all(stored[prefix] >= revision for prefix, revision in published.items())
    finally:
        service.kill()


def test_a_busy_port_is_named(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    service = start("identity", first)
    try:
        code, output = run_to_end("identity", second, f"--listen={service.target}")
    finally:
        service.terminate()
    assert code == 1
    assert service.target in output
    assert "in use" in output


def test_a_unix_socket_that_is_served_is_not_taken_over(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    listen = f"--listen=unix:{tmp_path}/identity.sock"
    service = start("identity", first, listen)
    try:
        code, output = run_to_end("identity", second, listen)
        assert (code, f"{tmp_path}/identity.sock" in output) == (1, True)
    finally:
        service.kill()
    # A socket that a killed process left behind is no obstacle.
    assert start("identity", second, listen).terminate() == 0
