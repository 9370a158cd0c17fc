# SPDX-License-Identifier: Apache-2.0
"""Numbers that policies use are kept in use; what is collected or lost in spite of it is put right."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.channel import open_channel
from services.chassis.labels import pod_labels
from tests.service.policy.loader import Loader
from tests.service.policy.manifests import allow_client, to_cidrs
from tests.service.processes import WATCH_SECONDS, ServiceProcess, start

Identities: TypeAlias = "identity_pb2_grpc.IdentityServiceAsyncStub"
Policies: TypeAlias = "policy_pb2_grpc.PolicyServiceAsyncStub"

SHORT = ("--identity-lease-seconds=1.5", "--identity-grace-seconds=1")


@pytest.fixture
def short_lived(tmp_path: Path) -> Iterator[ServiceProcess]:
    service = start("identity", tmp_path, *SHORT)
    yield service
    assert service.terminate() == 0


@pytest.fixture
def policy(short_lived: ServiceProcess, tmp_path: Path) -> Iterator[ServiceProcess]:
    service = start("policy", tmp_path, f"--identity-target={short_lived.target}")
    yield service
    assert service.terminate() == 0


async def apply(policies: Policies, manifest: str) -> pb.ApplyPoliciesResponse:
    return await policies.ApplyPolicies(pb.ApplyPoliciesRequest(manifests=manifest))


async def collected(identities: Identities, *numbers: int) -> None:
    """Waits until these are gone."""
    left = {*numbers}
    watch = identities.WatchIdentities(
        identity_pb2.WatchIdentitiesRequest(from_revision=1), timeout=WATCH_SECONDS
    )
    async for message in watch:
        for event in message.events:
            if event.type == types_pb2.CHANGE_TYPE_DELETE:
                left.discard(event.identity.id)
        if not left:
            watch.cancel()
            return


async def test_prefixes_of_policies_stay_and_others_go(
    short_lived: ServiceProcess, policy: ServiceProcess
) -> None:
    async with open_channel(short_lived.target) as channel, open_channel(policy.target) as to_policy:
        identities = identity_pb2_grpc.IdentityServiceStub(channel)
        policies = policy_pb2_grpc.PolicyServiceStub(to_policy)
        manifest = to_cidrs("shop", "egress", {"toCIDR": ["198.51.100.0/24"]})
        await apply(policies, manifest)
        request = identity_pb2.ResolvePrefixesRequest(prefixes=["198.51.100.0/24"])
        (used,) = (await identities.ResolvePrefixes(request)).identities
        for turn in range(3):
            # Each of these is there for longer than its grace period, and so is the one in use meanwhile.
            request = identity_pb2.ResolvePrefixesRequest(prefixes=[f"192.0.2.{turn}/32"])
            (other,) = (await identities.ResolvePrefixes(request)).identities
            await collected(identities, other.id)
        assert await identities.GetIdentity(identity_pb2.GetIdentityRequest(id=used.id)) == used
        holders = (await identities.ListHolders(identity_pb2.ListHoldersRequest())).holders
        assert [(holder.name, holder.identities) for holder in holders] == [("policy", 1)]
        await policies.DeletePolicies(pb.DeletePoliciesRequest(manifests=manifest))
        await collected(identities, used.id)


async def test_an_identity_that_is_collected_leaves_the_policies_of_others(
    short_lived: ServiceProcess, policy: ServiceProcess
) -> None:
    async with open_channel(short_lived.target) as channel, open_channel(policy.target) as to_policy:
        identities = identity_pb2_grpc.IdentityServiceStub(channel)
        policies = policy_pb2_grpc.PolicyServiceStub(to_policy)

        async def resolve(app: str, holder: str) -> identity_pb2.Identity:
            labels = list(pod_labels("shop", {"app": app}, {}))
            return await identities.Resolve(identity_pb2.ResolveRequest(labels=labels, holder=holder))

        web, client = await resolve("web", "node/a"), await resolve("client", "node/b")
        await apply(policies, allow_client("shop"))
        async with Loader(policies, "node-a") as node:
            node.watch(1, web.id, web.revision)
            state = await node.state(1)
            await node.until(lambda: client.id in {key[1] for key in state.entries})
            # The one that still holds a lease sees the other go.
            keeping = asyncio.create_task(keep(identities, "node/a", web.id))
            await identities.EndUse(identity_pb2.EndUseRequest(holder="node/b"))
            await node.until(lambda: client.id not in {key[1] for key in state.entries})
            keeping.cancel()


async def keep(identities: Identities, holder: str, number: int) -> None:
    """Reports for ever, three times within the lease."""
    while True:
        report = identity_pb2.ReportUseRequest(holder=holder, identities=[number])
        answer = await identities.ReportUse(report)
        assert not answer.unknown
        await asyncio.sleep(answer.lease_seconds / 3)


async def test_policies_get_the_numbers_of_a_store_that_was_replaced(tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/identity.sock"
    for name in ("former", "new", "policy"):
        (tmp_path / name).mkdir()
    identity = start("identity", tmp_path / "former", f"--listen={socket}")
    service = start("policy", tmp_path / "policy", f"--identity-target={socket}")
    try:
        async with open_channel(service.target, retry=False) as channel:
            policies = policy_pb2_grpc.PolicyServiceStub(channel)
            await apply(policies, to_cidrs("shop", "a", {"toCIDR": ["192.0.2.0/24", "198.51.100.0/24"]}))
            applied = await apply(policies, to_cidrs("shop", "b", {"toCIDR": ["198.51.100.0/24"]}))
            async with Loader(policies, "node-a") as node:
                await node.reaches(applied.revision)
                before = {cidr: use[0] for cidr, use in node.prefixes.items()}
                identity.kill()
                identity = start("identity", tmp_path / "new", f"--listen={socket}")
                async with open_channel(socket) as to_identity:
                    identities = identity_pb2_grpc.IdentityServiceStub(to_identity)
                    for prefixes in (["203.0.113.0/24", "192.0.2.128/25"], sorted(before)):
                        request = identity_pb2.ResolvePrefixesRequest(prefixes=prefixes)
                        answer = await identities.ResolvePrefixes(request)
                right = {cidr: made.id for cidr, made in zip(sorted(before), answer.identities, strict=True)}
                await node.until(lambda: {cidr: use[0] for cidr, use in node.prefixes.items()} == right)
                # A new policy's prefix is resolved as ever.
                last = await apply(policies, to_cidrs("shop", "c", {"toCIDR": ["203.0.113.0/24"]}))
                await node.reaches(last.revision)
                assert node.prefixes["203.0.113.0/24"][0] not in right.values()
    finally:
        service.kill()
        identity.kill()
