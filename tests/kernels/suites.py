"""Which of the tests that this kernel passes are run under others too, and what comes of it.

Each suite is a machine of its own: it boots, pytest runs in it, and its report (JUnit's XML) is left beside
the kernels, with what the machine printed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.datapath import SOURCES
from tests.kernels.machine import REPORT
from tests.kernels.packages import CACHE, Kernel
from tests.kernels.run import REPOSITORY, run_python

REPORTS = CACHE / "reports"
# Emulated, this machine's work takes some ten times as long; on one that is busy, more.
SLOWNESS = os.environ.get("FIMBRIA_TEST_SLOWNESS") or "8"
_OBJECTS = REPOSITORY / "build" / "bpf-cache"
_BOOT_SECONDS = 120
_JUNIT = "junit.xml"
_BEFORE = re.compile(r"\bbefore (\d+)\.(\d+)\b")


_FAULTS = "tests/kernel/loader/test_faults.py"


@dataclass(frozen=True)
class Suite:
    """Tests by path, or by path and name; ``seconds`` is what they may take in a machine."""

    name: str
    tests: tuple[str, ...]
    seconds: float


SUITES = (
    Suite("forwarding", ("tests/kernel/bpf/test_forwarding.py", "tests/kernel/bpf/test_pins.py"), 1800),
    Suite("traffic", ("tests/kernel/bpf/test_traffic.py",), 1800),
    Suite("attach", ("tests/kernel/attach",), 1800),
    Suite("migration", ("tests/kernel/migration/test_upgrade.py",), 1800),
    Suite(
        "netlink",
        tuple(
            f"tests/kernel/netlink/test_{name}.py"
            for name in ("links", "links_ipv6", "endpoint_device", "endpoint_routes", "node", "rtnetlink")
        ),
        1800,
    ),
    Suite(
        "loader",
        (
            "tests/kernel/loader/test_endpoints.py",
            f"{_FAULTS}::test_killing_and_starting_a_loader_loses_no_packet",
            f"{_FAULTS}::test_without_any_service_traffic_goes_on_and_enforcement_too",
        ),
        1800,
    ),
    Suite("netkit", ("tests/kernel/netkit",), 1800),
    Suite("lab", ("tests/cluster/test_first_steps.py",), 1800),
)


@dataclass(frozen=True)
class Report:
    """What became of a suite under a kernel; ``skipped`` has reasons, ``failed`` what was said, by test."""

    kernel: str
    suite: str
    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def unfounded(self) -> dict[str, str]:
        """The skips that do not name a later kernel than this as the first that has what they need."""
        here = tuple(int(part) for part in self.kernel.split("."))
        return {
            test: reason
            for test, reason in self.skipped.items()
            if not (found := _BEFORE.search(reason)) or here >= (int(found[1]), int(found[2]))
        }

    def __str__(self) -> str:
        counts = f"{self.passed:>4} passed {len(self.failed):>3} failed {len(self.skipped):>3} skipped"
        lines = [f"{self.kernel:<6}{self.suite:<12}{counts} {self.seconds:>6.0f} s"]
        reasons = sorted(set(self.skipped.values()))
        lines += [f"      skipped {list(self.skipped.values()).count(each)}: {each}" for each in reasons]
        return "\n".join([*lines, *(f"      failed {test}" for test in self.failed)])


def suite(name: str) -> Suite:
    """The suite of that name. Raises ValueError that lists those there are."""
    for each in SUITES:
        if each.name == name:
            return each
    raise ValueError(f"no suite {name!r}; there are {', '.join(each.name for each in SUITES)}")


def run_suite(kernel: Kernel, wanted: Suite) -> Report:
    """Runs the suite in a machine with the kernel.

    Raises RuntimeError with the end of the console for a machine or a pytest that did not get to its end.
    """
    compile_sources(str(REPOSITORY / "bpf"), SOURCES, str(_OBJECTS))
    REPORTS.mkdir(parents=True, exist_ok=True)
    console, junit = (REPORTS / f"{kernel.name}-{wanted.name}.{kind}" for kind in ("console", "xml"))
    arguments = ("-v", "--color=no", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist")
    outcome = run_python(
        kernel, "-m", "pytest", *arguments, f"--junitxml={REPORT}/{_JUNIT}", *wanted.tests,
        seconds=wanted.seconds + _BOOT_SECONDS, console=console,
        FIMBRIA_TEST_SLOWNESS=SLOWNESS, FIMBRIA_TEST_OBJECTS=str(_OBJECTS),
    )  # fmt: skip
    if _JUNIT not in outcome.files:
        raise RuntimeError(
            f"under {kernel.name} {wanted.name} did not get to its end:\n{outcome.console[-4000:]}"
        )
    junit.write_text(outcome.files[_JUNIT])
    return read_report(kernel.name, wanted.name, junit)


def read_report(kernel: str, name: str, junit: Path) -> Report:
    """The report in a file that pytest wrote."""
    root = ElementTree.parse(junit).getroot()
    passed = 0
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for case in root.iter("testcase"):
        test = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        bad = case.find("failure")
        bad = case.find("error") if bad is None else bad
        skip = case.find("skipped")
        if bad is not None:
            failed[test] = bad.text or ""
        elif skip is not None:
            skipped[test] = skip.get("message") or ""
        else:
            passed += 1
    seconds = sum(float(each.get("time", 0)) for each in root.iter("testsuite"))
    return Report(kernel, name, passed, failed, skipped, seconds)
