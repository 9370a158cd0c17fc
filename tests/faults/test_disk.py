"""A full disk under the store: what was acknowledged is there, the rest is refused until there is room."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc

from cli.lab.postgres import Postgres
from services.chassis.channel import open_channel
from services.chassis.errors import FimbriaError, error_from_rpc
from tests.faults.clients import paged
from tests.faults.nursery import Nursery
from tests.faults.servers import Replica, Replicas, start_all
from tests.patience import patient
from tests.postgres import administrate, migrate

# It mounts a small file system of its own.
pytestmark = pytest.mark.kernel

BATCH: Final = 200
# The room that is left when the trouble begins, in bytes.
ROOM: Final = 1_500_000


@pytest.fixture
def disk(short: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small file system in memory; its size in MB is the parameter."""
    place = short / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={request.param}m,mode=0755", "fimbria-faults", str(place)]
    subprocess.run(["mount", *options], check=True)
    short.chmod(0o755)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


class Ballast:
    """A file that leaves just a little room, until it is thrown off."""

    def __init__(self, place: Path) -> None:
        self._file = place / "ballast"

    def load(self) -> None:
        state = os.statvfs(self._file.parent)
        with self._file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - ROOM)

    def throw_off(self) -> None:
        self._file.unlink()


async def fill(target: str) -> tuple[set[str], list[FimbriaError]]:
    """Publishes until ten calls in a row have failed: what was acknowledged, and the failures."""
    acknowledged: set[str] = set()
    failures: list[FimbriaError] = []
    in_a_row = number = 0
    async with open_channel(target, retry=False) as channel:
        stub = identity_pb2_grpc.IpCacheServiceStub(channel)
        while in_a_row < 10 and number < 250:
            prefixes = [f"10.{number}.{each // 250}.{each % 250}/32" for each in range(BATCH)]
            entries = [identity_pb2.IpCacheEntry(prefix=prefix, identity=2) for prefix in prefixes]
            number += 1
            try:
                request = identity_pb2.PublishRequest(node="n", entries=entries)
                await stub.Publish(request, timeout=patient(10))
            except grpc.RpcError as error:
                failures.append(error_from_rpc(error))
                in_a_row += 1
                await asyncio.sleep(0.05)
            else:
                acknowledged.update(prefixes)
                in_a_row = 0
    return acknowledged, failures


async def check(replicas: Replicas, acknowledged: set[str], unsure: bool) -> None:
    """All that was acknowledged is there, in whole batches; and one more entry can be written."""
    async with open_channel(replicas.target) as channel:
        stub: identity_pb2_grpc.IpCacheServiceAsyncStub = identity_pb2_grpc.IpCacheServiceStub(channel)
        entry = identity_pb2.IpCacheEntry(prefix="11.0.0.1/32", identity=2)
        deadline = time.monotonic() + patient(20)
        while True:
            try:
                await stub.Publish(identity_pb2.PublishRequest(node="n", entries=[entry]))
                break
            except grpc.RpcError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
        listed = await paged(stub.ListIpCacheEntries, identity_pb2.ListIpCacheEntriesRequest(), "entries")
    found = {each.prefix for each in listed}
    assert acknowledged | {entry.prefix} <= found
    more = found - acknowledged - {entry.prefix}
    assert unsure or not more
    assert len(more) % BATCH == 0


@pytest.mark.parametrize("disk", [6], indirect=True)
async def test_sqlite(disk: Path, short: Path, nursery: Nursery) -> None:
    (replica,) = (
        replicas := Replicas.of(nursery, "identity", 1, short, f"sqlite:///{disk}/identity.db")
    ).members
    ballast = Ballast(disk)
    try:
        start_all(replicas.members)
        ballast.load()
        acknowledged, failures = await fill(replicas.target)
        assert acknowledged
        # Refused, and told why: nothing of it may be there.
        assert {each.reason for each in failures} == {"DATABASE_FULL"}, failures
        assert replica.alive
        ballast.throw_off()
        await check(replicas, acknowledged, unsure=False)
        replica.kill()
        start_all(replicas.members)
        await check(replicas, acknowledged, unsure=False)
    finally:
        _end(replicas.members)


@pytest.mark.parametrize("disk", [110], indirect=True)
async def test_postgresql(disk: Path, short: Path, nursery: Nursery) -> None:
    server = Postgres(disk / "pg")
    ballast = Ballast(disk)
    replicas = Replicas.of(nursery, "identity", 2, short, server.url("fimbria"))
    try:
        await asyncio.to_thread(server.start)
        administrate(server, "CREATE DATABASE fimbria TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
        migrate(server.url("fimbria"), "identity")
        start_all(replicas.members)
        ballast.load()
        acknowledged, failures = await fill(replicas.target)
        assert acknowledged and failures
        # Without room for its log the server gives up as a whole: then the outcome is not known.
        codes = {each.code for each in failures}
        assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}, failures
        assert all(each.alive for each in replicas.members)
        ballast.throw_off()
        await asyncio.to_thread(server.start)
        await check(replicas, acknowledged, unsure=True)
    finally:
        _end(replicas.members)
        await asyncio.to_thread(server.remove)


def _end(replicas: list[Replica]) -> None:
    for each in replicas:
        each.kill()
