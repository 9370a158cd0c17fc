"""More callers than a process has room for: it refuses what is too much, and does right what it accepts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.overload import OVERLOADED, when_there_is_room
from tests.faults.clients import Load
from tests.faults.conftest import running
from tests.faults.nursery import Nursery
from tests.faults.servers import Replicas
from tests.faults.storm import World
from tests.faults.verdict import check_entries
from tests.patience import patient

ROOM = ("--max-calls=4", "--max-watches=2")


@pytest.fixture
def narrow(nursery: Nursery, short: Path, seed: int) -> Iterator[World]:
    """One identity process with room for four calls and two watches."""
    identity = Replicas.of(nursery, "identity", 1, short, f"sqlite:///{short}/identity.db", *ROOM)
    with running(World(Replicas("ipam", ""), identity, seed)) as world:
        yield world


async def test_thirty_two_callers_where_four_have_room(narrow: World) -> None:
    target = narrow.identity.target
    async with (
        Load(target, target, narrow.seed, only=("numbers", "entries")) as load,
        open_channel(target, retry=False) as channel,
    ):
        await load.more(200)
        # Who comes back when told to gets an answer, however many others do not.
        stub: identity_pb2_grpc.IdentityServiceAsyncStub = identity_pb2_grpc.IdentityServiceStub(channel)
        request = identity_pb2.ResolveRequest(labels=["k8s:app=patient"])
        found = await when_there_is_room(lambda: stub.Resolve(request), seconds=patient(20))
        await load.stop()
        again = await stub.Resolve(request)
        assert again == found
        # It is known to the history as well: the table is held against that.
        with load.numbers.operation("take", "k8s:app=patient") as done:
            done.result = str(again.id)
        counted = await check_entries(load)
    print(counted)
    assert counted["refused"] > 10 and counted["unknown"] == 0


async def test_a_third_watch_is_refused_and_one_that_ends_makes_room(narrow: World) -> None:
    async with open_channel(narrow.identity.target, retry=False) as channel:
        stub: identity_pb2_grpc.IpCacheServiceAsyncStub = identity_pb2_grpc.IpCacheServiceStub(channel)
        held = [stub.WatchIpCache(identity_pb2.WatchIpCacheRequest()) for _ in range(2)]
        for watch in held:
            assert getattr(await watch.read(), "snapshot_complete", False)
        third = stub.WatchIpCache(identity_pb2.WatchIpCacheRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await third.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert OVERLOADED.encode() in dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
        held[0].cancel()

        async def first() -> object:
            return await stub.WatchIpCache(identity_pb2.WatchIpCacheRequest()).read()

        message = await when_there_is_room(first, seconds=patient(20))
        assert getattr(message, "snapshot_complete", False)
