# SPDX-License-Identifier: Apache-2.0
"""CIDR groups filled into policies, and the prefixes that documents name."""

from __future__ import annotations

import json
from typing import Any

from services.policy.groups import bind, groups_named, literal_prefixes, prefix_uses
from services.policy.manifest import parse_manifests
from services.policy.rules import CidrPeer, Policy


def policy(*rules: dict[str, Any]) -> Policy:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"endpointSelector": {}, "egress": rules},
    }
    (manifest,) = parse_manifests(json.dumps(document))
    return manifest.policy


def group_rule(*excepts: str) -> dict[str, Any]:
    return {"toCIDRSet": [{"cidrGroupRef": "office", "except": list(excepts)}]}


def peers(bound: Policy) -> list[object]:
    return [peer for rule in bound.rules() for peer in rule.peers]


def test_a_policy_without_groups_is_bound_as_it_is() -> None:
    stated = policy({"toCIDR": ["10.0.0.0/8"]})
    assert bind(stated, {"office": ("192.0.2.0/24",)}) is stated


def test_a_group_stands_for_its_members_each_with_the_exceptions_that_touch_it() -> None:
    stated = policy(group_rule("10.1.0.0/16", "192.0.2.0/24"))
    bound = bind(stated, {"office": ("10.0.0.0/8", "192.0.2.128/25", "2001:db8::/32"), "other": ("::/0",)})
    assert peers(bound) == [
        CidrPeer("10.0.0.0/8", ("10.1.0.0/16",)),
        # All of it is excepted.
        CidrPeer("192.0.2.128/25", ("192.0.2.0/24",)),
        CidrPeer("2001:db8::/32"),
    ]
    assert [rule.path for rule in bound.rules()] == [rule.path for rule in stated.rules()]
    assert bound.specs[0].default_deny == stated.specs[0].default_deny


def test_a_group_that_does_not_exist_leaves_nobody() -> None:
    assert peers(bind(policy(group_rule()), {})) == []


def test_who_names_a_group_where() -> None:
    assert groups_named(policy({"toCIDR": ["10.0.0.0/8"]}, group_rule(), group_rule("10.0.0.0/9"))) == {
        "office": ("spec.egress[1]", "spec.egress[2]")
    }


def test_the_prefixes_that_stand_in_a_document() -> None:
    stated = policy(
        {"toCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}]},
        group_rule("10.1.0.0/16", "192.0.2.0/24"),
        {"toEntities": ["world-ipv6"]},
    )
    assert list(literal_prefixes(stated)) == ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "::/0"]
    assert list(literal_prefixes(Policy(stated.ref, ()), ("10.0.0.0/8",))) == ["10.0.0.0/8"]
    assert sorted(prefix_uses(bind(stated, {"office": ("10.0.0.0/8",)}))) == [
        ("10.0.0.0/8", False),
        ("10.1.0.0/16", False),
        ("::/0", False),
    ]
