"""100,000 random packets: the kernel decides as the model does."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.opening import open_node
from tests.fuzz.report import report
from tests.fuzz.session import Mismatch, fuzz
from tests.fuzz.shrink import shrink
from tests.fuzz.variants import VARIANTS

pytestmark = pytest.mark.kernel

PACKETS = 100_000 // (2 * len(VARIANTS))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seeds", ["fixed", "new"])
def test_the_kernel_decides_as_the_model(name: str, seeds: str, cache_dir: str) -> None:
    seed = sum(name.encode()) * 1_000_000 if seeds == "fixed" else random.randrange(1 << 32)
    print(f"python -m tests.fuzz --variant {name} --seed {seed} --packets {PACKETS}")
    found: list[str] = []
    with open_node(VARIANTS[name], cache_dir) as node:

        def on_mismatch(mismatch: Mismatch) -> bool:
            shrink(node, mismatch)
            found.append(report(mismatch))
            return False

        fuzz(node, seed, PACKETS, on_mismatch)
    assert not found, found[0]
