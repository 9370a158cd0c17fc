"""Feature sets: what the datapath's sources are compiled with, beyond what every build has.

Almost everything that differs between nodes is a ``.rodata`` constant, which needs no compiler. What is left
for the preprocessor makes a feature set; the common ones are prebuilt into the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """A name for people, and the compiler's flags."""

    name: str
    flags: tuple[str, ...] = ()


DEFAULT: Final = FeatureSet("default")
COMMON_FEATURE_SETS: Final = (DEFAULT,)
