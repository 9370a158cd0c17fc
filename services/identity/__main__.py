"""`python -m services.identity`: the wiring of the identity process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.chassis.db import Database
from services.chassis.feed import Feed, compact_regularly
from services.chassis.service import ServiceContext, run_service
from services.identity.api import IdentityApi, add_identity_service
from services.identity.collector import Collector, LeaseKeeper, forget_collected
from services.identity.filter_store import FilterStore
from services.identity.ipcache_api import IpCacheApi, add_ipcache_service
from services.identity.ipcache_store import IpCacheStore
from services.identity.measures import observe
from services.identity.numbers import CLUSTER, PREFIXES, Prospect, Space
from services.identity.prefix_store import PrefixStore
from services.identity.remembered import memory_seconds
from services.identity.settings import IdentitySettings
from services.identity.status import StatusReader
from services.identity.store import IdentityStore
from services.identity.unused_store import UnusedStore
from services.identity.usage_store import UsageStore
from services.identity.use_store import UseStore


@asynccontextmanager
async def build(context: ServiceContext[IdentitySettings]) -> AsyncIterator[None]:
    """Opens the store, registers the servicers, and starts garbage collection."""
    settings = context.settings
    database = await context.stack.enter_async_context(
        await Database.open(settings.database_url, migrations="services.identity.migrations")
    )
    serve(context, database, await FilterStore.open(database, Feed(database, "label_filter")))
    yield


def serve(
    context: ServiceContext[IdentitySettings],
    database: Database,
    filters: FilterStore,
    spaces: tuple[Space, Space] = (CLUSTER, PREFIXES),
) -> None:
    """Everything over an open store; `spaces` are the cluster's and the prefixes'."""
    settings = context.settings
    identities, ipcache = Feed(database, "identities"), Feed(database, "ipcache")
    remember = memory_seconds(settings.identity_grace_seconds)

    def prospect(space: Space) -> Prospect:
        return collector.prospect(space)

    cluster, prefixes = spaces
    store = IdentityStore(
        database, identities, time.time_ns, space=cluster, remember_seconds=remember, prospect=prospect
    )
    prefix_store = PrefixStore(
        database, identities, time.time_ns, space=prefixes, remember_seconds=remember, prospect=prospect
    )
    memories = (store.memory, prefix_store.memory)
    uses = UseStore(database, identities, time.time_ns)
    unused = UnusedStore(database, identities)
    collector = Collector(unused, memories, settings.identity_grace_seconds)
    status = StatusReader(spaces, UsageStore(database, spaces, time.time_ns), unused, uses, collector)
    observe(context.telemetry.meter, spaces, collector, status)
    context.server.add(
        add_identity_service,
        IdentityApi(store, prefix_store, uses, filters, status, identities, settings.identity_lease_seconds),
        "fimbria.identity.v1.IdentityService",
    )
    context.server.add(
        add_ipcache_service,
        IpCacheApi(IpCacheStore(database, ipcache), ipcache),
        "fimbria.identity.v1.IpCacheService",
    )
    keeper = LeaseKeeper(uses, memories, settings.identity_lease_seconds)
    context.background(
        compact_regularly([identities, ipcache, filters.feed], settings.feed_keep), "compaction"
    )
    context.background(filters.follow(), "label filter")
    context.background(forget_collected(identities, memories), "memory")
    context.background(keeper.run(), "leases")
    context.background(collector.run(), "garbage collection")
    context.background(status.run(), "usage")


if __name__ == "__main__":
    raise SystemExit(run_service(IdentitySettings, build))
