# SPDX-License-Identifier: Apache-2.0
"""A node as a subject: watched by its labels, selected by policies for nodes."""

from __future__ import annotations

from typing import TypeAlias

from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.errors import error_from_rpc
from tests.service.policy.conftest import Namespace
from tests.service.policy.loader import Loader

HOST = 1
Stub: TypeAlias = "policy_pb2_grpc.PolicyServiceAsyncStub"


def for_nodes(name: str, role: str) -> str:
    return f"""
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {{name: {name}}}
spec:
  nodeSelector: {{matchLabels: {{role: {role}}}}}
  ingress:
  - fromEntities: [remote-node]
    toPorts: [{{ports: [{{port: "22", protocol: TCP}}]}}]
"""


async def test_a_policy_for_nodes_reaches_the_nodes_that_it_selects_and_leaves_them_again(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    labels = [f"k8s:role={namespace.name}", "k8s:kubernetes.io/hostname=node-1"]
    node.send(watch=pb.WatchSubject(subject=1, identity=HOST, labels=labels))
    node.send(watch=pb.WatchSubject(subject=2, identity=HOST, labels=["k8s:role=another"]))
    selected, other = await node.state(1), await node.state(2)
    assert not selected.ingress.enforced and not selected.entries

    manifest = for_nodes(namespace.name, namespace.name)
    applied = await policies.ApplyPolicies(pb.ApplyPoliciesRequest(manifests=manifest))
    (policy,) = (item.policy for item in applied.policies)
    assert policy.subject == f"nodes with role={namespace.name}"
    await node.reaches(applied.revision)
    assert selected.ingress.enforced and not selected.egress.enforced
    assert [key.name for key in selected.ingress.enforced_by] == [namespace.name]
    assert list(selected.entries) == [(pb.DIRECTION_INGRESS, 6, 6, 22, 16)]
    assert not other.ingress.enforced and not other.entries

    request = pb.ExplainRequest(
        to=pb.Peer(labels=[*labels, "reserved:host"]), protocol=types_pb2.PROTOCOL_TCP, port=23
    )
    getattr(request, "from").labels.append("reserved:remote-node")
    denied = await policies.Explain(request)
    assert not denied.allowed
    assert "failsafe" in denied.ingress.reason

    deleted = await policies.DeletePolicies(pb.DeletePoliciesRequest(manifests=manifest))
    await node.reaches(deleted.revision)
    assert not selected.ingress.enforced and not selected.entries


async def test_labels_of_another_identity_end_the_stream(node: Loader) -> None:
    node.send(watch=pb.WatchSubject(subject=1, identity=300, labels=["k8s:a=b"]))
    problem = error_from_rpc(await node.ended())
    assert problem.reason == "REQUEST_INVALID"
    assert problem.metadata["field"] == "watch.labels"
