# SPDX-License-Identifier: Apache-2.0
"""Manifests changed at random: a clear error or an accepted policy, never a crash, a hang or silence about a
field. More of them with FIMBRIA_FUZZ_MANIFESTS=count, or with ``python -m tests.fuzz.manifests``.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from services.policy.manifest import ManifestError
from tests.fuzz.manifests.check import check_nothing_is_ignored, check_text
from tests.fuzz.manifests.mutate import written
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
