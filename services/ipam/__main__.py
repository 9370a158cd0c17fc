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
from services.ipam.api import DEFAULT_POOL, NodeApi, PoolApi
from services.ipam.cidr import parse_cidr
from services.ipam.family import of_family
from services.ipam.node_store import NodeStore
from services.ipam.plan import plan_pool
from services.ipam.pool_store import PoolStore
from services.ipam.settings import IpamSettings


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
        AddressApi(
            AddressStore(
                database,
                feed,
                time.time_ns,
                mode=settings.ipam_mode,
                hold_seconds=settings.ipam_hold_seconds,
            )
        ),
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
    cidrs = [parse_cidr(text, "FIMBRIA_IPAM_DEFAULT_POOL_CIDR") for text in settings.ipam_default_pool_cidr]
    pool = plan_pool(
        DEFAULT_POOL,
        cidrs,
        # The settings' defaults are there also for a family that nobody asked for.
        settings.ipam_default_pool_mask_size if of_family(cidrs, 4) else 0,
        settings.ipam_default_pool_mask_size_ipv6 if of_family(cidrs, 6) else 0,
        fields={
            4: "FIMBRIA_IPAM_DEFAULT_POOL_MASK_SIZE",
            6: "FIMBRIA_IPAM_DEFAULT_POOL_MASK_SIZE_IPV6",
        },
    )
    await pools.create(pool)


if __name__ == "__main__":
    raise SystemExit(run_service(IpamSettings, build))
