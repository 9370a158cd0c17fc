"""`python -m services.identity`: the wiring of the identity process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fimbria.identity.v1 import identity_pb2_grpc

from services.chassis.db import Database
from services.chassis.feed import Feed, compact_regularly
from services.chassis.service import ServiceContext, run_service
from services.identity.api import IdentityApi, IpCacheApi
from services.identity.ipcache_store import IpCacheStore
from services.identity.prefix_store import PrefixStore
from services.identity.settings import IdentitySettings
from services.identity.store import IdentityStore


@asynccontextmanager
async def build(context: ServiceContext[IdentitySettings]) -> AsyncIterator[None]:
    """Opens the store and registers the servicers."""
    settings = context.settings
    database = await context.stack.enter_async_context(
        await Database.open(settings.database_url, migrations="services.identity.migrations")
    )
    identities = Feed(database, "identities")
    ipcache = Feed(database, "ipcache")
    context.server.add(
        identity_pb2_grpc.add_IdentityServiceServicer_to_server,
        IdentityApi(
            IdentityStore(database, identities, time.time_ns),
            PrefixStore(database, identities, time.time_ns),
            identities,
        ),
        "fimbria.identity.v1.IdentityService",
    )
    context.server.add(
        identity_pb2_grpc.add_IpCacheServiceServicer_to_server,
        IpCacheApi(IpCacheStore(database, ipcache), ipcache),
        "fimbria.identity.v1.IpCacheService",
    )
    context.background(compact_regularly([identities, ipcache], settings.feed_keep), "compaction")
    yield


if __name__ == "__main__":
    raise SystemExit(run_service(IdentitySettings, build))
