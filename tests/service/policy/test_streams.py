# SPDX-License-Identifier: Apache-2.0
"""What nodes are told, when, and in which order."""

from __future__ import annotations

from typing import TypeAlias

import grpc
import pytest
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc

from services.chassis.errors import error_from_rpc
from services.chassis.telemetry import TraceContext
from tests.service.policy.conftest import Namespace
from tests.service.policy.loader import Loader
from tests.service.policy.manifests import allow_client, network_policy

INGRESS, EGRESS = pb.DIRECTION_INGRESS, pb.DIRECTION_EGRESS
Stub: TypeAlias = "policy_pb2_grpc.PolicyServiceAsyncStub"


async def apply(policies: Stub, manifest: str) -> int:
    return (await policies.ApplyPolicies(pb.ApplyPoliciesRequest(manifests=manifest))).revision


async def test_a_subject_without_policies_has_an_open_snapshot(node: Loader, namespace: Namespace) -> None:
    web = await namespace.identity(app="web")
    node.watch(7, web.id, web.revision)
    state = await node.state(7)
    assert not state.ingress.enforced
    assert not state.egress.enforced
    assert state.entries == {}


async def test_a_policy_reaches_a_watched_subject_as_a_delta(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    web, client = await namespace.identity(app="web"), await namespace.identity(app="client")
    node.watch(1, web.id, web.revision)
    state = await node.state(1)
    revision = await apply(policies, allow_client(namespace.name))
    await node.reaches(revision)
    assert (state.snapshots, state.deltas) == (1, 1)
    assert state.ingress.enforced
    assert [key.name for key in state.ingress.enforced_by] == ["web"]
    ((key, (deny, cookie)),) = state.entries.items()
    assert key == (INGRESS, client.id, 6, 80, 16)
    assert not deny
    assert state.rules[cookie].path == "spec.ingress[0]"
    assert state.rules[cookie].policy.name == "web"


async def test_a_new_identity_is_told_before_the_progress_that_names_it(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    web = await namespace.identity(app="web")
    node.watch(1, web.id, web.revision)
    state = await node.state(1)
    await node.reaches(await apply(policies, allow_client(namespace.name)))
    assert state.entries == {}
    client = await namespace.identity(app="client")
    await node.until(lambda: node.revision.identity >= client.revision)
    assert [key[1] for key in state.entries] == [client.id]


async def test_a_snapshot_waits_for_its_identity(node: Loader, namespace: Namespace) -> None:
    web = await namespace.identity(app="web")
    node.watch(1, web.id, web.revision + 1)
    node.watch(2, web.id, web.revision)
    await node.state(2)
    assert 1 not in node.subjects
    await namespace.identity(app="next")
    await node.state(1)


async def test_a_deleted_policy_leaves_nothing(node: Loader, namespace: Namespace, policies: Stub) -> None:
    web = await namespace.identity(app="web")
    await namespace.identity(app="client")
    await apply(policies, allow_client(namespace.name))
    node.watch(1, web.id, web.revision)
    state = await node.state(1)
    assert state.entries
    key = pb.PolicyKey(kind="CiliumNetworkPolicy", namespace=namespace.name, name="web")
    deleted = await policies.DeletePolicies(pb.DeletePoliciesRequest(keys=[key]))
    assert list(deleted.deleted) == [key]
    await node.reaches(deleted.revision)
    assert state.entries == {}
    assert not state.ingress.enforced
    again = await policies.DeletePolicies(pb.DeletePoliciesRequest(keys=[key]))
    assert list(again.deleted) == []


async def test_an_unwatched_subject_is_told_nothing_more(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    web = await namespace.identity(app="web")
    node.watch(1, web.id, web.revision)
    node.watch(2, web.id, web.revision)
    first, second = await node.state(1), await node.state(2)
    node.unwatch(1)
    node.watch(3, web.id, web.revision)  # its snapshot says that the unwatch has been read
    await node.state(3)
    await node.reaches(await apply(policies, allow_client(namespace.name)))
    assert (first.deltas, second.deltas) == (0, 1)


async def test_watching_again_sends_a_new_snapshot(node: Loader, namespace: Namespace) -> None:
    web = await namespace.identity(app="web")
    node.watch(1, web.id, web.revision)
    await node.state(1)
    node.watch(1, web.id, web.revision)
    await node.until(lambda: node.subjects[1].snapshots == 2)


async def test_named_ports_are_those_of_the_destination(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    client, web, db = [await namespace.identity(app=app) for app in ("client", "web", "db")]
    await apply(
        policies,
        network_policy(
            namespace.name,
            "named",
            {
                "podSelector": {},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"ports": [{"port": "http"}]}],
                "egress": [{"ports": [{"port": "http"}]}],
            },
        ),
    )
    node.watch(1, client.id, client.revision)
    state = await node.state(1)
    assert state.entries == {}
    node.watch(2, web.id, web.revision, ports=(("http", 8080),))
    node.watch(3, db.id, db.revision, ports=(("http", 9090), ("sql", 5432)))
    await node.state(3)
    await node.until(lambda: len(state.entries) == 2)
    assert set(state.entries) == {(EGRESS, web.id, 6, 8080, 16), (EGRESS, db.id, 6, 9090, 16)}
    assert (INGRESS, 0, 6, 8080, 16) in node.subjects[2].entries
    node.unwatch(2)
    await node.until(lambda: set(state.entries) == {(EGRESS, db.id, 6, 9090, 16)})


async def test_ports_of_a_node_that_is_away_still_count(namespace: Namespace, policies: Stub) -> None:
    client, web = await namespace.identity(app="client"), await namespace.identity(app="web")
    await apply(
        policies,
        network_policy(
            namespace.name, "named", {"podSelector": {}, "egress": [{"ports": [{"port": "http"}]}]}
        ),
    )
    names = [f"{namespace.name}-{letter}" for letter in "ab"]
    async with Loader(policies, names[0]) as here:
        async with Loader(policies, names[1]) as there:
            there.watch(1, web.id, web.revision, ports=(("http", 8080),))
            await there.state(1)
        here.watch(1, client.id, client.revision)
        state = await here.state(1)
        assert set(state.entries) == {(EGRESS, web.id, 6, 8080, 16)}
        # It comes back without that pod, and says so by acknowledging what it has.
        async with Loader(policies, names[1]):
            await here.until(lambda: not state.entries)
    for name in names:
        await policies.ForgetNode(pb.ForgetNodeRequest(node=name))


async def test_deltas_carry_the_trace_of_the_apply_and_snapshots_that_of_the_watch(
    node: Loader, namespace: Namespace, channel: grpc.aio.Channel
) -> None:
    web, _ = await namespace.identity(app="web"), await namespace.identity(app="client")
    watching = TraceContext("00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    node.watch(1, web.id, web.revision, trace=watching)
    state = await node.state(1)
    assert state.traces == [watching.traceparent]
    # A plain channel: the stub's own channel would put its span's context in place of this one.
    applying = "00-" + "c" * 32 + "-" + "d" * 16 + "-01"
    async with grpc.aio.insecure_channel(channel.target) as plain:  # type: ignore[attr-defined]
        stub = policy_pb2_grpc.PolicyServiceStub(plain)
        applied = await stub.ApplyPolicies(
            pb.ApplyPoliciesRequest(manifests=allow_client(namespace.name)),
            metadata=(("traceparent", applying),),
        )
    await node.reaches(applied.revision)
    assert state.traces[1].split("-")[1] == "c" * 32
    assert state.traces[1] != applying  # the parent is the service's own span


async def test_a_second_stream_of_a_node_ends_the_first(namespace: Namespace, policies: Stub) -> None:
    name = f"twice-{namespace.name}"
    async with Loader(policies, name) as first:
        await first.until(lambda: first.revision.identity > 0)
        async with Loader(policies, name) as second:
            error = error_from_rpc(await first.ended())
            assert error.reason == "SUBSCRIPTION_REPLACED"
            await second.until(lambda: second.revision.identity > 0)
    await policies.ForgetNode(pb.ForgetNodeRequest(node=name))


@pytest.mark.parametrize(
    "message",
    [
        pb.SubscribeRequest(unwatch=pb.UnwatchSubject(subject=1)),
        pb.SubscribeRequest(),
        pb.SubscribeRequest(hello=pb.Hello()),
    ],
    ids=["no hello", "empty", "nameless"],
)
async def test_a_stream_starts_with_a_hello(policies: Stub, message: pb.SubscribeRequest) -> None:
    call = policies.Subscribe(iter([message]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert error_from_rpc(caught.value).reason == "REQUEST_INVALID"


async def test_several_manifests_are_one_change(node: Loader, namespace: Namespace, policies: Stub) -> None:
    web, _ = await namespace.identity(app="web"), await namespace.identity(app="client")
    node.watch(1, web.id, web.revision)
    state = await node.state(1)
    deny = network_policy(namespace.name, "deny", {"podSelector": {}})
    revision = await apply(policies, f"{allow_client(namespace.name)}\n---\n{deny}")
    await node.reaches(revision)
    assert state.deltas == 1
    assert [key.name for key in state.ingress.enforced_by] == ["web", "deny"]
