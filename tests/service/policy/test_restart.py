# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at any time while policies, groups and identities change: nothing promised is lost, and nodes that
subscribe again end with exactly what the policies say.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.labels import pod_labels
from services.policy.rules import NamedPort, Protocol
from tests.service.policy.churn import APPS, Promises, churn
from tests.service.policy.from_nothing import world
from tests.service.policy.loader import Loader
from tests.service.processes import WATCH_SECONDS, ServiceProcess, start

HTTP = NamedPort("http", Protocol.TCP, 8080)
ROUNDS = 4
WORKERS = 3


async def watch_everything(
    loader: Loader, identities: identity_pb2_grpc.IdentityServiceAsyncStub, namespace: str
) -> dict[int, int]:
    """One subject of each app; returns their identities by number. The web pods declare a port."""
    found = {}
    for number, app in enumerate(APPS, 1):
        labels = pod_labels(namespace, {"app": app}, {})
        identity = await identities.Resolve(identity_pb2.ResolveRequest(labels=labels))
        found[number] = identity.id
        ports = (("http", 8080),) if app == "web" else ()
        loader.watch(number, identity.id, identity.revision, ports=ports)
    return found


async def agrees(
    loader: Loader,
    subjects: dict[int, int],
    policies: policy_pb2_grpc.PolicyServiceAsyncStub,
    identities: identity_pb2_grpc.IdentityServiceAsyncStub,
) -> None:
    """The node ends with what follows from all that is listed, prefixes and entries alike."""
    revision = (await policies.ListPolicies(pb.ListPoliciesRequest())).revision
    listed = await identities.ListIdentities(identity_pb2.ListIdentitiesRequest())
    await loader.until(lambda: loader.revision.identity >= listed.revision)
    await policies.WaitEnforced(pb.WaitEnforcedRequest(revision=revision, nodes=[loader.name]))
    expected = await world(policies, identities)
    assert loader.prefixes == expected.told_prefixes()
    web = subjects[1]
    for number, identity in subjects.items():
        state = await loader.state(number)
        own = (HTTP,) if identity == web else ()
        assert state.entries == expected.entries(identity, own, {web: frozenset((HTTP,))}), APPS[number - 1]


@pytest.mark.parametrize("seed", [1, 2])
async def test_kills_at_any_time_lose_nothing(
    identity_process: ServiceProcess, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    namespace = f"restart{seed}"
    promises = Promises()
    flag = f"--identity-target={identity_process.target}"
    service = start("policy", tmp_path, flag)
    try:
        async with open_channel(identity_process.target) as channel:
            identities = identity_pb2_grpc.IdentityServiceStub(channel)
            for turn in range(ROUNDS):
                async with open_channel(service.target, retry=False) as one:
                    policies = policy_pb2_grpc.PolicyServiceStub(one)
                    await promises.check(policies)
                    loader = Loader(policies, "node-1")
                    async with loader:
                        subjects = await watch_everything(loader, identities, namespace)
                        await agrees(loader, subjects, policies, identities)
                        promises.enough.clear()
                        promises.target = promises.kept + chance.randrange(5, 40)
                        workers = [
                            asyncio.create_task(
                                churn(worker, seed * 100 + turn, namespace, policies, identities, promises)
                            )
                            for worker in range(WORKERS)
                        ]
                        await asyncio.wait_for(promises.enough.wait(), WATCH_SECONDS)
                        service.kill()
                        await asyncio.gather(*workers)
                service = start("policy", tmp_path, flag)
            async with open_channel(service.target) as one:
                policies = policy_pb2_grpc.PolicyServiceStub(one)
                await promises.check(policies)
                async with Loader(policies, "node-1") as loader:
                    subjects = await watch_everything(loader, identities, namespace)
                    await agrees(loader, subjects, policies, identities)
                    assert promises.kept > ROUNDS
                    # And life goes on from there, in deltas.
                    for worker in range(WORKERS):
                        await churn(worker, seed, namespace, policies, identities, promises, rounds=15)
                    await promises.check(policies)
                    await agrees(loader, subjects, policies, identities)
                    assert all(state.snapshots == 1 for state in loader.subjects.values())
    finally:
        service.kill()
