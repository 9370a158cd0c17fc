"""How long tests wait. A machine that emulates its processor says by ``FIMBRIA_TEST_SLOWNESS`` how many times
longer: nothing but tests reads that, and it stretches what they wait, never what the product does.
"""

from __future__ import annotations

import os

SLOWNESS = float(os.environ.get("FIMBRIA_TEST_SLOWNESS") or 1)


def patient(seconds: float) -> float:
    """The seconds that this machine needs for what takes ``seconds`` elsewhere."""
    return seconds * SLOWNESS
