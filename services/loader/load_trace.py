"""What it took to get the node's programs into the kernel, as spans and measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from services.chassis import names
from services.chassis.telemetry import mark_failed, tracer
from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.errors import BpfError, CompileError, DatapathUnavailable, MapFull, MapMismatch
from services.loader.bpf.load_report import LoadReport
from services.loader.bpf.recovery import Recovered
from services.loader.measure_points import BpfPhase, bpf_done

_SPANS: Final[dict[BpfPhase, str]] = {
    "compile": names.BPF_COMPILE,
    "load": names.BPF_LOAD,
    "migrate": names.BPF_MIGRATE,
    "attach": names.BPF_ATTACH,
}


def traced_open(open_datapath: Callable[[], KernelDatapath]) -> KernelDatapath:
    """Opens the datapath and tells of it within the current span. Raises what ``open_datapath`` does."""
    started, clock = time.time_ns(), time.perf_counter()
    try:
        datapath = open_datapath()
    except (BpfError, DatapathUnavailable, MapMismatch, MapFull) as problem:
        phase = _phase(problem)
        failed = tracer().start_span(_SPANS[phase], start_time=started)
        mark_failed(failed, problem)
        failed.end()
        bpf_done(phase, time.perf_counter() - clock, "failure")
        raise
    _tell(datapath.report, started)
    return datapath


def _tell(report: LoadReport, started_ns: int) -> None:
    """What has just been done, one after the other as it was done."""
    at = started_ns

    def done(phase: BpfPhase, seconds: float, attributes: dict[str, Any]) -> None:
        nonlocal at
        ended = at + int(seconds * 1e9)
        tracer().start_span(_SPANS[phase], start_time=at, attributes=attributes).end(ended)
        bpf_done(phase, seconds)
        at = ended

    for source in report.objects:
        attributes = {names.SOURCE: source.source, names.CACHE_HIT: source.cache_hit}
        done("compile", source.compile_seconds, attributes)
    # What is in force already is taken over and not loaded.
    for source in () if report.adopted else report.objects:
        insns = sum(program.verified_insns for program in source.programs)
        attributes = {
            names.SOURCE: source.source,
            names.INSNS: insns,
            names.VERIFIER_TIME: source.load_seconds,
        }
        done("load", source.load_seconds, attributes)
    for migrated in report.migrated:
        attributes = {
            names.MAP: migrated.name,
            names.ENTRIES: migrated.entries,
            names.REGENERATION_CAUSE: migrated.why,
        }
        done("migrate", migrated.seconds, attributes)
    attributes = {names.RESTORED_ENDPOINTS: report.endpoints, names.ADOPTED: report.adopted}
    if report.recovered is not Recovered.NOTHING:
        attributes[names.RECOVERED] = str(report.recovered)
    done("attach", report.attach_seconds, attributes)


def _phase(problem: Exception) -> BpfPhase:
    if isinstance(problem, CompileError):
        return "compile"
    return "migrate" if isinstance(problem, MapMismatch | MapFull) else "load"
