# SPDX-License-Identifier: Apache-2.0
"""What changes of documents mean for prefixes and policies, in which order, and with which revisions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy.engine import Engine, PolicyDelete, PolicyPut, PrefixDelete, PrefixPut
from services.policy.groups import bind, literal_prefixes, prefix_uses
from services.policy.in_force import InForce, Steps
from services.policy.manifest import CIDR_GROUP, parse_manifests
from services.policy.prefixes import PrefixUse
from services.policy.resolve import BoundPolicy
from services.policy.rules import PolicyRef
from services.policy.stored import Gone, StoredPolicy

NUMBERS = {
    cidr: 0xFF0000 + index
    for index, cidr in enumerate(("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "192.0.2.0/24"))
}
GROUPS = ("office", "partners")


def stored(document: dict[str, Any], revision: int) -> StoredPolicy:
    (manifest,) = parse_manifests(json.dumps(document))
    cookies = {rule.path: 100 + index for index, rule in enumerate(manifest.policy.rules())}
    prefixes = {cidr: NUMBERS[cidr] for cidr in literal_prefixes(manifest.policy, manifest.group)}
    bound = BoundPolicy(manifest.policy, cookies)
    return StoredPolicy(
        bound, manifest.text, revision, 0, prefixes, "", manifest.group, effective_revision=revision
    )


def cilium(
    name: str, revision: int, *cidrs: str, group: str = "", excepts: tuple[str, ...] = ()
) -> StoredPolicy:
    sets: list[dict[str, Any]] = [{"cidr": cidr, "except": list(excepts)} for cidr in cidrs]
    if group:
        sets.append({"cidrGroupRef": group})
    return stored(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"endpointSelector": {}, "egress": [{"toCIDRSet": sets}]},
        },
        revision,
    )


def kubernetes(name: str, revision: int, cidr: str) -> StoredPolicy:
    return stored(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]},
        },
        revision,
    )


def group(name: str, revision: int, *cidrs: str) -> StoredPolicy:
    return stored(
        {
            "apiVersion": "cilium.io/v2",
            "kind": CIDR_GROUP,
            "metadata": {"name": name},
            "spec": {"externalCIDRs": list(cidrs)},
        },
        revision,
    )


TEN, ONE = "10.0.0.0/8", "10.1.0.0/16"
OFFICE = PolicyRef(CIDR_GROUP, "", "office")


def test_a_prefix_is_known_before_it_begins_and_ceases_before_it_is_forgotten() -> None:
    documents = InForce()
    policy = cilium("web", 1, TEN)
    use = PrefixUse(TEN, by_identity=True)
    assert documents.take([policy]) == Steps(
        known=(PrefixPut(NUMBERS[TEN], TEN, True, False),),
        begin=((NUMBERS[TEN], use),),
        policies=(PolicyPut(policy.bound),),
    )
    assert documents.prefixes() == {NUMBERS[TEN]: use}
    assert documents.prefix_of(NUMBERS[TEN]) == TEN
    assert documents.take([Gone(policy.ref, 2)]) == Steps(
        policies=(PolicyDelete(policy.ref),),
        cease=((NUMBERS[TEN], PrefixUse(TEN)),),
        forgotten=(PrefixDelete(NUMBERS[TEN]),),
    )
    assert documents.prefixes() == {}
    assert documents.number_of(TEN) is None
    assert documents.prefix_of(NUMBERS[TEN]) is None


def test_a_use_that_replaces_another_overlaps_with_it() -> None:
    documents = InForce()
    documents.take([cilium("web", 1, TEN)])
    number = NUMBERS[TEN]
    steps = documents.take([Gone(cilium("web", 1, TEN).ref, 2), kubernetes("block", 3, TEN)])
    assert steps.known == (PrefixPut(number, TEN, True, True),)
    assert steps.begin == ((number, PrefixUse(TEN, True, True)),)
    assert steps.cease == ((number, PrefixUse(TEN, False, True)),)
    assert steps.forgotten == (PrefixPut(number, TEN, False, True),)


def test_what_another_policy_still_uses_stays() -> None:
    documents = InForce()
    first, second = cilium("a", 1, TEN), cilium("b", 2, TEN, ONE)
    documents.take([first, second])
    steps = documents.take([Gone(second.ref, 3)])
    assert [number for number, _ in steps.cease] == [NUMBERS[ONE]]
    assert documents.number_of(TEN) == NUMBERS[TEN]


def test_a_prefix_that_gets_another_number_stays_in_effect() -> None:
    documents = InForce()
    former = cilium("one", 1, "10.0.0.0/8")
    documents.take([former])
    steps = documents.take([replace(former, prefixes={"10.0.0.0/8": 0xFF0777}, revision=2)])
    assert steps.begin == ((0xFF0777, PrefixUse("10.0.0.0/8", by_identity=True)),)
    # Nodes would take it for the end of the prefix, whatever its number.
    assert steps.cease == ()
    assert steps.forgotten == (PrefixDelete(NUMBERS["10.0.0.0/8"]),)


def test_the_same_again_changes_nothing() -> None:
    documents = InForce()
    policy, office = cilium("web", 1, TEN, group="office"), group("office", 2, ONE)
    documents.take([policy, office])
    assert documents.take([policy, office]) == Steps()


def test_a_group_is_in_force_only_through_the_policies_that_name_it() -> None:
    documents = InForce()
    office = group("office", 1, TEN)
    assert documents.take([office]) == Steps()
    assert documents.number_of(TEN) == NUMBERS[TEN]
    policy = cilium("web", 2, group="office")
    steps = documents.take([policy])
    assert [number for number, _ in steps.begin] == [NUMBERS[TEN]]
    (put,) = steps.policies
    assert put == PolicyPut(BoundPolicy(bind(policy.bound.policy, {"office": (TEN,)}), policy.bound.cookies))

    changed = documents.take([group("office", 5, ONE)])
    assert [number for number, _ in changed.begin] == [NUMBERS[ONE]]
    assert [number for number, _ in changed.cease] == [NUMBERS[TEN]]
    assert len(changed.policies) == 1
    assert documents.policies[policy.ref].effective_revision == 5

    gone = documents.take([Gone(OFFICE, 9)])
    assert [number for number, _ in gone.cease] == [NUMBERS[ONE]]
    assert documents.policies[policy.ref].effective_revision == 9
    assert documents.policies[policy.ref].revision == 2
    assert documents.groups == {}


def test_the_order_within_a_bundle_does_not_matter() -> None:
    policy, office = cilium("web", 1, group="office"), group("office", 2, TEN)
    one, other = InForce(), InForce()
    assert one.take([policy, office]) == other.take([office, policy])
    assert one.policies[policy.ref].bound == other.policies[policy.ref].bound
    # A group that changes after the policy in one bundle has changed it too.
    assert one.policies[policy.ref].effective_revision == 2


@st.composite
def histories(draw: st.DrawFn) -> list[list[StoredPolicy | Gone]]:
    cidrs = st.lists(st.sampled_from(sorted(NUMBERS)), min_size=1, max_size=3, unique=True)
    revision = 0
    history: list[list[StoredPolicy | Gone]] = []
    for _ in range(draw(st.integers(1, 8))):
        bundle: dict[PolicyRef, StoredPolicy | Gone] = {}
        for _ in range(draw(st.integers(1, 3))):
            revision += 1
            name = draw(st.sampled_from("ab"))
            change: StoredPolicy | Gone
            kind = draw(st.sampled_from(("cilium", "kubernetes", "group")))
            if kind == "cilium":
                named = draw(st.sampled_from(("", *GROUPS)))
                change = cilium(name, revision, *draw(cidrs), group=named)
            elif kind == "kubernetes":
                change = kubernetes(name, revision, draw(st.sampled_from(sorted(NUMBERS))))
            else:
                change = group(draw(st.sampled_from(GROUPS)), revision, *draw(cidrs))
            if draw(st.booleans()) and draw(st.booleans()):
                change = Gone(change.ref, revision)
            bundle[change.ref] = change
        history.append(list(bundle.values()))
    return history


@settings(max_examples=150, deadline=None)
@given(histories())
def test_any_history_ends_where_the_documents_alone_lead(history: list[list[StoredPolicy | Gone]]) -> None:
    documents, engine = InForce(), Engine()
    told: dict[int, PrefixUse] = {}
    latest: dict[PolicyRef, StoredPolicy] = {}
    for bundle in history:
        for change in bundle:
            if isinstance(change, Gone):
                latest.pop(change.ref, None)
            else:
                latest[change.ref] = change
        steps = documents.take(bundle)
        engine.apply(steps.known)
        # What begins is in the engine already, and what ceases is so still.
        assert all(engine.prefixes[number] == use for number, use in steps.begin)
        told.update(steps.begin)
        engine.apply(steps.policies)
        for number, use in steps.cease:
            assert number in engine.prefixes
            told[number] = use
            if not (use.by_identity or use.by_address):
                del told[number]
        engine.apply(steps.forgotten)

        members = {ref.name: each.group or () for ref, each in latest.items() if ref.kind == CIDR_GROUP}
        bound = {
            ref: bind(each.bound.policy, members) for ref, each in latest.items() if ref.kind != CIDR_GROUP
        }
        expected: dict[int, PrefixUse] = {}
        for policy in bound.values():
            for cidr, by_address in prefix_uses(policy):
                held = expected.get(NUMBERS[cidr], PrefixUse(cidr))
                expected[NUMBERS[cidr]] = PrefixUse(
                    cidr, held.by_identity or not by_address, held.by_address or by_address
                )
        assert {ref: each.bound.policy for ref, each in documents.policies.items()} == bound
        assert documents.prefixes() == dict(engine.prefixes) == told == expected
        assert documents.members == members
