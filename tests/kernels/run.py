"""What is run under a kernel, with objects that the host compiles: clang takes its time in a machine."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.datapath import SOURCES
from tests.kernel.ctests.objects import LAUNCHER, compile_source, sources
from tests.kernels.machine import REPORT, Outcome, run
from tests.kernels.packages import CACHE, Kernel, image

REPOSITORY = Path(__file__).resolve().parents[2]
_OBJECTS = str(CACHE / "objects")
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


def run_python(
    kernel: Kernel, *arguments: str, seconds: float = 2400, console: Path | None = None, **variables: str
) -> Outcome:
    """Runs this interpreter with arguments, in the repository, in a machine with the kernel."""
    variables["PYTHONPATH"] = f"{REPOSITORY}:{REPOSITORY}/gen"
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, *arguments]
    return run(image(kernel), command, directory=str(REPOSITORY), seconds=seconds, console=console)


def datapath_under(kernel: Kernel) -> Result:
    """Loads the datapath under the kernel and sends packets through it.

    Raises RuntimeError with the machine's console where that did not get to its end.
    """
    return Result(**_found(kernel, "tests.kernels.guest"))


def bandwidth_under(kernel: Kernel) -> dict[str, float]:
    """Bytes a second: ``rate`` is what an endpoint is limited to, ``limited`` and ``unlimited`` what TCP got.

    Raises RuntimeError with the machine's console where that did not get to its end.
    """
    return _found(kernel, "tests.kernels.bandwidth")


def tests_in_c_under(kernel: Kernel) -> Outcome:
    """Runs bpf/tests under the kernel, compiled here."""
    for source in (*SOURCES, LAUNCHER, *sources()):
        compile_source(source)
    arguments = ("-q", "--color=no", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist")
    return run_python(kernel, "-m", "pytest", *arguments, "tests/kernel/ctests")


def _found(kernel: Kernel, module: str) -> dict[str, Any]:
    """The result of a module that a machine runs with the datapath's compiled programs."""
    compile_sources(str(REPOSITORY / "bpf"), SOURCES, _OBJECTS)
    outcome = run_python(kernel, "-m", module, _OBJECTS, f"{REPORT}/{_RESULT}")
    if _RESULT not in outcome.files:
        raise RuntimeError(f"under {kernel.name} {module} did not get to its end:\n{outcome.console}")
    found: dict[str, Any] = json.loads(outcome.files[_RESULT])
    return found
