# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz.manifests``: as many changed manifests as one likes."""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.fuzz.manifests.check import Broken
from tests.fuzz.manifests.run import Totals, run


def main() -> int:
    """0: everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.manifests", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the first manifest; a random one if not given")
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    totals = Totals()
    end = time.monotonic() + arguments.seconds
    try:
        while time.monotonic() < end:
            run(seed, totals)
            seed += 1
    except Broken as error:
        print(f"seed {seed}: {error}")
        return 1
    print(f"{totals.texts} texts, {totals.accepted} accepted; {totals.places} places in accepted ones tried")
    return 0


sys.exit(main())
