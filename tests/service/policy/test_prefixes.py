# SPDX-License-Identifier: Apache-2.0
"""Prefixes in policies: their numbers, what nodes are told of them, and in which order; CIDR groups."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.errors import InvalidArgument, Unavailable
from tests.service.policy.conftest import Namespace
from tests.service.policy.from_nothing import world
from tests.service.policy.loader import Loader
from tests.service.policy.manifests import allow_client, cidr_group, ip_block, to_cidrs
from tests.service.processes import ServiceProcess, start
from tests.service.refusals import refused

Stub: TypeAlias = "policy_pb2_grpc.PolicyServiceAsyncStub"


async def apply(policies: Stub, *manifests: str, **more: object) -> pb.ApplyPoliciesResponse:
    request = pb.ApplyPoliciesRequest(manifests="\n---\n".join(manifests), **more)  # type: ignore[arg-type]
    return await policies.ApplyPolicies(request)


async def delete(policies: Stub, *manifests: str) -> pb.DeletePoliciesResponse:
    return await policies.DeletePolicies(pb.DeletePoliciesRequest(manifests="\n---\n".join(manifests)))


def since(node: Loader, before: int) -> list[str]:
    """What a node has been told, without the end of what came before."""
    told = node.told[before:]
    return told[1:] if told[:1] == ["progress"] else told


async def test_nodes_are_told_of_prefixes_after_entries_for_them_and_before_the_policy(
    node: Loader, namespace: Namespace, policies: Stub, identity_process: ServiceProcess
) -> None:
    web = await namespace.identity(app="web")
    wide = to_cidrs(namespace.name, "wide", {"toCIDR": ["198.18.0.0/15"]})
    narrow = to_cidrs(namespace.name, "narrow", {"toCIDRSet": [{"cidr": "198.18.7.0/24"}]}, app="db")
    await apply(policies, wide)
    node.watch(1, web.id, web.revision)
    state = await node.state(1)
    before = len(node.told)

    # A prefix within one that web may reach: web may reach it under its own number before it has that.
    applied = await apply(policies, narrow)
    await node.reaches(applied.revision)
    assert since(node, before) == ["delta", "prefixes", "progress"]
    assert state.transitions == [pb.TRANSITION_NEUTRAL]
    async with open_channel(identity_process.target) as channel:
        identities = identity_pb2_grpc.IdentityServiceStub(channel)
        expected = await world(policies, identities)
        assert node.prefixes == expected.told_prefixes()
        assert state.entries == expected.entries(web.id)
        number = node.prefixes["198.18.7.0/24"][0]
        assert (pb.DIRECTION_EGRESS, number, 0, 0, 0) in state.entries
        found = await identities.GetIdentity(identity_pb2.GetIdentityRequest(id=number))
        assert "cidr:198.18.7.0/24" in found.labels

        before = len(node.told)
        gone = await delete(policies, narrow)
        await node.reaches(gone.revision)
        assert since(node, before) == ["prefixes", "delta", "progress"]
        expected = await world(policies, identities)
        assert node.prefixes == expected.told_prefixes()
        assert state.entries == expected.entries(web.id)
    await delete(policies, wide)


async def test_the_two_uses_of_a_prefix_come_and_go_by_themselves(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    cidr = "203.0.113.0/24"
    await namespace.identity(app="web")
    cilium, kubernetes = (
        to_cidrs(namespace.name, "c", {"toCIDR": [cidr]}),
        ip_block(namespace.name, "k", cidr, "203.0.113.7/32"),
    )
    await node.reaches((await apply(policies, cilium)).revision)
    number = node.prefixes[cidr][0]
    assert node.prefixes[cidr] == (number, True, False)
    await node.reaches((await apply(policies, kubernetes)).revision)
    assert node.prefixes[cidr] == (number, True, True)
    assert node.prefixes["203.0.113.7/32"][1:] == (False, True)
    await node.reaches((await delete(policies, cilium)).revision)
    assert node.prefixes[cidr] == (number, False, True)
    await node.reaches((await delete(policies, kubernetes)).revision)
    assert cidr not in node.prefixes
    assert "203.0.113.7/32" not in node.prefixes
    # It comes back under its number.
    await node.reaches((await apply(policies, cilium)).revision)
    assert node.prefixes[cidr] == (number, True, False)
    await delete(policies, cilium)


async def test_whole_families_are_the_reserved_identities(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    web = await namespace.identity(app="web")
    manifest = to_cidrs(namespace.name, "world", {"toEntities": ["world-ipv4", "world-ipv6"]})
    node.watch(1, web.id, web.revision)
    state = await node.state(1)
    await node.reaches((await apply(policies, manifest)).revision)
    assert node.prefixes["0.0.0.0/0"] == (9, True, False)
    assert node.prefixes["::/0"] == (10, True, False)
    assert {key[1] for key in state.entries} >= {9, 10}
    await delete(policies, manifest)


async def test_a_group_changes_the_policies_that_name_it(
    node: Loader, namespace: Namespace, policies: Stub, identity_process: ServiceProcess
) -> None:
    name = f"group-{namespace.name}"
    web = await namespace.identity(app="web")
    manifest = to_cidrs(namespace.name, "egress", {"toCIDRSet": [{"cidrGroupRef": name}]})
    made = await apply(policies, manifest)
    (warning,) = made.policies[0].warnings
    assert f"there is no CiliumCIDRGroup {name}" in warning
    assert "spec.egress[0]" in warning
    node.watch(1, web.id, web.revision)
    state = await node.state(1)
    assert state.egress.enforced
    assert not state.entries

    async with open_channel(identity_process.target) as channel:
        identities = identity_pb2_grpc.IdentityServiceStub(channel)
        key = made.policies[0].policy.key
        for cidrs in (("192.0.2.0/25",), ("192.0.2.0/24", "2001:db8:5::/48"), ("192.0.2.0/24",)):
            applied = await apply(policies, cidr_group(name, *cidrs))
            await node.reaches(applied.revision)
            expected = await world(policies, identities)
            assert node.prefixes == expected.told_prefixes()
            assert {cidr for cidr in node.prefixes if cidr in cidrs} == set(cidrs)
            assert state.entries == expected.entries(web.id)
            assert len(state.entries) == len(cidrs)
            # The policy itself has not changed, but what it says has.
            policy = await policies.GetPolicy(pb.GetPolicyRequest(key=key))
            assert (policy.revision, policy.effective_revision) == (made.revision, applied.revision)
        gone = await delete(policies, cidr_group(name))
        await node.reaches(gone.revision)
        assert not state.entries
        assert state.egress.enforced
        policy = await policies.GetPolicy(pb.GetPolicyRequest(key=key))
        assert policy.effective_revision == gone.revision
        again = await apply(policies, manifest)
        assert again.policies[0].outcome == pb.AppliedPolicy.OUTCOME_UNCHANGED
        assert again.policies[0].policy == policy
        assert again.policies[0].warnings == [warning]
    await delete(policies, manifest)


async def test_a_group_and_its_policy_in_one_bundle_are_one_change(
    node: Loader, namespace: Namespace, policies: Stub
) -> None:
    name = f"group-{namespace.name}"
    web = await namespace.identity(app="web")
    node.watch(1, web.id, web.revision)
    await node.state(1)
    before = len(node.told)
    policy = to_cidrs(namespace.name, "egress", {"toCIDRSet": [{"cidrGroupRef": name}]})
    group = cidr_group(name, "192.0.2.128/25")
    made = await apply(policies, policy, group)
    assert [list(each.warnings) for each in made.policies] == [[], []]
    assert [each.policy.effective_revision for each in made.policies] == [made.revision] * 2
    await node.reaches(made.revision)
    assert since(node, before) == ["prefixes", "delta", "progress"]
    listed = await policies.GetPolicy(pb.GetPolicyRequest(key=made.policies[1].policy.key))
    assert listed.key.kind == "CiliumCIDRGroup"
    assert not listed.rules
    await delete(policies, policy, group)


async def test_new_prefixes_need_the_identity_service_and_known_ones_do_not(
    identity_process: ServiceProcess, tmp_path: Path
) -> None:
    socket = f"unix:{tmp_path}/identity.sock"
    identity = start("identity", tmp_path, f"--listen={socket}")
    service = start("policy", tmp_path, f"--identity-target={socket}")
    try:
        async with open_channel(service.target, retry=False) as channel:
            policies = policy_pb2_grpc.PolicyServiceStub(channel)
            first = await apply(policies, to_cidrs("shop", "a", {"toCIDR": ["192.0.2.0/24"]}))
            identity.kill()
            new = to_cidrs("shop", "b", {"toCIDR": ["192.0.2.0/24", "198.51.100.0/24"]})
            error = await refused(
                apply(policies, allow_client("shop"), new), Unavailable, "PREFIXES_UNRESOLVED"
            )
            assert error.metadata["prefixes"] == "198.51.100.0/24"
            listed = await policies.ListPolicies(pb.ListPoliciesRequest())
            assert (len(listed.policies), listed.revision) == (1, first.revision)
            planned = await apply(policies, new, validate_only=True)
            assert planned.policies[0].outcome == pb.AppliedPolicy.OUTCOME_CREATED
            known = to_cidrs("shop", "c", {"toCIDR": ["192.0.2.0/24", "0.0.0.0/0"]})
            assert (await apply(policies, known)).revision > first.revision
    finally:
        service.kill()
        identity.kill()


async def test_an_unchanged_manifest_that_moved_in_its_file_keeps_its_revision(
    namespace: Namespace, policies: Stub
) -> None:
    manifest = allow_client(namespace.name)
    first = (await apply(policies, manifest, source="a.yaml")).policies[0].policy
    assert first.source == "a.yaml"
    moved = await apply(policies, f"# a comment\n\n{manifest}", source="b.yaml")
    assert moved.policies[0].outcome == pb.AppliedPolicy.OUTCOME_UNCHANGED
    second = moved.policies[0].policy
    assert (second.revision, second.update_time, second.source) == (
        first.revision,
        first.update_time,
        "b.yaml",
    )
    assert second.rules[0].line == first.rules[0].line + 2
    assert await policies.GetPolicy(pb.GetPolicyRequest(key=first.key)) == second
    again = await apply(policies, f"# a comment\n\n{manifest}", source="b.yaml")
    assert again.revision == moved.revision


def definition(namespace: Namespace, **changed: object) -> pb.PolicyDefinition:
    fields: dict[str, object] = {
        "namespace": namespace.name,
        "name": "own",
        "pods": pb.SelectorDefinition(match_labels={"app": "web"}),
        "default_deny": [pb.DIRECTION_EGRESS],
        "rules": [
            pb.RuleDefinition(
                direction=pb.DIRECTION_EGRESS,
                action=pb.ACTION_ALLOW,
                peers=[pb.PeerDefinition(cidr=pb.CidrDefinition(cidr="198.18.0.0/24", by_address=True))],
                ports=[pb.PortDefinition(protocol="TCP", port="443")],
            )
        ],
    }
    return pb.PolicyDefinition(**{**fields, **changed})  # type: ignore[arg-type]


async def test_policies_may_come_as_messages(node: Loader, namespace: Namespace, policies: Stub) -> None:
    web = await namespace.identity(app="web")
    node.watch(1, web.id, web.revision)
    state = await node.state(1)
    request = pb.ApplyPoliciesRequest(
        policies=[definition(namespace)], manifests=allow_client(namespace.name)
    )
    made = await policies.ApplyPolicies(request)
    assert [each.policy.key.kind for each in made.policies] == ["CiliumNetworkPolicy", "Policy"]
    own = made.policies[1].policy
    assert (own.tier, own.rules[0].action) == (pb.TIER_NORMAL, pb.ACTION_ALLOW)
    await node.reaches(made.revision)
    number = node.prefixes["198.18.0.0/24"][0]
    key = (pb.DIRECTION_EGRESS, number, 6, 443, 16, pb.TIER_NORMAL, True, False)
    assert state.entries[key] == (False, own.rules[0].cookie)
    assert (await policies.ApplyPolicies(request)).revision == made.revision
    await policies.DeletePolicies(pb.DeletePoliciesRequest(keys=[own.key]))


async def test_every_violation_of_manifests_and_messages_is_told(
    namespace: Namespace, policies: Stub
) -> None:
    bad = definition(namespace, rules=[pb.RuleDefinition(direction=pb.DIRECTION_EGRESS), pb.RuleDefinition()])
    manifest = to_cidrs(namespace.name, "x", {"toCIDR": ["10.0.0.1/8"]})
    request = pb.ApplyPoliciesRequest(manifests=manifest, policies=[bad], validate_only=True)
    error = await refused(policies.ApplyPolicies(request), InvalidArgument, "POLICY_INVALID")
    fields = [violation.field for violation in error.violations]
    assert "spec.egress[0].toCIDR[0]" in fields
    assert {"policies[0].rules[0].action", "policies[0].rules[1].direction"} <= set(fields)
    # The same policy in both forms is one too many.
    own = (await policies.ApplyPolicies(pb.ApplyPoliciesRequest(policies=[definition(namespace)]))).policies
    twice = pb.ApplyPoliciesRequest(manifests=own[0].policy.manifest, policies=[definition(namespace)])
    error = await refused(policies.ApplyPolicies(twice), InvalidArgument, "POLICY_INVALID")
    assert [violation.field for violation in error.violations] == ["policies[0].name"]
    await policies.DeletePolicies(pb.DeletePoliciesRequest(keys=[own[0].policy.key]))


async def test_audit_and_tiers_are_told(node: Loader, namespace: Namespace, policies: Stub) -> None:
    web = await namespace.identity(app="web")
    node.watch(1, web.id, web.revision)
    state = await node.state(1)
    rule = pb.RuleDefinition(
        direction=pb.DIRECTION_INGRESS, action=pb.ACTION_PASS, peers=[pb.PeerDefinition(entity="all")]
    )
    admin = definition(namespace, name="admin", tier=pb.TIER_ADMIN, priority=7, default_deny=[], rules=[rule])
    audit = definition(namespace, name="audit", audit=True)
    made = await policies.ApplyPolicies(pb.ApplyPoliciesRequest(policies=[admin, audit]))
    first, second = (each.policy for each in made.policies)
    assert (first.tier, first.priority, first.rules[0].action) == (pb.TIER_ADMIN, 7, pb.ACTION_PASS)
    assert second.audit
    await node.reaches(made.revision)
    assert not state.egress.enforced
    assert state.egress.audit_enforced
    assert [key.name for key in state.egress.audit_enforced_by] == ["audit"]
    key = (pb.DIRECTION_INGRESS, 0, 0, 0, 0, pb.TIER_ADMIN, False, False)
    assert state.entries[key] == (False, first.rules[0].cookie, True, 7 << 16)
    assert any(key[5:] == (pb.TIER_NORMAL, True, True) for key in state.entries)
    await policies.DeletePolicies(pb.DeletePoliciesRequest(keys=[first.key, second.key]))
