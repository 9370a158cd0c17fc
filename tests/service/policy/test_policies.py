# SPDX-License-Identifier: Apache-2.0
"""Applying, reading and deleting policies."""

from __future__ import annotations

import json
from typing import TypeAlias

import pytest
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc

from services.chassis.errors import InvalidArgument, NotFound
from tests.service.policy.conftest import Namespace
from tests.service.policy.manifests import allow_client, network_policy
from tests.service.refusals import refused

Stub: TypeAlias = "policy_pb2_grpc.PolicyServiceAsyncStub"
CREATED, CHANGED, UNCHANGED = (
    pb.AppliedPolicy.OUTCOME_CREATED,
    pb.AppliedPolicy.OUTCOME_CHANGED,
    pb.AppliedPolicy.OUTCOME_UNCHANGED,
)


async def apply(policies: Stub, manifests: str, *, dry_run: bool = False) -> pb.ApplyPoliciesResponse:
    return await policies.ApplyPolicies(pb.ApplyPoliciesRequest(manifests=manifests, validate_only=dry_run))


def key(namespace: Namespace, name: str = "web", kind: str = "CiliumNetworkPolicy") -> pb.PolicyKey:
    return pb.PolicyKey(kind=kind, namespace=namespace.name, name=name)


async def test_apply_change_and_apply_again(policies: Stub, namespace: Namespace) -> None:
    first = await apply(policies, allow_client(namespace.name))
    assert [applied.outcome for applied in first.policies] == [CREATED]
    made = first.policies[0].policy
    assert made.revision == first.revision
    assert made.subject == f"app=web in namespace {namespace.name}"
    assert [rule.path for rule in made.rules] == ["spec.ingress[0]"]
    assert made.rules[0].description == f"from app=client in namespace {namespace.name} to port 80/TCP"
    assert made.update_time.seconds > 1_700_000_000

    same = await apply(policies, allow_client(namespace.name))
    assert [applied.outcome for applied in same.policies] == [UNCHANGED]
    assert same.policies[0].policy == made

    other = await apply(policies, allow_client(namespace.name, port=81))
    assert [applied.outcome for applied in other.policies] == [CHANGED]
    changed = other.policies[0].policy
    assert changed.revision > made.revision
    assert changed.rules[0].cookie == made.rules[0].cookie
    assert await policies.GetPolicy(pb.GetPolicyRequest(key=key(namespace))) == changed
    assert json.loads(changed.manifest)["spec"]["ingress"][0]["toPorts"][0]["ports"][0]["port"] == "81"


async def test_rule_numbers_are_never_used_again(policies: Stub, namespace: Namespace) -> None:
    seen: set[int] = set()
    for _ in range(3):
        made = (await apply(policies, allow_client(namespace.name))).policies[0].policy
        assert made.rules[0].cookie not in seen
        seen.add(made.rules[0].cookie)
        await policies.DeletePolicies(pb.DeletePoliciesRequest(keys=[key(namespace)]))
    rules = [{"ports": [{"port": port}]} for port in (80, 81)]
    spec = {"podSelector": {}, "ingress": rules}
    two = (await apply(policies, network_policy(namespace.name, "web", spec))).policies[0].policy
    one = (
        (await apply(policies, network_policy(namespace.name, "web", {**spec, "ingress": rules[:1]})))
        .policies[0]
        .policy
    )
    again = (await apply(policies, network_policy(namespace.name, "web", spec))).policies[0].policy
    assert one.rules[0].cookie == two.rules[0].cookie == again.rules[0].cookie
    assert again.rules[1].cookie > two.rules[1].cookie


async def test_a_dry_run_says_what_would_happen_and_changes_nothing(
    policies: Stub, namespace: Namespace
) -> None:
    planned = await apply(policies, allow_client(namespace.name), dry_run=True)
    assert [applied.outcome for applied in planned.policies] == [CREATED]
    await refused(policies.GetPolicy(pb.GetPolicyRequest(key=key(namespace))), NotFound, "POLICY_NOT_FOUND")
    before = (await apply(policies, allow_client(namespace.name))).policies[0].policy
    planned = await apply(policies, allow_client(namespace.name, port=81), dry_run=True)
    assert [applied.outcome for applied in planned.policies] == [CHANGED]
    assert await policies.GetPolicy(pb.GetPolicyRequest(key=key(namespace))) == before


