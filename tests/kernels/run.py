"""Runs the guest program under a kernel, with objects that the host compiles."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.datapath import SOURCES
from tests.kernels.machine import REPORT, Outcome, run
from tests.kernels.packages import Kernel, image

REPOSITORY = Path(__file__).resolve().parents[2]
_RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """What the guest program found; see tests/kernels/guest.py."""

    kernel: str
    failures: list[dict[str, Any]]
    attached: dict[str, str] = field(default_factory=dict)
    programs: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    packets: int = 0


def run_python(kernel: Kernel, *arguments: str, seconds: float = 600) -> Outcome:
    """Runs this interpreter with arguments, in the repository, in a machine with the kernel."""
    # The interpreter of a virtual environment may be a symlink; it must be called by its own name.
    command = ["env", f"PYTHONPATH={REPOSITORY}:{REPOSITORY}/gen", sys.executable, *arguments]
    return run(image(kernel), command, directory=str(REPOSITORY), seconds=seconds)


def datapath_under(kernel: Kernel) -> Result:
    """Loads the datapath under the kernel and sends packets through it.

    Raises RuntimeError with the machine's console where that did not get to its end.
    """
    directory = str(image(kernel).vmlinuz.parent.parent / "objects")
    compile_sources(str(REPOSITORY / "bpf"), SOURCES, directory)
    outcome = run_python(kernel, "-m", "tests.kernels.guest", directory, f"{REPORT}/{_RESULT}")
    if _RESULT not in outcome.files:
        raise RuntimeError(f"under {kernel.name} the guest program did not end:\n{outcome.console}")
    return Result(**json.loads(outcome.files[_RESULT]))
