# SPDX-License-Identifier: Apache-2.0
"""Two policy services over one store answer the same, whichever of them a node or a client talks to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from fimbria.identity.v1 import identity_pb2_grpc
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc
from fimbria.types.v1 import types_pb2
from google.protobuf.duration_pb2 import Duration

from services.chassis.channel import open_channel
from services.chassis.errors import DeadlineExceeded, FailedPrecondition
from services.policy.node_store import REPLICA_SECONDS
from tests.postgres import fresh_database
from tests.service.policy.churn import Promises, churn
from tests.service.policy.loader import Loader
from tests.service.policy.manifests import allow_client, network_policy, to_cidrs
from tests.service.policy.test_restart import agrees, watch_everything
from tests.service.processes import WATCH_SECONDS, ServiceProcess, start
from tests.service.refusals import refused

POLL_SECONDS = 0.05


@dataclass
class Pair:
    """Two replicas and the identity service that both follow."""

    processes: list[ServiceProcess]
    stubs: list[policy_pb2_grpc.PolicyServiceAsyncStub]
    identities: identity_pb2_grpc.IdentityServiceAsyncStub


@pytest.fixture
async def pair(identity_process: ServiceProcess, tmp_path: Path) -> AsyncIterator[Pair]:
    processes: list[ServiceProcess] = []
    try:
        async with AsyncExitStack() as stack:
            url = stack.enter_context(fresh_database("policy"))
            for name in ("a", "b"):
                directory = tmp_path / name
                directory.mkdir()
                processes.append(
                    start(
                        "policy",
                        directory,
                        f"--identity-target={identity_process.target}",
                        f"--database-url={url}",
                    )
                )
            channels = [await stack.enter_async_context(open_channel(each.target)) for each in processes]
            identity = await stack.enter_async_context(open_channel(identity_process.target))
            stubs = [policy_pb2_grpc.PolicyServiceStub(channel) for channel in channels]
            yield Pair(processes, stubs, identity_pb2_grpc.IdentityServiceStub(identity))
    finally:
        for process in processes:
            process.kill()


def wait(revision: int, *nodes: str, seconds: int = 20) -> pb.WaitEnforcedRequest:
    return pb.WaitEnforcedRequest(revision=revision, nodes=nodes, timeout=Duration(seconds=seconds))


async def listed(stub: policy_pb2_grpc.PolicyServiceAsyncStub) -> dict[str, pb.NodeEnforcement]:
    answer = await stub.ListEnforcement(pb.ListEnforcementRequest())
    return {node.node: node for node in answer.nodes}


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = WATCH_SECONDS) -> None:
    """Return as soon as the condition holds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(POLL_SECONDS)


async def apply(stub: policy_pb2_grpc.PolicyServiceAsyncStub, manifests: str) -> int:
    return (await stub.ApplyPolicies(pb.ApplyPoliciesRequest(manifests=manifests))).revision


async def test_both_have_the_same_entries_prefixes_and_explanations(pair: Pair) -> None:
    async with Loader(pair.stubs[0], "node-a") as one, Loader(pair.stubs[1], "node-b") as other:
        loaders = (one, other)
        subjects = [await watch_everything(loader, pair.identities, "both") for loader in loaders]
        promises = Promises()
        workers = [
            churn(worker, 7, "both", pair.stubs[worker % 2], pair.identities, promises, rounds=25)
            for worker in range(4)
        ]
        await asyncio.gather(*workers)
        for stub in pair.stubs:
            await promises.check(stub)
        for loader, watched, stub in zip(loaders, subjects, pair.stubs, strict=True):
            await agrees(loader, watched, stub, pair.identities)
        assert one.prefixes == other.prefixes
        assert {number: state.entries for number, state in one.subjects.items()} == {
            number: state.entries for number, state in other.subjects.items()
        }
        await apply(pair.stubs[0], allow_client("both", port=80))
        revision = await apply(pair.stubs[1], allow_client("both", port=81))
        for stub in pair.stubs:
            await stub.WaitEnforced(wait(revision))
        web, client, _ = subjects[0].values()
        for port in (80, 81):
            request = pb.ExplainRequest(to=pb.Peer(identity=web), protocol=types_pb2.PROTOCOL_TCP, port=port)
            getattr(request, "from").identity = client
            answers = [await stub.Explain(request) for stub in pair.stubs]
            assert answers[0] == answers[1]


async def test_waiting_at_one_counts_the_nodes_of_the_other(pair: Pair) -> None:
    first, second = pair.stubs
    async with Loader(first, "node-a"), Loader(second, "node-b", acknowledges=False) as silent:
        await until(lambda: both_list(pair, {"node-a": True, "node-b": True}))
        revision = await apply(first, allow_client("wait"))
        for stub in pair.stubs:
            assert [node.node for node in (await stub.WaitEnforced(wait(revision, "node-a"))).nodes] == [
                "node-a"
            ]
            error = await refused(
                stub.WaitEnforced(wait(revision, seconds=1)), DeadlineExceeded, "NODES_BEHIND"
            )
            assert error.metadata["nodes"] == "node-b=0"
        waiting = [asyncio.create_task(enforced(stub, revision)) for stub in pair.stubs]
        silent.send(ack=pb.Ack(revision=pb.Revision(policy=revision), error=""))
        for answer in await asyncio.gather(*waiting):
            assert [(node.node, node.acknowledged.policy) for node in answer.nodes] == [
                ("node-a", revision),
                ("node-b", revision),
            ]


