"""A store that somebody else has locked: calls end when they must; what was given up is not done later."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import grpc
import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.errors import Unavailable, error_from_rpc
from services.chassis.postgres import lock_key
from tests.faults.storm import NODES, World
from tests.patience import patient


@asynccontextmanager
async def _sqlite_locked(url: str) -> AsyncIterator[None]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@asynccontextmanager
async def _postgres_locked(url: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", lock_key("ipam"))
        yield
    finally:
        await connection.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest) -> World:
    name = "lone" if request.param == "sqlite" else "three"
    found = request.getfixturevalue(name)
    assert isinstance(found, World)
    return found


async def test_what_was_given_up_while_the_store_was_locked_is_not_done_later(world: World) -> None:
    await world.register()
    url = world.ipam.database_url
    locked = _sqlite_locked if url.startswith("sqlite") else _postgres_locked
    async with open_channel(world.ipam.target, retry=False) as channel:
        addresses: ipam_pb2_grpc.AddressServiceAsyncStub = ipam_pb2_grpc.AddressServiceStub(channel)

        def allocate(owner: str, seconds: float) -> asyncio.Task[ipam_pb2.Address]:
            request = ipam_pb2.AllocateRequest(node=NODES[0], owner=owner)

            async def call() -> ipam_pb2.Address:
                return await addresses.Allocate(request, timeout=seconds)

            return asyncio.create_task(call())

        async with locked(url):
            patiently = allocate("patient", patient(30))
            # The first one waits for the lock, and the others behind it.
            await asyncio.sleep(0.2)
            hurried = [allocate(f"hurried-{number}", 0.5) for number in range(40)]
            for task in hurried:
                with pytest.raises(grpc.RpcError) as caught:
                    await task
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            # Reading goes on.
            listed = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(), timeout=patient(5))
            assert not listed.addresses
            # Who waits for longer than the store does is told so, and when to come back.
            with pytest.raises(grpc.RpcError) as caught:
                await patiently
            told = error_from_rpc(caught.value)
            assert isinstance(told, Unavailable) and told.reason == "DATABASE_BUSY" and told.retry_after
        kept = await allocate("kept", patient(20))
        assert kept.address
        listed = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(), timeout=patient(5))
        assert [each.owner for each in listed.addresses] == ["kept"]
