# SPDX-License-Identifier: Apache-2.0
"""What answers do where there is more to say than fits."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
from fimbria.policy.v1 import policy_pb2 as pb

from services.policy import questions_api
from services.policy.distribution import Distributor, Watch
from services.policy.enforcement import Enforcement
from services.policy.engine import Subject
from services.policy.manifest import Manifest, parse_manifests
from services.policy.questions_api import QuestionsApi
from services.policy.resolve import BoundPolicy
from services.policy.selector import Labels
from services.policy.store import PolicyStore
from services.policy.stored import Applied, AppliedPolicy, Outcome, StoredPolicy

_cookies = itertools.count(1)
CONTEXT = cast(Any, None)


def manifest(name: str) -> str:
    return f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {{podSelector: {{}}}}
"""


def stored(found: Manifest) -> StoredPolicy:
    cookies = {rule.path: next(_cookies) for rule in found.policy.rules()}
    return StoredPolicy(BoundPolicy(found.policy, cookies), found.text, 1, 1)


class Store:
    """What would be applied is always new."""

    async def apply(self, manifests: list[Manifest], *, dry_run: bool) -> Applied:
        assert dry_run
        return Applied(tuple(AppliedPolicy(stored(each), Outcome.CREATED) for each in manifests), 1)


def api(*names: str, pods: int) -> QuestionsApi:
    """A service with these policies and pods, all of them on one node."""
    distributor = Distributor([stored(each) for name in names for each in parse_manifests(manifest(name))], 1)
    distributor.take_all_identities(
        {1000 + n: Labels([f"k8s:n={n}", "k8s:io.kubernetes.pod.namespace=shop"]) for n in range(pods)}, 1
    )
    enforcement = Enforcement({}, lambda name: None, lambda: 1)
    subscription = distributor.subscribe("node-1")
    enforcement.subscribed("node-1")
    for number in range(pods):
        distributor.watch(subscription, Watch(number + 1, Subject(1000 + number)))
    # The methods that it lacks are those that ask nothing.
    made: QuestionsApi = cast(Any, QuestionsApi)(cast(PolicyStore, Store()), distributor, enforcement)
    return made


async def pages(service: QuestionsApi) -> list[list[str]]:
    found = []
    request = pb.ListPolicyStatusRequest()
    while True:
        answer = await service.ListPolicyStatus(request, CONTEXT)
        found.append([item.key.name for item in answer.policies])
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


async def test_a_page_of_status_ends_where_it_gets_long(monkeypatch: pytest.MonkeyPatch) -> None:
    service = api("a", "b", "c", pods=3)
    assert await pages(service) == [["a", "b", "c"]]
    monkeypatch.setattr(questions_api, "MAX_TOLD", 6)
    assert await pages(service) == [["a", "b"], ["c"]]
    monkeypatch.setattr(questions_api, "MAX_TOLD", 1)
    assert await pages(service) == [["a"], ["b"], ["c"]]


async def test_a_diff_says_how_much_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    service = api(pods=5)
    request = pb.DiffPoliciesRequest(manifests=manifest("new"))
    whole = await service.DiffPolicies(request, CONTEXT)
    assert (len(whole.changes), whole.omitted) == (5, 0)
    assert {change.nodes for change in whole.changes} == {1}
    request.max_changes = 2
    part = await service.DiffPolicies(request, CONTEXT)
    assert list(part.changes) == list(whole.changes[:2]) and part.omitted == 3
