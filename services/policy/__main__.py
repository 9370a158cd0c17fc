# SPDX-License-Identifier: Apache-2.0
"""`python -m services.policy`: the wiring of the policy process."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fimbria.identity.v1 import identity_pb2_grpc
from fimbria.policy.v1 import policy_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.db import Database
from services.chassis.feed import Feed
from services.chassis.service import ServiceContext, run_service
from services.policy.api import PolicyApi
from services.policy.identities import IdentityFollower
from services.policy.node_store import PORTS_FEED, NodeStore
from services.policy.policies import follow_policies
from services.policy.prefix_leases import PrefixLeases
from services.policy.prefix_numbers import PrefixNumbers
from services.policy.replicas import Replica
from services.policy.settings import PolicySettings
from services.policy.store import FEED, PolicyStore


@asynccontextmanager
async def build(context: ServiceContext[PolicySettings]) -> AsyncIterator[None]:
    """Opens the store, loads what it holds, follows policies and identities, and registers the servicer."""
    settings = context.settings
    database = await context.stack.enter_async_context(
        await Database.open(settings.database_url, migrations="services.policy.migrations")
    )
    feed, ports_feed = Feed(database, FEED), Feed(database, PORTS_FEED)
    store = PolicyStore(database, feed, time.time_ns)
    nodes = NodeStore(database, ports_feed, uuid.uuid4().hex, time.time_ns)
    replica = await Replica.open(nodes, ports_feed, await store.load(), time.time_ns)
    distributor = replica.distributor
    channel = await context.stack.enter_async_context(open_channel(settings.identity_target, retry=False))
    identities = identity_pb2_grpc.IdentityServiceStub(channel)
    leases = PrefixLeases(
        identities,
        distributor.prefix_numbers,
        lambda: distributor.revision.policy,
        store.renumber,
        settings.identity_target,
    )
    follower = IdentityFollower(identities, distributor, settings.identity_target, leases.doubt)
    prefixes = PrefixNumbers(
        identities,
        distributor.number_of_prefix,
        distributor.prefix_of_number,
        settings.identity_target,
        leases.doubt,
    )
    context.server.add(
        policy_pb2_grpc.add_PolicyServiceServicer_to_server,
        PolicyApi(store, nodes, prefixes, distributor, replica.enforcement),
        "fimbria.policy.v1.PolicyService",
    )
    context.stack.push_async_callback(replica.leave)
    tasks = [context.background(work, name) for name, work in replica.tasks()]
    tasks.append(
        context.background(follow_policies(feed, store, distributor, settings.feed_keep), "policies")
    )
    tasks.append(context.background(follower.run(), "identities"))
    tasks.append(context.background(leases.run(), "prefix leases"))
    # Left before the channel and the store are closed: nobody may still be using them then.
    context.stack.push_async_callback(_cancel, tasks)
    yield


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    raise SystemExit(run_service(PolicySettings, build))
