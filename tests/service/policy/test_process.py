# SPDX-License-Identifier: Apache-2.0
"""The policy process: what SIGKILL leaves, and life while the identity service is away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.errors import Unavailable
from services.chassis.labels import pod_labels
from services.chassis.telemetry import TraceContext
from tests.service.policy.loader import Loader
from tests.service.policy.manifests import allow_client, network_policy
from tests.service.processes import ServiceProcess, run_to_end, start
from tests.service.refusals import refused


async def resolve(channel: grpc.aio.Channel, app: str) -> identity_pb2.Identity:
    stub = identity_pb2_grpc.IdentityServiceStub(channel)
    labels = pod_labels("shop", {"app": app}, {})
    return await stub.Resolve(identity_pb2.ResolveRequest(labels=labels))


async def apply(channel: grpc.aio.Channel, manifests: str) -> pb.ApplyPoliciesResponse:
    stub = policy_pb2_grpc.PolicyServiceStub(channel)
    return await stub.ApplyPolicies(pb.ApplyPoliciesRequest(manifests=manifests))


def start_policy(directory: Path, identity: ServiceProcess | str, *flags: str) -> ServiceProcess:
    target = identity if isinstance(identity, str) else identity.target
    return start("policy", directory, f"--identity-target={target}", *flags)


async def test_everything_acknowledged_survives_sigkill(
    identity_process: ServiceProcess, tmp_path: Path
) -> None:
    service = start_policy(tmp_path, identity_process)
    stored: dict[str, pb.Policy] = {}
    try:
        async with open_channel(service.target, retry=False) as channel:
            enough = asyncio.Event()

            async def work(worker: int) -> None:
                number = 0
                while True:
                    name = f"w{worker}-{number}"
                    try:
                        made = await apply(
                            channel, network_policy("shop", name, {"podSelector": {}, "ingress": [{}]})
                        )
                    except grpc.aio.AioRpcError:
                        return
                    stored[name] = made.policies[0].policy
                    number += 1
                    if len(stored) >= 60:
                        enough.set()

            workers = [asyncio.create_task(work(number)) for number in range(4)]
            await asyncio.wait_for(enough.wait(), 20)
            service.kill()
            await asyncio.gather(*workers)

        service = start_policy(tmp_path, identity_process)
        async with open_channel(service.target) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            listed = await stub.ListPolicies(pb.ListPoliciesRequest(page_size=1000))
            found = {policy.key.name: policy for policy in listed.policies}
            assert all(found[name] == policy for name, policy in stored.items())
            made = (await apply(channel, network_policy("shop", "new", {"ingress": [{}]}))).policies[0].policy
            assert made.revision > max(policy.revision for policy in found.values())
            assert made.rules[0].cookie > max(policy.rules[0].cookie for policy in found.values())
    finally:
        service.kill()


async def test_nodes_and_their_ports_are_known_after_a_restart(
    identity_process: ServiceProcess, tmp_path: Path
) -> None:
    service = start_policy(tmp_path, identity_process)
    try:
        async with open_channel(identity_process.target) as identities:
            client, web = await resolve(identities, "client"), await resolve(identities, "web")
        named = network_policy("shop", "named", {"egress": [{"ports": [{"port": "http"}]}]})
        async with open_channel(service.target) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            revision = (await apply(channel, named)).revision
            async with Loader(stub, "node-1") as loader:
                loader.watch(1, web.id, web.revision, ports=(("http", 8080),))
                await loader.state(1)
                await stub.WaitEnforced(pb.WaitEnforcedRequest(revision=revision))
        assert service.terminate() == 0

        service = start_policy(tmp_path, identity_process)
        async with open_channel(service.target) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            (known,) = (await stub.ListEnforcement(pb.ListEnforcementRequest())).nodes
            assert (known.node, known.acknowledged.policy, known.subscribed) == ("node-1", revision, False)
            # node-1 is not back, and its pods are there all the same.
            async with Loader(stub, "node-2") as loader:
                loader.watch(1, client.id, client.revision)
                state = await loader.state(1)
                assert set(state.entries) == {(pb.DIRECTION_EGRESS, web.id, 6, 8080, 16)}
    finally:
        service.kill()


async def test_policies_are_served_while_identity_is_away_and_streams_follow_when_it_is_back(
    tmp_path: Path,
) -> None:
    socket = f"unix:{tmp_path}/identity.sock"
    service = start_policy(tmp_path, socket)
    identity: ServiceProcess | None = None
    try:
        async with open_channel(service.target) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            applied = await apply(channel, allow_client("shop"))
            assert (await stub.ListPolicies(pb.ListPoliciesRequest())).revision == applied.revision
            peers = {"from": pb.Peer(identity=300), "to": pb.Peer(identity=301)}
            request = pb.ExplainRequest(protocol=1, port=80, **peers)  # type: ignore[arg-type]
            await refused(stub.Explain(request), Unavailable, "IDENTITIES_UNKNOWN")

            async with Loader(stub, "node-1") as loader:
                loader.watch(1, 256)
                identity = start("identity", tmp_path, f"--listen={socket}")
                async with open_channel(socket) as identities:
                    made = {app: await resolve(identities, app) for app in ("web", "client")}
                    assert made["web"].id == 256
                    state = await loader.state(1)
                    await loader.until(lambda: len(state.entries) == 1)

                    identity.kill()
                    applied = await apply(channel, allow_client("shop", port=81))
                    await loader.reaches(applied.revision)
                    assert [key[3] for key in state.entries] == [81]

                    identity = start("identity", tmp_path, f"--listen={socket}")
                    other = pod_labels("shop", {"app": "client", "tier": "x"}, {})
                    again = await identity_pb2_grpc.IdentityServiceStub(identities).Resolve(
                        identity_pb2.ResolveRequest(labels=other), wait_for_ready=True
                    )
                    await loader.until(lambda: len(state.entries) == 2)
                    assert {key[1] for key in state.entries} == {made["client"].id, again.id}
                    assert state.snapshots == 1
    finally:
        service.kill()
        if identity is not None:
            identity.kill()


async def test_each_watch_is_a_server_span_in_its_own_trace(
    identity_process: ServiceProcess, tmp_path: Path
) -> None:
    spans = tmp_path / "spans.jsonl"
    service = start_policy(tmp_path, identity_process, f"--trace-file={spans}")
    trace_id, span_id = "a" * 32, "b" * 16
    try:
        async with open_channel(identity_process.target) as identities:
            web = await resolve(identities, "web")
        async with open_channel(service.target) as channel:
            async with Loader(policy_pb2_grpc.PolicyServiceStub(channel), "node-1") as loader:
                loader.watch(1, web.id, web.revision, trace=TraceContext(f"00-{trace_id}-{span_id}-01"))
                await loader.state(1)
        assert service.terminate() == 0
    finally:
        service.kill()
    written = [json.loads(line) for line in spans.read_text().splitlines()]
    (found,) = [span for span in written if span["trace_id"] == trace_id]
    assert (found["name"], found["kind"], found["parent_id"]) == ("policy.Subscribe", "SERVER", span_id)
    assert found["attributes"]["identity"] == web.id


def test_settings_that_make_no_sense_are_named(tmp_path: Path) -> None:
    code, output = run_to_end("policy", tmp_path, "--feed-keep=none")
    assert code == 2
    assert "--feed-keep is 'none'" in output
