# SPDX-License-Identifier: Apache-2.0
"""Why a connection would pass or not."""

from __future__ import annotations

from typing import TypeAlias

from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.errors import InvalidArgument, NotFound
from tests.service.policy.conftest import Namespace
from tests.service.policy.loader import Loader
from tests.service.policy.manifests import allow_client, network_policy
from tests.service.refusals import refused

Stub: TypeAlias = "policy_pb2_grpc.PolicyServiceAsyncStub"
TCP, ICMP = types_pb2.PROTOCOL_TCP, types_pb2.PROTOCOL_ICMP


async def explain(
    policies: Stub,
    sender: pb.Peer,
    receiver: pb.Peer,
    port: int = 80,
    protocol: types_pb2.Protocol.ValueType = TCP,
) -> pb.ExplainResponse:
    request = pb.ExplainRequest(to=receiver, protocol=protocol, port=port, **{"from": sender})
    return await policies.Explain(request)


async def enforced(node: Loader, policies: Stub, manifests: str) -> None:
    applied = await policies.ApplyPolicies(pb.ApplyPoliciesRequest(manifests=manifests))
    await node.reaches(applied.revision)


async def test_the_rule_that_allows_and_the_default_that_denies(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    web, client, stranger = (
        pb.Peer(labels=namespace.labels(app=app)) for app in ("web", "client", "stranger")
    )
    before = await explain(policies, stranger, web)
    assert before.allowed
    assert before.ingress.reason == "allowed: no policy restricts the receiver's ingress"

    await enforced(node, policies, allow_client(namespace.name))
    name = f"CiliumNetworkPolicy {namespace.name}/web"
    allowed = await explain(policies, client, web)
    assert allowed.allowed
    assert allowed.ingress.rule.path == "spec.ingress[0]"
    assert allowed.ingress.rule.policy.name == "web"
    assert allowed.ingress.reason == f"allowed by {name} spec.ingress[0]"
    assert not allowed.egress.enforced

    denied = await explain(policies, stranger, web)
    assert not denied.allowed
    assert denied.egress.allowed
    assert not denied.ingress.HasField("rule")
    assert [key.name for key in denied.ingress.enforced_by] == ["web"]
    assert denied.ingress.reason == (
        f"default deny: no rule allows it, and the receiver is selected by {name}"
    )
    assert not (await explain(policies, client, web, port=81)).allowed
    assert not (await explain(policies, client, web, port=8, protocol=ICMP)).allowed


async def test_ends_by_number_and_reserved_ends(node: Loader, namespace: Namespace, policies: Stub) -> None:
    web = await namespace.identity(app="web")
    node.watch(1, web.id, web.revision)
    await node.state(1)
    await enforced(node, policies, network_policy(namespace.name, "deny", {"podSelector": {}}))
    to = pb.Peer(identity=web.id)
    world = await explain(policies, pb.Peer(identity=2), to)
    assert (world.egress.allowed, world.ingress.allowed) == (True, False)
    assert world.egress.reason == "allowed: no policy is enforced at reserved:world"
    host = await explain(policies, pb.Peer(identity=1), to)
    assert host.allowed
    assert host.ingress.reason == "allowed: a node always reaches its own pods"
    assert not (await explain(policies, pb.Peer(identity=6), to)).allowed


async def test_a_denying_rule_is_named(node: Loader, namespace: Namespace, policies: Stub) -> None:
    manifest = f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: no-client, namespace: {namespace.name}}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  enableDefaultDeny: {{ingress: false}}
  ingressDeny:
  - fromEndpoints: [{{matchLabels: {{app: client}}}}]
"""
    await enforced(node, policies, manifest)
    web, client, other = (pb.Peer(labels=namespace.labels(app=app)) for app in ("web", "client", "other"))
    denied = await explain(policies, client, web)
    assert not denied.allowed
    assert denied.ingress.rule.deny
    assert denied.ingress.reason.endswith("spec.ingressDeny[0]")
    passed = await explain(policies, other, web)
    assert passed.allowed
    assert passed.ingress.reason.startswith("allowed")


async def test_named_ports_are_those_given_or_known(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    web = await namespace.identity(app="web")
    node.watch(1, web.id, web.revision, ports=(("http", 8080),))
    await node.state(1)
    spec = {"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]}
    await enforced(node, policies, network_policy(namespace.name, "named", spec))
    client = pb.Peer(labels=namespace.labels(app="client"))
    assert (await explain(policies, client, pb.Peer(identity=web.id), port=8080)).allowed
    assert not (await explain(policies, client, pb.Peer(identity=web.id), port=80)).allowed
    given = [types_pb2.NamedPort(name="http", port=80, protocol=TCP)]
    other = pb.Peer(labels=namespace.labels(app="web"), named_ports=given)
    assert (await explain(policies, client, other, port=80)).allowed


async def test_questions_that_make_no_sense(node: Loader, namespace: Namespace, policies: Stub) -> None:
    await node.until(lambda: node.revision.identity > 0 or node.revision.policy >= 0)
    web = pb.Peer(labels=namespace.labels(app="web"))
    missing = await refused(explain(policies, pb.Peer(identity=60000), web), NotFound, "IDENTITY_NOT_FOUND")
    assert missing.metadata["field"] == "from.identity"
    error = await refused(explain(policies, pb.Peer(), web), InvalidArgument, "REQUEST_INVALID")
    assert [violation.field for violation in error.violations] == ["from"]
    error = await refused(
        explain(policies, web, pb.Peer(labels=["app=web"])), InvalidArgument, "LABEL_INVALID"
    )
    assert [violation.field for violation in error.violations] == ["to.labels"]
    error = await refused(explain(policies, web, web, port=0), InvalidArgument, "REQUEST_INVALID")
    assert [violation.field for violation in error.violations] == ["port"]
    error = await refused(
        explain(policies, pb.Peer(labels=["k8s:a=b"], identity=2), web), InvalidArgument, "REQUEST_INVALID"
    )
    assert [violation.field for violation in error.violations] == ["from.identity"]
