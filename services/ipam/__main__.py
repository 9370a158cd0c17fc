"""`python -m services.ipam`: the wiring of the ipam process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fimbria.ipam.v1 import ipam_pb2_grpc

from services.chassis.db import Database
from services.chassis.feed import Feed, compact_regularly
from services.chassis.service import ServiceContext, run_service
from services.ipam.address_store import AddressStore
from services.ipam.api import DEFAULT_POOL, AddressApi, NodeApi, PoolApi
from services.ipam.cidr import check_node_mask, parse_cidr
from services.ipam.model import Pool
from services.ipam.settings import IpamSettings
from services.ipam.store import NodeStore, PoolStore


@asynccontextmanager
async def build(context: ServiceContext[IpamSettings]) -> AsyncIterator[None]:
    """Opens the store, makes the default pool where it is missing, and registers the servicers."""
    settings = context.settings
    database = await context.stack.enter_async_context(
        await Database.open(settings.database_url, migrations="services.ipam.migrations")
    )
    feed = Feed(database, "nodes")
    pools = PoolStore(database, time.time_ns)
    await ensure_default_pool(pools, settings)
    server = context.server
    server.add(
        ipam_pb2_grpc.add_NodeServiceServicer_to_server,
        NodeApi(NodeStore(database, feed, time.time_ns), feed),
        "fimbria.ipam.v1.NodeService",
    )
    server.add(ipam_pb2_grpc.add_PoolServiceServicer_to_server, PoolApi(pools), "fimbria.ipam.v1.PoolService")
    server.add(
        ipam_pb2_grpc.add_AddressServiceServicer_to_server,
        AddressApi(AddressStore(database, time.time_ns)),
        "fimbria.ipam.v1.AddressService",
    )
    context.background(compact_regularly([feed], settings.feed_keep), "compaction")
    yield


async def ensure_default_pool(pools: PoolStore, settings: IpamSettings) -> None:
    """Makes the pool `default` that the settings describe.

    One of other content, from an earlier start with other settings, raises AlreadyExists: going on with it
    would ignore what the operator asked for.
    """
    if not settings.ipam_default_pool_cidr:
        return
    cidr = parse_cidr(settings.ipam_default_pool_cidr, "FIMBRIA_IPAM_DEFAULT_POOL_CIDR")
    mask_size = settings.ipam_default_pool_mask_size
    check_node_mask(cidr, mask_size, "FIMBRIA_IPAM_DEFAULT_POOL_MASK_SIZE")
    await pools.create(Pool(DEFAULT_POOL, (cidr,), mask_size))


if __name__ == "__main__":
    raise SystemExit(run_service(IpamSettings, build))