async def enforced(stub: policy_pb2_grpc.PolicyServiceAsyncStub, revision: int) -> pb.WaitEnforcedResponse:
    return await stub.WaitEnforced(wait(revision))


async def both_list(pair: Pair, expected: dict[str, bool]) -> bool:
    found = [await listed(stub) for stub in pair.stubs]
    return all({name: node.subscribed for name, node in nodes.items()} == expected for nodes in found)


async def test_a_node_that_changes_its_replica_takes_everything_with_it(pair: Pair) -> None:
    first, second = pair.stubs
    async with Loader(second, "watcher") as watcher:
        subjects = await watch_everything(watcher, pair.identities, "move")
        named = {"podSelector": {}, "egress": [{"ports": [{"port": "http"}]}]}
        revision = await apply(first, network_policy("move", "named", named))
        await second.WaitEnforced(wait(revision))
        async with Loader(first, "node-a") as loader:
            # The ports of pods on a node of the other replica count as well.
            loader.watch(1, subjects[2], ports=(("http", 9090),))
            state = watcher.subjects[3]
            await watcher.until(lambda: (2, subjects[2], 6, 9090, 16) in state.entries)
            await until(lambda: counts(second, "node-a", 1))

            async with Loader(second, "node-a") as moved:
                moved.watch(1, subjects[2], ports=(("http", 9091),))
                moved.watch(2, subjects[3])
                await moved.state(2)
                assert (await loader.ended()).details()
                await watcher.until(
                    lambda: (
                        (2, subjects[2], 6, 9091, 16) in state.entries
                        and (2, subjects[2], 6, 9090, 16) not in state.entries
                    )
                )
                await until(lambda: counts(first, "node-a", 2))
                assert await both_list(pair, {"node-a": True, "watcher": True})
                for stub in pair.stubs:
                    await refused(
                        stub.ForgetNode(pb.ForgetNodeRequest(node="node-a")),
                        FailedPrecondition,
                        "NODE_SUBSCRIBED",
                    )
        await until(lambda: both_list(pair, {"node-a": False, "watcher": True}))
        # Forgetting it by way of the replica that it was never on forgets it everywhere.
        await first.ForgetNode(pb.ForgetNodeRequest(node="node-a"))
        await until(lambda: both_list(pair, {"watcher": True}))
        await watcher.until(lambda: (2, subjects[2], 6, 9091, 16) not in state.entries)


async def counts(stub: policy_pb2_grpc.PolicyServiceAsyncStub, node: str, subjects: int) -> bool:
    found = (await listed(stub)).get(node)
    return found is not None and found.subjects == subjects


async def test_a_replica_that_is_killed_leaves_its_nodes_to_the_other(pair: Pair) -> None:
    first, second = pair.stubs
    loader = Loader(first, "node-a")
    async with loader:
        await until(lambda: both_list(pair, {"node-a": True}))
        pair.processes[0].kill()
    revision = await apply(second, to_cidrs("kill", "web", {"toCIDR": ["192.0.2.0/24"]}))
    await refused(second.WaitEnforced(wait(revision, seconds=1)), DeadlineExceeded, "NODES_BEHIND")
    async with Loader(second, "node-a") as again:
        await second.WaitEnforced(wait(revision))
        assert "192.0.2.0/24" in again.prefixes
    assert not (await listed(second))["node-a"].subscribed


async def test_a_replica_that_is_killed_amid_changes_loses_nothing(pair: Pair) -> None:
    first, second = pair.stubs
    promises = Promises(target=30)
    async with Loader(second, "node-b") as other:
        watched = await watch_everything(other, pair.identities, "amid")
        async with Loader(first, "node-a") as loader:
            await watch_everything(loader, pair.identities, "amid")
            one_by_one = [churn(worker, 5, "amid", first, pair.identities, promises) for worker in (0, 2, 4)]
            dying = [asyncio.create_task(work) for work in one_by_one]
            lasting = [asyncio.create_task(churn(1, 5, "amid", second, pair.identities, promises, rounds=25))]
            await asyncio.wait_for(promises.enough.wait(), WATCH_SECONDS)
            pair.processes[0].kill()
            await asyncio.gather(*dying, *lasting)
        await promises.check(second)
        await agrees(other, watched, second, pair.identities)
        async with Loader(second, "node-a") as again:
            watched = await watch_everything(again, pair.identities, "amid")
            await agrees(again, watched, second, pair.identities)
            assert again.prefixes == other.prefixes
            entries = [
                {number: state.entries for number, state in loader.subjects.items()}
                for loader in (again, other)
            ]
            assert entries[0] == entries[1]


async def test_nodes_of_a_replica_that_is_gone_are_not_subscribed(pair: Pair) -> None:
    first, second = pair.stubs
    async with Loader(first, "node-a"):
        await until(lambda: both_list(pair, {"node-a": True}))
        pair.processes[0].kill()

    async def away() -> bool:
        return not (await listed(second))["node-a"].subscribed

    await until(away, seconds=REPLICA_SECONDS + WATCH_SECONDS)
    await second.ForgetNode(pb.ForgetNodeRequest(node="node-a"))
