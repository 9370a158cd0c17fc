"""``python -m tests.fuzz``: as many packets as one likes."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack

from tests.fuzz.opening import open_node
from tests.fuzz.report import report
from tests.fuzz.session import Mismatch, Totals, fuzz
from tests.fuzz.shrink import shrink
from tests.fuzz.variants import VARIANTS


def main() -> int:
    """0: no difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the first episode; a random one if not given")
    parser.add_argument("--packets", type=int, default=20_000, help="in all, over the variants")
    parser.add_argument("--endless", action="store_true", help="go on until a difference is found")
    parser.add_argument("--variant", choices=sorted(VARIANTS), action="append", help="default: all, in turn")
    parser.add_argument(
        "--keep-going", action="store_true", help="count differences by kind instead of stopping at the first"
    )
    parser.add_argument("--no-shrink", action="store_true", help="show a difference with all its steps")
    parser.add_argument("--stats", action="store_true", help="how often which outcome was seen")
    parser.add_argument("--bpf", help="directory of the programs' source, another than this tree's")
    parser.add_argument("--cache", help="directory that keeps compiled programs; none is kept if not given")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    names = arguments.variant or list(VARIANTS)
    kinds: Counter[str] = Counter()
    with ExitStack() as stack:
        cache = arguments.cache or stack.enter_context(tempfile.TemporaryDirectory(prefix="fimbria-fuzz-"))
        while True:
            for name in names:
                totals = _variant(name, seed, arguments, cache, kinds, arguments.packets // len(names))
                seed += totals.episodes
                if kinds and not arguments.keep_going:
                    return 1
            if not arguments.endless:
                break
    for kind, count in kinds.most_common():
        print(f"{count:8} {kind}")
    return 1 if kinds else 0


def _variant(
    name: str, seed: int, arguments: argparse.Namespace, cache: str, kinds: Counter[str], packets: int
) -> Totals:
    started = time.monotonic()
    with open_node(VARIANTS[name], cache, arguments.bpf) as node:

        def on_mismatch(mismatch: Mismatch) -> bool:
            kinds[mismatch.kind] += 1
            if kinds[mismatch.kind] == 1:
                if not arguments.no_shrink:
                    shrink(node, mismatch)
                print(report(mismatch), flush=True)
            return bool(arguments.keep_going)

        totals = fuzz(node, seed, packets, on_mismatch)
    seconds = time.monotonic() - started
    print(
        f"{name}: seeds {seed} to {seed + totals.episodes - 1}, {totals.packets} packets in {seconds:.1f} s, "
        f"{sum(kinds.values())} differences",
        flush=True,
    )
    if arguments.stats:
        for outcome, count in sorted(totals.outcomes.items()):
            print(f"  {count:8} {outcome}")
    return totals


if __name__ == "__main__":
    sys.exit(main())
