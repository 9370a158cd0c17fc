"""How long the loader takes for what, for a metrics collector.

Anybody may call these at any time, from any thread. Without a collector nothing is recorded and nothing is
made: a call costs a comparison.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, TypeAlias

from opentelemetry.metrics import Meter

from services.chassis import names

# Of one endpoint: from the request to its begin, the policy map and the subject's row, rows and programs, the
# ipcache; and the whole, without the time in the queue.
EndpointPhase: TypeAlias = Literal["queue", "policy", "attach", "ipcache", "total"]
# Of the node's programs and maps, as the spans bpf.*.
BpfPhase: TypeAlias = Literal["compile", "load", "migrate", "attach", "maps.sync"]
Outcome: TypeAlias = Literal["success", "failure"]

# Seconds. A map entry takes microseconds, an attachment milliseconds, clang seconds.
SECONDS: Final = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


class _Instruments:
    def __init__(self, meter: Meter) -> None:
        self.regeneration = meter.create_histogram(
            names.REGENERATION_DURATION,
            unit="s",
            description="Time that regenerations of endpoints took, by level and phase.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self.retries = meter.create_counter(
            names.REGENERATION_RETRIES,
            unit="{regeneration}",
            description="Regenerations that are tried again because they failed.",
        )
        self.bpf = meter.create_histogram(
            names.BPF_PHASE_DURATION,
            unit="s",
            description="Time that the node's programs and maps took, by phase.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )


_instruments: _Instruments | None = None


def use(meter: Meter | None) -> None:
    """Records with ``meter`` from now on; with None nothing any more."""
    global _instruments
    _instruments = None if meter is None else _Instruments(meter)


def regenerated(level: str, phase: EndpointPhase, seconds: float, outcome: Outcome = "success") -> None:
    """One phase of an endpoint's regeneration took so long; ``level`` is "policy", "reload" or "rebuild"."""
    if _instruments is not None:
        attributes = {names.REGENERATION_LEVEL: level, names.PHASE: phase, names.OUTCOME: outcome}
        _instruments.regeneration.record(seconds, attributes)


def retried(level: str) -> None:
    """A regeneration failed and is going to be tried again."""
    if _instruments is not None:
        _instruments.retries.add(1, {names.REGENERATION_LEVEL: level})


def bpf_done(phase: BpfPhase, seconds: float, outcome: Outcome = "success") -> None:
    """A phase of the node's programs and maps took so long."""
    if _instruments is not None:
        _instruments.bpf.record(seconds, {names.PHASE: phase, names.OUTCOME: outcome})


@contextmanager
def regenerating(level: str, phase: EndpointPhase) -> Iterator[None]:
    """Times the block as one phase of an endpoint's regeneration; an exception is a failure and goes on."""
    with _timed(lambda seconds, outcome: regenerated(level, phase, seconds, outcome)):
        yield


@contextmanager
def in_bpf_phase(phase: BpfPhase) -> Iterator[None]:
    """Times the block as a phase of the node's programs and maps."""
    with _timed(lambda seconds, outcome: bpf_done(phase, seconds, outcome)):
        yield


@contextmanager
def _timed(done: Callable[[float, Outcome], None]) -> Iterator[None]:
    started = time.perf_counter()
    outcome: Outcome = "failure"
    try:
        yield
        outcome = "success"
    finally:
        done(time.perf_counter() - started, outcome)
