"""`python -m services.ipam`: the wiring of the ipam process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fimbria.ipam.v1 import ipam_pb2_grpc

from services.chassis.db import Database
from services.chassis.feed import Feed, compact_regularly
from services.chassis.service import ServiceContext, run_service
from services.ipam.address_api import AddressApi
from services.ipam.address_store import AddressStore
from services.ipam.api import NodeApi, PoolApi
from services.ipam.check_store import AddressCheck
from services.ipam.default_pool import ensure_default_pool
from services.ipam.give_back import GiveBack
from services.ipam.holds import sweep_regularly
from services.ipam.node_rows import NODE_FEED
from services.ipam.node_store import NodeStore
from services.ipam.pool_store import PoolStore
from services.ipam.settings import IpamSettings


@asynccontextmanager
async def build(context: ServiceContext[IpamSettings]) -> AsyncIterator[None]:
    """Opens the store, makes the default pool where it is missing, and registers the servicers."""
    settings = context.settings
    database = await context.stack.enter_async_context(
        await Database.open(settings.database_url, migrations="services.ipam.migrations")
    )
    feed = Feed(database, NODE_FEED)
    pools = PoolStore(database, time.time_ns, feed, hold_seconds=settings.ipam_hold_seconds)
    await ensure_default_pool(pools, settings)
    addresses = AddressStore(
        database, feed, time.time_ns, mode=settings.ipam_mode, hold_seconds=settings.ipam_hold_seconds
    )
    server = context.server
    server.add(
        ipam_pb2_grpc.add_NodeServiceServicer_to_server,
        NodeApi(NodeStore(database, feed, time.time_ns, mode=settings.ipam_mode), feed),
        "fimbria.ipam.v1.NodeService",
    )
    server.add(ipam_pb2_grpc.add_PoolServiceServicer_to_server, PoolApi(pools), "fimbria.ipam.v1.PoolService")
    server.add(
        ipam_pb2_grpc.add_AddressServiceServicer_to_server,
        AddressApi(addresses, AddressCheck(database, time.time_ns)),
        "fimbria.ipam.v1.AddressService",
    )
    context.background(GiveBack(database, feed, settings.ipam_cidr_idle_seconds).run(), "give-back")
    context.background(sweep_regularly(addresses.sweep), "sweep of addresses on hold")
    context.background(compact_regularly([feed], settings.feed_keep), "compaction")
    yield


if __name__ == "__main__":
    raise SystemExit(run_service(IpamSettings, build))
