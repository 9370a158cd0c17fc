# SPDX-License-Identifier: Apache-2.0
"""One round of fuzzing: a text or a message of one seed, and now and then every place of an accepted one."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from tests.fuzz.manifests.check import check_definition, check_nothing_is_ignored, check_text
from tests.fuzz.manifests.mutate import candidate, changed_value, places
from tests.fuzz.manifests.seeds import hand_written

_MESSAGES = 0.1
_ALL_PLACES = 0.1
_MAX_PLACES = 100


@dataclass
class Totals:
    """What was tried."""

    texts: int = 0
    accepted: int = 0
    places: int = 0


def run(seed: int, totals: Totals) -> None:
    """Raises Broken when something does not hold; the same seed does the same again."""
    rng = random.Random(seed)
    totals.texts += 1
    if rng.random() < _MESSAGES:
        own = [manifest for manifest in hand_written() if manifest["kind"] == "Policy"]
        manifest = rng.choice(own)
        definition = {**manifest["metadata"], **manifest["spec"]}
        changed = changed_value(rng, definition, rng.choice((0, 1, 2, 4)))
        totals.accepted += check_definition(changed).manifests is not None
        return
    outcome = check_text(candidate(rng))
    totals.accepted += outcome.manifests is not None
    if outcome.manifests and rng.random() < _ALL_PLACES:
        manifest = json.loads(rng.choice(outcome.manifests).text)
        # Each place costs a reading of the whole.
        if sum(1 for _ in places(manifest)) <= _MAX_PLACES:
            totals.places += check_nothing_is_ignored(manifest)
