"""Nanoseconds that the programs take for a packet: by kind, IP version, flows and ipcache entries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.cases import Case, cases, shuffled
from tests.bench.costnode import CostNode, cost_node
from tests.bench.eventsink import EventSink, event_sink
from tests.bench.replay import Replay, Stimulus, replay
from tests.bench.report import Table

VERSIONS = (4, 6)
IPCACHE_SIZES = (100, 50_000)
# IPv6 beside IPv4.
_RATIO_GOAL = 1.2
_NEW_FLOWS = 20_000
_REPEAT, _ROUNDS = 5_000, 41
_FEW_ROUNDS = 5
# Fewer events than there is room for in the ring.
_BURST, _BURSTS = 2_000, 15
_HEADER = (
    "packet",
    "ipcache entries",
    "IPv4",
    "IPv6",
    "IPv4, many flows",
    "IPv6, many flows",
    "IPv6 / IPv4",
    "goal",
    "met",
)
_INTRODUCTION = """Nanoseconds a packet, run by the kernel's BPF_PROG_TEST_RUN on packets that are put right
before each run; what that takes, measured with an empty program in turn, is subtracted. A redirect is
decided, not carried out. One flow: the same packet again and again; many flows: 100,000 (50,000 of denied
and of translated packets) in random order. Policies select both pods. The goals are for IPv4 and one flow;
IPv6 is to be within 20 % of IPv4.
"""


@dataclass(frozen=True)
class Cost:
    """Nanoseconds a packet by IP version: of one flow again and again, and of many in random order."""

    name: str
    entries: int
    goal: float | None
    one: dict[int, float]
    many: dict[int, float]


def costs(directory: Path, sizes: Sequence[int] = IPCACHE_SIZES, only: str = "") -> list[Cost]:
    """Measures every case whose name has ``only`` in it, with ipcaches of these sizes."""
    found = []
    cache = str(directory / "objects")
    with _one_cpu(), replay(cache) as feed, cost_node(cache) as node:
        for entries in sizes:
            node.fill_ipcache(entries)
            by_version = {version: cases(node, version, entries) for version in VERSIONS}
            for index, case in enumerate(by_version[VERSIONS[0]]):
                if only in case.name:
                    measured = {v: _measure(node, feed, by_version[v][index]) for v in VERSIONS}
                    one, many = ({v: pair[i] for v, pair in measured.items()} for i in (0, 1))
                    found.append(Cost(case.name, entries, case.goal, one, many))
    return found


def _measure(node: CostNode, feed: Replay, case: Case) -> tuple[float, float]:
    """Nanoseconds with one flow, and with many; where each packet is a flow's first, these are the same."""
    node.judge_by(case.spaces)
    if case.fresh:
        stimulus = case.leg.stimulus(case.flows(_NEW_FLOWS), case.flags)
        value = _run(node, feed, case, stimulus, _NEW_FLOWS, _FEW_ROUNDS, node.forget_flows)
        return value, value
    values = []
    for count, repeat, rounds in ((1, _REPEAT, _ROUNDS), (case.many, case.many, _FEW_ROUNDS)):
        node.forget_flows()
        flows = case.flows(count)
        for leg, flags in case.opening:
            action, _ = feed.run(node.datapath.program_fd(leg.program), leg.stimulus(flows, flags), count)
            if action != leg.action:
                raise RuntimeError(f"{case.name}: {leg.program} did {action} to an opening packet")
        stimulus = case.leg.stimulus(shuffled(flows), case.flags)
        if case.read:
            with event_sink(node.datapath) as sink:
                before = _everything_read(sink, _BURST)
                values.append(_run(node, feed, case, stimulus, _BURST, _BURSTS, before))
        else:
            values.append(_run(node, feed, case, stimulus, repeat, rounds))
    return values[0], values[1]


def _run(
    node: CostNode,
    feed: Replay,
    case: Case,
    stimulus: Stimulus,
    repeat: int,
    rounds: int,
    before: Callable[[], None] | None = None,
) -> float:
    program = node.datapath.program_fd(case.leg.program)
    try:
        return feed.nanoseconds(
            program, stimulus, repeat=repeat, rounds=rounds, action=case.leg.action, before=before
        )
    except RuntimeError as error:
        raise RuntimeError(f"{case.name}: {error}; drops: {_drops(node)}") from error


def _drops(node: CostNode) -> dict[str, int]:
    """Packets that the programs dropped so far, by reason."""
    drops: dict[str, int] = {}
    for metric in node.datapath.metrics():
        if metric.reason:
            drops[metric.reason_name] = drops.get(metric.reason_name, 0) + metric.packets
    return drops


def _everything_read(sink: EventSink, burst: int) -> Callable[[], None]:
    """Waits, at the start of each burst of events, until those before were read: none may be lost."""
    sent = 0

    def wait() -> None:
        nonlocal sent
        sink.wait_for(sent)
        sent += burst

    return wait


@contextmanager
def _one_cpu() -> Iterator[None]:
    """The calling thread stays on one CPU, and threads that it starts take the others if there are any."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def table(found: Sequence[Cost]) -> Table:
    """The costs for docs/benchmarks.md. Goals are about one flow."""
    rows = []
    for cost in found:
        ratio = cost.one[6] / cost.one[4]
        rows.append(
            (
                cost.name,
                f"{cost.entries:,}",
                *(f"{values[v]:.0f}" for values in (cost.one, cost.many) for v in VERSIONS),
                f"{ratio:.2f}" if ratio <= _RATIO_GOAL else f"**{ratio:.2f}**",
                "–" if cost.goal is None else f"<= {cost.goal:.0f}",
                "–" if cost.goal is None else "yes" if cost.one[4] <= cost.goal else "**no**",
            )
        )
    return Table(_HEADER, tuple(rows), _INTRODUCTION)
