"""The policy engine alone: from nothing, a change at a time, beside Python's sets, by size, and in memory."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pyroaring import BitMap

from services.policy.engine import (
    Engine,
    Event,
    IdentityDelete,
    IdentityPut,
    PolicyDelete,
    PolicyPut,
    Subject,
    SubjectAdd,
)
from services.policy.resolve import BoundPolicy
from tests.bench.figures import Figure, median, percentile
from tests.bench.policy_load import (
    FIRST_IDENTITY,
    ONE_SUBJECT,
    SUBJECT,
    Cluster,
    in_namespace,
    loaded,
    policy,
)
from tests.bench.report import Table, plot

RULES = 1_000
CHANGES = 200
# Enough labels for a selector of its own for every rule, the added ones included.
KEYS = 12
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
_ROUNDS = 5
_SET_SIZE = 20_000
_MEMORY_IDENTITIES, _MEMORY_POLICIES, _MEMORY_SUBJECTS, _MEMORY_KEYS = 100_000, 5_000, 1_000, 5
_UPDATES = 1_000


def engine(_directory: Path) -> list[Figure]:
    """Every figure of the engine that is not about growth."""
    return [
        *_cold(100, 1_000, "9 ms"),
        *_cold(RULES, 10_000, "1.4 to 2.1 s", goal=1.0),
        *_changes(),
        *_sets(),
        *_memory(),
    ]


def _cold(rules: int, identities: int, published: str, goal: float | None = None) -> list[Figure]:
    cluster = Cluster(identities, KEYS)
    puts = list(cluster.puts())
    policies = [PolicyPut(policy(number, ONE_SUBJECT)) for number in range(rules)]
    whole, resolved, entries = [], [], 0
    for _ in range(_ROUNDS):
        gc.collect()
        start = time.perf_counter()
        made = Engine()
        made.apply(puts)
        known = time.perf_counter()
        made.apply(policies)
        made.apply([SubjectAdd(SUBJECT)])
        state = made.state(SUBJECT)
        end = time.perf_counter()
        whole.append(end - start)
        resolved.append(end - known)
        entries = len(state.entries) if state is not None else 0
    name, took = f"{rules:,} rules x {identities:,} identities", median(whole)
    return [
        Figure(
            f"{name}, from nothing",
            took * 1e3,
            "ms",
            goal=f"<= {goal:g} s" if goal else None,
            met=took <= goal if goal else None,
            note=f"identities, policies and the {entries:,} entries of the subject; "
            f"published for Cilium 1.20's engine: {published}",
        ),
        Figure(f"{name}, identities known", median(resolved) * 1e3, "ms"),
    ]


def _changes() -> list[Figure]:
    made = loaded(Cluster(10_000, KEYS), RULES)
    added, removed, entries = _rules_ms(made)
    come, left, by_one = _identities_ms(made, Cluster(10_000, KEYS))
    figures = []
    for name, samples, most, note in (
        ("one rule added", added, 1.0, f"{entries} entries; published for Cilium: 104 to 404 ms"),
        ("one rule removed", removed, 1.0, "published for Cilium: 104 to 404 ms"),
        ("one identity added", come, 0.3,
         f"{by_one} selectors match it; published for Cilium: 0.3 ms for 10"),
        ("one identity removed", left, 0.3, ""),
    ):  # fmt: skip
        for label, q in (("p50", 0.5), ("p99", 0.99)):
            value = percentile(samples, q)
            goal = label == "p50"
            figures.append(
                Figure(
                    f"{name}, to its deltas, {label}",
                    value,
                    "ms",
                    goal=f"<= {most:g} ms" if goal else None,
                    met=value <= most if goal else None,
                    note=note if goal else "",
                )
            )
    return figures


def _rules_ms(made: Engine) -> tuple[list[float], list[float], int]:
    """Milliseconds of each rule that is added and removed, and how many entries one has at the median."""
    fresh = [policy(RULES + number, ONE_SUBJECT) for number in range(CHANGES)]
    added, entries = _each_ms(made, [PolicyPut(bound) for bound in fresh])
    removed, _ = _each_ms(made, [PolicyDelete(bound.ref) for bound in fresh])
    return added, removed, entries


def _identities_ms(made: Engine, cluster: Cluster) -> tuple[list[float], list[float], int]:
    """Milliseconds of each identity that comes and goes, and how many entries one has at the median."""
    # Like one of those whose labels are asked for, but for its name.
    numbers = [FIRST_IDENTITY + cluster.identities + number for number in range(CHANGES)]
    come, entries = _each_ms(
        made,
        [IdentityPut(number, Cluster(0, KEYS).labels(10_000_000 + number)) for number in numbers],
    )
    left, _ = _each_ms(made, [IdentityDelete(number) for number in numbers])
    return come, left, entries


def _each_ms(made: Engine, events: Sequence[Event]) -> tuple[list[float], int]:
    samples, entries = [], []
    for event in events:
        start = time.perf_counter()
        changes = made.apply((event,))
        samples.append((time.perf_counter() - start) * 1e3)
        entries.append(sum(len(change.upserts) for change in changes))
    return samples, int(median(entries))


def _sets() -> list[Figure]:
    """What the bitmaps are there for."""
    chance = random.Random(5)
    drawn = [[FIRST_IDENTITY + n for n in chance.sample(range(65_000), _SET_SIZE)] for _ in range(2)]
    one, other = (BitMap(numbers) for numbers in drawn)
    slow_one, slow_other = (set(numbers) for numbers in drawn)
    ours, theirs = [], []
    for _ in range(31):
        ours.append(_seconds(lambda: one & other, 100))
        theirs.append(_seconds(lambda: slow_one & slow_other, 3))
    return [
        Figure(
            f"intersection of two sets of {_SET_SIZE:,} identities",
            median(ours) * 1e6,
            "µs",
            median(theirs) * 1e6,
            "Python sets",
        ),
        Figure(
            f"memory of a set of {_SET_SIZE:,} identities",
            len(one.serialize()) / 1e3,
            "kB",
            (sys.getsizeof(slow_one) + sum(map(sys.getsizeof, slow_one))) / 1e3,
            "Python set",
        ),
    ]


def _seconds(action: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - start) / times


def growth(_directory: Path) -> Table:
    """What one change costs by how many identities there are that it does not touch."""
    rows, curves = [], []
    for size in SIZES:
        cluster = Cluster(size, KEYS, selectable=min(SIZES))
        made = loaded(cluster, RULES)
        gc.collect()
        added, removed, entries = _rules_ms(made)
        come, left, matched = _identities_ms(made, cluster)
        middle = [median(samples) for samples in (added, removed, come, left)]
        rows.append((f"{size:,}", *(f"{value:.3f} ms" for value in middle), str(entries), str(matched)))
        curves.append((size, middle))
    header = ("identities", "rule added", "rule removed", "identity added", "identity removed",
              "entries of the rule", "entries of the identity")  # fmt: skip
    return Table(header, rows, _GROWTH + plot([f"{name}, ms" for name in header[1:5]], curves))


_GROWTH = f"""{RULES:,} rules on one subject pick among {min(SIZES):,} identities; what changes is of no
concern to all others. Medians over {CHANGES} changes.
"""


def _memory() -> list[Figure]:
    """In a process of its own, which has nothing else in its memory."""
    command = [sys.executable, "-m", "tests.bench.policy_engine"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    resident, grown = map(float, found)
    return [
        Figure(
            f"memory for {_MEMORY_IDENTITIES:,} identities and {_MEMORY_POLICIES:,} policies",
            resident,
            "MB",
            goal="<= 300 MB",
            met=resident <= 300,
            note=f"resident, of a process with nothing else; {_MEMORY_SUBJECTS:,} subjects are watched, "
            "ten policies select each",
        ),
        Figure(
            f"memory gained over {_UPDATES:,} policy updates in a row",
            grown,
            "MB",
            goal="<= 1 MB",
            met=grown <= 1,
            note="of the same process, after as many to warm up",
        ),
    ]


def _resident_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _measure_memory() -> None:
    made = Engine()
    made.apply(Cluster(_MEMORY_IDENTITIES, _MEMORY_KEYS).puts())
    for number in range(_MEMORY_POLICIES):
        made.apply([PolicyPut(_spread(number))])
    made.apply([SubjectAdd(Subject(FIRST_IDENTITY + number)) for number in range(_MEMORY_SUBJECTS)])
    full = _resident_mb()
    for _ in range(2):
        before = _resident_mb()
        for number in range(_UPDATES):
            made.apply([PolicyPut(_spread(number % 10, port=20_000 + number))])
    print(full, _resident_mb() - before)


def _spread(number: int, port: int | None = None) -> BoundPolicy:
    return policy(number, in_namespace(number), keys=_MEMORY_KEYS, port=port)


if __name__ == "__main__":
    _measure_memory()
