# SPDX-License-Identifier: Apache-2.0
"""Manifests changed at random: a clear error or an accepted policy, never a crash, a hang or silence about a
field. More of them with FIMBRIA_FUZZ_MANIFESTS=count, or with ``python -m tests.fuzz.manifests``.
"""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from services.policy import admin, cilium, cilium_peers, cilium_ports
from services.policy.manifest import ManifestError
from tests.fuzz.manifests.check import check_nothing_is_ignored, check_text
from tests.fuzz.manifests.mutate import places, written
from tests.fuzz.manifests.run import Totals, run
from tests.fuzz.manifests.seeds import hand_written, seeds

COUNT = int(os.environ.get("FIMBRIA_FUZZ_MANIFESTS", "1000"))


def test_changed_manifests_are_refused_with_a_reason_or_accepted() -> None:
    totals = Totals()
    for seed in range(COUNT):
        run(seed, totals)
    # Neither of the two is rare, or the changes would say little.
    assert totals.texts // 20 < totals.accepted < totals.texts * 19 // 20
    assert totals.places > 0


@pytest.mark.parametrize("manifest", hand_written(), ids=lambda m: f"{m['kind']} {m['metadata']['name']}")
def test_no_field_is_ignored(manifest: dict[str, Any]) -> None:
    assert check_nothing_is_ignored(manifest) > 5


def test_manifests_to_begin_with_are_accepted_but_for_what_is_not_supported() -> None:

    kinds = set()
    for manifest in seeds():
        outcome = check_text(written(random.Random(0), [manifest]))
        if outcome.error is not None:
            assert isinstance(outcome.error, ManifestError)
            assert outcome.error.unsupported_only, outcome.error
        else:
            kinds.add(manifest["kind"])
    assert kinds == {manifest["kind"] for manifest in hand_written()}


def test_the_docs_name_every_field() -> None:
    """Those of the hand-written manifests, which use all of them, and those that are refused by name."""
    text = (Path(__file__).parents[3] / "docs" / "policy-manifests.md").read_text(encoding="utf-8")
    fields: set[str] = set()
    for manifest in hand_written():
        for path in places(manifest):
            free = any(step in ("matchLabels", "labels", "annotations") for step in path[:-1])
            fields.update({step for step in path[-1:] if isinstance(step, str)} if not free else ())
    refused = {
        *(key for later in cilium_peers._LATER.values() for key in later),
        *cilium_ports._LATER_PORT_RULE,
        *cilium._LATER_SPEC,
        *admin._LATER_PEERS,
        "cidrGroupSelector",
    }
    # Written once for several, or parts of what is shown as an example.
    fields -= {"key", "values", "operator", "apiVersion", "kind"}
    for field in sorted(fields | refused):
        assert re.search(rf"\b{field}\b", text), field