async def test_what_is_wrong_stores_nothing_and_names_every_field(
    policies: Stub, namespace: Namespace
) -> None:
    good = allow_client(namespace.name)
    bad = network_policy(
        namespace.name, "bad", {"podSelector": {}, "ingress": [{"ports": [{"port": 0}, {"port": 70000}]}]}
    )
    error = await refused(apply(policies, f"{good}\n---\n{bad}"), InvalidArgument, "POLICY_INVALID")
    assert [violation.field for violation in error.violations] == [
        "documents[1].spec.ingress[0].ports[0].port",
        "documents[1].spec.ingress[0].ports[1].port",
    ]
    assert f"NetworkPolicy {namespace.name}/bad: got 70000" in error.violations[1].description
    await refused(policies.GetPolicy(pb.GetPolicyRequest(key=key(namespace))), NotFound, "POLICY_NOT_FOUND")


async def test_what_is_not_supported_yet_has_a_reason_of_its_own(
    policies: Stub, namespace: Namespace
) -> None:
    manifest = f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: web, namespace: {namespace.name}}}
spec:
  endpointSelector: {{}}
  egress: [{{toFQDNs: [{{matchName: example.org}}]}}]
"""
    error = await refused(apply(policies, manifest), InvalidArgument, "POLICY_UNSUPPORTED")
    assert [violation.field for violation in error.violations] == ["spec.egress[0].toFQDNs"]


@pytest.mark.parametrize(
    ("manifests", "reason"), [("", "REQUEST_INVALID"), ("{", "POLICY_INVALID"), ("---", "POLICY_INVALID")]
)
async def test_text_that_is_no_manifest(policies: Stub, manifests: str, reason: str) -> None:
    await refused(apply(policies, manifests), InvalidArgument, reason)


async def test_a_long_manifest_is_applied_as_a_whole(policies: Stub, namespace: Namespace) -> None:
    many = "\n---\n".join(
        network_policy(namespace.name, f"p{number}", {"podSelector": {}, "ingress": [{}]})
        for number in range(250)
    )
    applied = await apply(policies, many)
    assert len(applied.policies) == 250
    assert len({policy.policy.revision for policy in applied.policies}) == 250

    listed: list[str] = []
    token = ""
    while True:
        page = await policies.ListPolicies(
            pb.ListPoliciesRequest(namespace=namespace.name, page_size=100, page_token=token)
        )
        listed += [policy.key.name for policy in page.policies]
        assert all(len(policy.rules) == 1 for policy in page.policies)
        token = page.next_page_token
        if not token:
            break
    assert listed == sorted(f"p{number}" for number in range(250))

    gone = await policies.DeletePolicies(pb.DeletePoliciesRequest(manifests=many))
    assert len(gone.deleted) == 250
    empty = await policies.ListPolicies(pb.ListPoliciesRequest(namespace=namespace.name))
    assert list(empty.policies) == []


async def test_a_list_of_everything_goes_by_kind_namespace_and_name(
    policies: Stub, namespace: Namespace
) -> None:
    await apply(policies, allow_client(namespace.name))
    await apply(policies, network_policy(namespace.name, "a", {"podSelector": {}}))
    listed = await policies.ListPolicies(pb.ListPoliciesRequest(page_size=1000))
    keys = [(policy.key.kind, policy.key.namespace, policy.key.name) for policy in listed.policies]
    assert keys == sorted(keys)
    assert ("NetworkPolicy", namespace.name, "a") in keys
    assert ("CiliumNetworkPolicy", namespace.name, "web") in keys


async def test_requests_that_name_nothing_sensible(policies: Stub, namespace: Namespace) -> None:
    await refused(policies.DeletePolicies(pb.DeletePoliciesRequest()), InvalidArgument, "REQUEST_INVALID")
    clusterwide = key(namespace, kind="CiliumClusterwideNetworkPolicy")
    error = await refused(
        policies.GetPolicy(pb.GetPolicyRequest(key=clusterwide)), InvalidArgument, "REQUEST_INVALID"
    )
    assert [violation.field for violation in error.violations] == ["key.namespace"]
    await refused(
        policies.GetPolicy(pb.GetPolicyRequest(key=key(namespace, name="No/Name"))),
        InvalidArgument,
        "REQUEST_INVALID",
    )
    await refused(
        policies.GetPolicy(pb.GetPolicyRequest(key=key(namespace, kind="Pod"))),
        InvalidArgument,
        "REQUEST_INVALID",
    )
    await refused(
        policies.ListPolicies(pb.ListPoliciesRequest(page_token="nonsense")), InvalidArgument, "PAGE_INVALID"
    )
