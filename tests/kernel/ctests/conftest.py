"""Finds the C tests, and keeps one machine a session for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest

from services.loader.bpf.pins import remove_pins
from tests.kernel.ctests import machine as machines
from tests.kernel.ctests.objects import (
    Broken,
    CompilationFailed,
    CTest,
    compile_source,
    find_tests,
    program_names,
    sources,
)

PINS = Path("/sys/fs/bpf/fimbria")

# A test's property: how many of its assertions ran.
CHECKS = "checks"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ctest" in metafunc.fixturenames:
        # clang is most of it.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            tests = list(pool.map(tests_of, sources()))
        metafunc.parametrize("ctest", list(chain.from_iterable(tests)), ids=str)


def tests_of(source: str) -> list[CTest] | list[Broken]:
    """A file's tests. One that does not compile fails by itself, not its neighbours."""
    try:
        return find_tests(source, program_names(compile_source(source)))
    except (CompilationFailed, ValueError) as error:
        return [Broken(source, str(error))]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for group in ("passed", "failed") for report in terminalreporter.getreports(group)]
    checks = [value for report in reports for name, value in report.user_properties if name == CHECKS]
    if checks:
        terminalreporter.write_line(f"{len(checks)} tests in C, {sum(checks)} checks")


@pytest.fixture(scope="session")
def machine(bpffs: None) -> Iterator[machines.Machine]:
    # What a killed run has left behind.
    for path in PINS.glob("ctests-*"):
        if not Path("/proc", path.name.removeprefix("ctests-")).exists():
            remove_pins(str(path))
    with machines.machine(str(PINS / f"ctests-{os.getpid()}")) as made:
        yield made
