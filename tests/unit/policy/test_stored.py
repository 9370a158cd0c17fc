# SPDX-License-Identifier: Apache-2.0
"""What has been read of a manifest is not read again while it goes to the store and back by the feed."""

from __future__ import annotations

import json

import pytest

from services.policy import stored
from services.policy.manifest import Manifest, load_stored_manifest, parse_manifests


def manifest(number: int) -> Manifest:
    spec: dict[str, object] = {"podSelector": {}, "ingress": [{}]}
    name = {"name": f"policy-{number}", "namespace": "shop"}
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": name,
        "spec": spec,
    }
    (found,) = parse_manifests(json.dumps(document))
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that have been read, and nothing remembered yet."""
    found: list[str] = []

    def count(text: str) -> Manifest:
        found.append(text)
        return load_stored_manifest(text)

    monkeypatch.setattr(stored, "load_stored_manifest", count)
    stored._remembered.clear()
    return found


def test_a_manifest_that_was_applied_is_not_read_again(reads: list[str]) -> None:
    applied = manifest(1)
    stored.remember(applied)
    lines = {"spec.ingress[0]": 7}
    bound, group = stored.read_document(applied.text, {"spec.ingress[0]": 3}, lines)
    assert (bound.policy, group, reads) == (applied.policy, None, [])
    assert bound.policy.lines == lines


def test_only_the_last_ones_are_remembered(reads: list[str]) -> None:
    manifests = [manifest(number) for number in range(100)]
    for each in (*manifests, *manifests[-10:]):
        stored.read_document(each.text, {}, {})
    assert reads == [each.text for each in manifests]
    stored.read_document(manifests[0].text, {}, {})
    assert reads[-1] == manifests[0].text
