# SPDX-License-Identifier: Apache-2.0
"""Acknowledgements, and waiting for them."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc
from google.protobuf.duration_pb2 import Duration

from services.chassis.errors import DeadlineExceeded, FailedPrecondition
from tests.service.policy.conftest import Namespace
from tests.service.policy.loader import Loader
from tests.service.policy.manifests import allow_client
from tests.service.refusals import refused

Stub: TypeAlias = "policy_pb2_grpc.PolicyServiceAsyncStub"


def wait(revision: int, *nodes: str, seconds: float = 20) -> pb.WaitEnforcedRequest:
    timeout = Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
    return pb.WaitEnforcedRequest(revision=revision, nodes=nodes, timeout=timeout)


async def nodes_of(policies: Stub) -> dict[str, pb.NodeEnforcement]:
    listed = await policies.ListEnforcement(pb.ListEnforcementRequest(page_size=1000))
    return {node.node: node for node in listed.nodes}


async def test_waiting_ends_when_the_nodes_have_acknowledged(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    applied = await policies.ApplyPolicies(pb.ApplyPoliciesRequest(manifests=allow_client(namespace.name)))
    waited = await policies.WaitEnforced(wait(applied.revision, node.name))
    assert [state.node for state in waited.nodes] == [node.name]
    assert waited.nodes[0].acknowledged.policy >= applied.revision
    assert waited.nodes[0].subscribed


async def test_waiting_for_everybody_counts_every_node(namespace: Namespace, policies: Stub) -> None:
    quick, slow = (f"{namespace.name}-{word}" for word in ("quick", "slow"))
    await namespace.identity(app="web")
    async with Loader(policies, quick), Loader(policies, slow, acknowledges=False) as silent:
        await silent.until(lambda: silent.revision.identity >= 0 and bool(silent.revision.ByteSize()))
        applied = await policies.ApplyPolicies(
            pb.ApplyPoliciesRequest(manifests=allow_client(namespace.name))
        )
        error = await refused(
            policies.WaitEnforced(wait(applied.revision, seconds=0.3)), DeadlineExceeded, "NODES_BEHIND"
        )
        assert error.metadata["nodes"] == f"{slow}=0"
        assert slow in error.message
        waiting = asyncio.create_task(_wait(policies, wait(applied.revision)))
        silent.send(ack=pb.Ack(revision=pb.Revision(policy=applied.revision)))
        assert {state.node for state in (await waiting).nodes} >= {quick, slow}
    for name in (quick, slow):
        await policies.ForgetNode(pb.ForgetNodeRequest(node=name))


async def _wait(policies: Stub, request: pb.WaitEnforcedRequest) -> pb.WaitEnforcedResponse:
    return await policies.WaitEnforced(request)


async def test_what_a_node_cannot_realize_is_told(namespace: Namespace, policies: Stub) -> None:
    name = f"{namespace.name}-full"
    # Where nothing ever happened, no revision tells that the node was heard.
    await namespace.identity(app="web")
    async with Loader(policies, name, acknowledges=False) as loader:
        await loader.until(lambda: bool(loader.revision.ByteSize()))
        loader.send(ack=pb.Ack(revision=pb.Revision(), error="policy map is full"))
        applied = await policies.ApplyPolicies(
            pb.ApplyPoliciesRequest(manifests=allow_client(namespace.name))
        )
        await loader.reaches(applied.revision)
        error = await refused(
            policies.WaitEnforced(wait(applied.revision, name, seconds=0.3)),
            DeadlineExceeded,
            "NODES_BEHIND",
        )
        assert "policy map is full" in error.message
        assert (await nodes_of(policies))[name].error == "policy map is full"
    await policies.ForgetNode(pb.ForgetNodeRequest(node=name))


async def test_a_node_that_is_away_counts_until_it_is_forgotten(namespace: Namespace, policies: Stub) -> None:
    name = f"{namespace.name}-away"
    web = await namespace.identity(app="web")
    async with Loader(policies, name) as loader:
        await loader.until(lambda: bool(loader.revision.ByteSize()))
        await refused(
            policies.ForgetNode(pb.ForgetNodeRequest(node=name)), FailedPrecondition, "NODE_SUBSCRIBED"
        )
        loader.watch(1, web.id, web.revision)
        await loader.state(1)
        assert (await nodes_of(policies))[name].subjects == 1
    applied = await policies.ApplyPolicies(pb.ApplyPoliciesRequest(manifests=allow_client(namespace.name)))
    error = await refused(
        policies.WaitEnforced(wait(applied.revision, seconds=0.3)), DeadlineExceeded, "NODES_BEHIND"
    )
    assert name in error.metadata["nodes"]
    assert not (await nodes_of(policies))[name].subscribed
    await policies.ForgetNode(pb.ForgetNodeRequest(node=name))
    assert name not in await nodes_of(policies)
    await policies.WaitEnforced(wait(applied.revision))


async def test_a_node_that_is_named_and_unknown_is_waited_for(policies: Stub) -> None:
    error = await refused(
        policies.WaitEnforced(wait(1, "nobody", seconds=0.2)), DeadlineExceeded, "NODES_BEHIND"
    )
    assert error.metadata["nodes"] == "nobody=0"


async def test_the_call_s_own_deadline_still_leaves_an_answer(policies: Stub) -> None:
    call = policies.WaitEnforced(wait(1, "nobody"), timeout=0.5)
    error = await refused(call, DeadlineExceeded, "NODES_BEHIND")
    assert error.metadata["nodes"] == "nobody=0"
