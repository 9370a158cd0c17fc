# SPDX-License-Identifier: Apache-2.0
"""What decides, what would change and how far policies have come, asked of a running service."""

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
TCP, ICMPV6 = types_pb2.PROTOCOL_TCP, types_pb2.PROTOCOL_ICMPV6


def question(sender: pb.Peer, receiver: pb.Peer, port: int = 80, protocol: int = TCP) -> pb.ExplainRequest:
    return pb.ExplainRequest(to=receiver, protocol=protocol, port=port, **{"from": sender})  # type: ignore[arg-type]


def connection(sender: pb.Peer, receiver: pb.Peer, port: int = 80) -> pb.Connection:
    return pb.Connection(to=receiver, protocol=TCP, port=port, **{"from": sender})


async def apply(node: Loader, policies: Stub, manifests: str, source: str = "") -> int:
    applied = await policies.ApplyPolicies(pb.ApplyPoliciesRequest(manifests=manifests, source=source))
    await node.reaches(applied.revision)
    return int(applied.revision)


async def test_the_entry_the_file_and_the_remedies(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    web, client = (pb.Peer(labels=namespace.labels(app=app)) for app in ("web", "client"))
    await apply(node, policies, allow_client(namespace.name), "web.yaml")
    allowed = await policies.Explain(question(client, web))
    rule = allowed.ingress.contributing[0]
    assert (rule.source, rule.path, rule.action) == ("web.yaml", "spec.ingress[0]", pb.ACTION_ALLOW)
    assert rule.line > 1 and rule == allowed.ingress.rule
    assert allowed.ingress.entry.rule_cookie == rule.cookie
    assert (allowed.ingress.entry.port, allowed.ingress.entry.port_prefix_length) == (80, 16)
    denied = await policies.Explain(question(client, web, port=81))
    assert not denied.ingress.HasField("entry")
    assert any(text.startswith("a rule that allows it") for text in denied.remedies)


async def test_ends_by_address(node: Loader, namespace: Namespace, policies: Stub) -> None:
    spec = {
        "podSelector": {},
        "ingress": [{"from": [{"ipBlock": {"cidr": "198.51.100.0/24", "except": ["198.51.100.128/25"]}}]}],
    }
    await apply(node, policies, network_policy(namespace.name, "block", spec))
    web = pb.Peer(labels=namespace.labels(app="web"))
    for address, expected in (("198.51.100.7", True), ("198.51.100.200", False), ("2001:db8::1", False)):
        outside = await policies.Explain(question(pb.Peer(address=address), web))
        assert outside.allowed is expected
        pod = pb.Peer(labels=namespace.labels(app="client"), address=address)
        assert (await policies.Explain(question(pod, web))).allowed is expected
    without = await policies.Explain(question(pb.Peer(labels=namespace.labels(app="client")), web))
    assert "selects by address" in without.ingress.reason
    error = await refused(
        policies.Explain(question(pb.Peer(address="nowhere"), web)), InvalidArgument, "REQUEST_INVALID"
    )
    assert error.violations[0].field == "from.address"
    error = await refused(
        policies.Explain(question(web, web, 256, ICMPV6)), InvalidArgument, "REQUEST_INVALID"
    )
    assert error.violations[0].field == "port"


async def test_what_a_manifest_would_change(node: Loader, namespace: Namespace, policies: Stub) -> None:
    web = await namespace.identity(app="web")
    client = await namespace.identity(app="client")
    node.watch(1, web.id, web.revision)
    node.watch(2, client.id, client.revision)
    await node.state(2)
    flows = [
        connection(pb.Peer(identity=client.id), pb.Peer(identity=web.id)),
        connection(pb.Peer(identity=client.id), pb.Peer(identity=web.id), 81),
        connection(pb.Peer(address="192.0.2.1"), pb.Peer(identity=web.id)),
    ]
    request = pb.DiffPoliciesRequest(manifests=allow_client(namespace.name), connections=flows)
    answer = await policies.DiffPolicies(request)
    assert [item.outcome for item in answer.policies] == [pb.AppliedPolicy.OUTCOME_CREATED]
    assert {change.subject for change in answer.changes} == {web.id}
    assert {change.nodes for change in answer.changes} == {1}
    every = [change for change in answer.changes if change.every_other_peer]
    assert [(c.allowed_before, c.allowed_after, c.protocol, c.last_port) for c in every] == [
        (True, False, 0, 65535)
    ]
    of_client = [change for change in answer.changes if client.id in change.peers and change.protocol == 6]
    assert [(c.first_port, c.last_port, c.allowed_after) for c in of_client] == [
        (0, 79, False),
        (81, 65535, False),
    ]
    assert [(c.index, c.allowed_before, c.allowed_after) for c in answer.connections] == [
        (1, True, False),
        (2, True, False),
    ]
    assert not answer.connections[0].ingress.allowed
    # Nothing was applied.
    missing = pb.GetPolicyRequest(
        key=pb.PolicyKey(kind="CiliumNetworkPolicy", namespace=namespace.name, name="web")
    )
    await refused(policies.GetPolicy(missing), NotFound, "POLICY_NOT_FOUND")

    await apply(node, policies, allow_client(namespace.name))
    same = await policies.DiffPolicies(request)
    assert not same.changes and not same.connections
    wider = await policies.DiffPolicies(
        pb.DiffPoliciesRequest(deletes=[missing.key], connections=flows, max_changes=1)
    )
    assert len(wider.changes) == 1 and wider.omitted == len(answer.changes) - 1
    assert [(c.index, c.allowed_before, c.allowed_after) for c in wider.connections] == [
        (1, False, True),
        (2, False, True),
    ]


async def test_a_prefix_without_a_number_yet(node: Loader, namespace: Namespace, policies: Stub) -> None:
    web = await namespace.identity(app="web")
    node.watch(1, web.id, web.revision)
    await node.state(1)
    manifest = allow_client(namespace.name).replace(
        "fromEndpoints:\n    - matchLabels:\n        app: client", "fromCIDR: [203.0.113.0/24]"
    )
    flow = connection(pb.Peer(address="203.0.113.9"), pb.Peer(identity=web.id))
    other = connection(pb.Peer(address="203.0.114.9"), pb.Peer(identity=web.id))
    answer = await policies.DiffPolicies(
        pb.DiffPoliciesRequest(manifests=manifest, connections=[flow, other])
    )
    assert [change.index for change in answer.connections] == [1]
    named = [name for change in answer.changes for name in change.peer_names]
    assert "203.0.113.0/24 outside the cluster" in named


async def test_a_group_changes_the_policies_that_name_it(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    web = await namespace.identity(app="web")
    node.watch(1, web.id, web.revision)
    await node.state(1)
    name = f"group-{namespace.name}"
    manifest = allow_client(namespace.name).replace(
        "fromEndpoints:\n    - matchLabels:\n        app: client",
        f"fromCIDRSet: [{{cidrGroupRef: {name}}}]",
    )
    await apply(node, policies, manifest)
    status = (await policies.ListPolicyStatus(pb.ListPolicyStatusRequest(key=key(namespace)))).policies[0]
    assert any(name in note and "matches nobody" in note for note in status.notes)
    group = (
        "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\n"
        f"metadata: {{name: {name}}}\nspec: {{externalCIDRs: [203.0.113.0/25]}}\n"
    )
    answer = await policies.DiffPolicies(pb.DiffPoliciesRequest(manifests=group))
    assert [(c.protocol, c.first_port, c.last_port, c.allowed_after) for c in answer.changes] == [
        (6, 80, 80, True)
    ]
    assert list(answer.changes[0].peer_names) == ["203.0.113.0/25 outside the cluster"]


def key(namespace: Namespace) -> pb.PolicyKey:
    return pb.PolicyKey(kind="CiliumNetworkPolicy", namespace=namespace.name, name="web")


async def test_questions_about_a_diff_that_make_no_sense(policies: Stub, namespace: Namespace) -> None:
    error = await refused(policies.DiffPolicies(pb.DiffPoliciesRequest()), InvalidArgument, "REQUEST_INVALID")
    assert error.violations[0].field == "manifests"
    await refused(
        policies.DiffPolicies(pb.DiffPoliciesRequest(manifests="kind: Pod")),
        InvalidArgument,
        "POLICY_INVALID",
    )
    bad = pb.DiffPoliciesRequest(
        manifests=allow_client(namespace.name),
        connections=[connection(pb.Peer(), pb.Peer(address="192.0.2.1"))],
    )
    error = await refused(policies.DiffPolicies(bad), InvalidArgument, "REQUEST_INVALID")
    assert error.violations[0].field == "connections[0].from"


async def test_status_says_who_is_late_and_why(namespace: Namespace, policies: Stub) -> None:
    web = await namespace.identity(app="web")
    good, silent = f"good-{namespace.name}", f"silent-{namespace.name}"
    request = pb.ListPolicyStatusRequest(key=key(namespace))
    await refused(policies.ListPolicyStatus(request), NotFound, "POLICY_NOT_FOUND")
    async with Loader(policies, good) as first, Loader(policies, silent) as second:
        for loader in (first, second):
            loader.watch(7, web.id, web.revision)
            await loader.state(7)
        second.acknowledges = False
        revision = await apply(first, policies, allow_client(namespace.name))
        await policies.WaitEnforced(pb.WaitEnforcedRequest(revision=revision, nodes=[good]))
        (status,) = (await policies.ListPolicyStatus(request)).policies
        assert (status.enforced, status.revision, status.tier) == (False, revision, pb.TIER_NORMAL)
        (subject,) = status.subjects
        assert subject.identity == web.id and sorted(subject.labels) == sorted(namespace.labels(app="web"))
        assert [(node.node, node.enforced) for node in subject.nodes] == [(good, True), (silent, False)]
        late = subject.nodes[1]
        assert late.late.startswith("not acknowledged yet; it has acknowledged revision ")
        assert late.late_for.ToNanoseconds() > 0

        second.send(
            ack=pb.Ack(revision=pb.Revision(policy=revision - 1), error="no memory", failed_subjects=[7])
        )
        await second.reaches(revision)

        async def told() -> str:
            answer = await policies.ListPolicyStatus(request)
            return answer.policies[0].subjects[0].nodes[1].late

        while "no memory" not in (text := await told()):
            pass
        assert text.startswith("it could not realize this subject: no memory")
    while "not subscribed" not in (text := await told()):
        pass
    for name in (good, silent):
        await policies.ForgetNode(pb.ForgetNodeRequest(node=name))
    (status,) = (await policies.ListPolicyStatus(request)).policies
    assert status.enforced and not status.subjects
    assert list(status.notes) == ["no node has a pod that it selects, of 1 identities"]


async def test_status_is_paged(node: Loader, namespace: Namespace, policies: Stub) -> None:
    for name in ("a", "b"):
        await apply(node, policies, network_policy(namespace.name, name, {"podSelector": {}}))
    found: list[str] = []
    request = pb.ListPolicyStatusRequest(page_size=1)
    while True:
        answer = await policies.ListPolicyStatus(request)
        found += [item.key.name for item in answer.policies if item.key.namespace == namespace.name]
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    assert found == ["a", "b"]
