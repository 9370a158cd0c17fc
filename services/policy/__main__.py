# SPDX-License-Identifier: Apache-2.0
"""`python -m services.policy`: the wiring of the policy process."""

from __future__ import annotations

import asyncio
import time
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
from services.policy.declared_ports import DeclaredPorts
from services.policy.distribution import Distributor
from services.policy.enforcement import Enforcement
from services.policy.identities import IdentityFollower
from services.policy.node_store import NodeStore
from services.policy.policies import follow_policies
from services.policy.saver import Saver
from services.policy.settings import PolicySettings
from services.policy.store import FEED, PolicyStore


@asynccontextmanager
async def build(context: ServiceContext[PolicySettings]) -> AsyncIterator[None]:
    """Opens the store, loads what it holds, follows policies and identities, and registers the servicer."""
    settings = context.settings
    database = await context.stack.enter_async_context(
        await Database.open(settings.database_url, migrations="services.policy.migrations")
    )
    feed = Feed(database, FEED)
    store, nodes = PolicyStore(database, feed, time.time_ns), NodeStore(database)

    async def save_nodes(marked: list[str]) -> None:
        states = [enforcement.state(name) for name in marked]
        await nodes.save([(state.name, state.acknowledged) for state in states if state is not None])

    async def save_ports(marked: list[str]) -> None:
        for name in marked:
            await nodes.save_ports(name, ports.by_node(name))

    node_saver, port_saver = Saver("nodes", save_nodes), Saver("declared ports", save_ports)
    enforcement = Enforcement(await nodes.load(), node_saver.mark, time.time_ns)
    ports = DeclaredPorts(await nodes.load_ports(), port_saver.mark)
    policies, revision = await store.load()
    distributor = Distributor(policies, revision, ports)
    channel = await context.stack.enter_async_context(open_channel(settings.identity_target, retry=False))
    follower = IdentityFollower(
        identity_pb2_grpc.IdentityServiceStub(channel), distributor, settings.identity_target
    )
    context.server.add(
        policy_pb2_grpc.add_PolicyServiceServicer_to_server,
        PolicyApi(store, nodes, distributor, enforcement),
        "fimbria.policy.v1.PolicyService",
    )
    tasks = []
    for saver in (node_saver, port_saver):
        context.stack.push_async_callback(saver.flush)
        tasks.append(context.background(saver.run(), "saver"))
    tasks.append(
        context.background(follow_policies(feed, store, distributor, settings.feed_keep), "policies")
    )
    tasks.append(context.background(follower.run(), "identities"))
    # Left before the channel and the store are closed: nobody may still be using them then.
    context.stack.push_async_callback(_cancel, tasks)
    yield


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    raise SystemExit(run_service(PolicySettings, build))
