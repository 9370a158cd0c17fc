"""What it took to get the node's programs and maps into the kernel."""

from __future__ import annotations

from dataclasses import dataclass

from services.loader.bpf.objects import Program
from services.loader.bpf.recovery import Recovered


@dataclass(frozen=True, slots=True)
class ObjectReport:
    """What it took to get one object into the kernel. Seconds; ``programs`` as loaded."""

    source: str
    cache_hit: bool
    compile_seconds: float
    load_seconds: float
    programs: tuple[Program, ...]


@dataclass(frozen=True, slots=True)
class MigratedMap:
    """A map whose content was carried over: ``why`` says what is other, ``entries`` how many there were, and
    ``caught_up`` how many writes more it took since programs went on writing.
    """

    name: str
    why: str
    entries: int
    caught_up: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What it took to open the datapath; ``attach_seconds`` is for moving all devices, ``endpoints`` of whose
    are endpoints'. ``adopted``: everything was in place, and nothing has been loaded. ``removed`` are pins
    of maps and programs that the node has no use for any more. ``recovered``: what a former process left.
    """

    objects: tuple[ObjectReport, ...] = ()
    attach_seconds: float = 0.0
    endpoints: int = 0
    migrated: tuple[MigratedMap, ...] = ()
    removed: tuple[str, ...] = ()
    adopted: bool = False
    recovered: Recovered = Recovered.NOTHING

    @property
    def cache_hit(self) -> bool:
        """Whether nothing had to be compiled."""
        return all(report.cache_hit for report in self.objects)

    @property
    def verified_insns(self) -> dict[str, int]:
        """Instructions that the verifier went through, by program."""
        return {
            program.name: program.verified_insns for report in self.objects for program in report.programs
        }
