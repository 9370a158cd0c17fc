"""The C tests of bpf/tests, one item each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.ctests.layout import Failure, Report
from tests.kernel.ctests.machine import Machine
from tests.kernel.ctests.objects import SOURCES, CTest

pytestmark = pytest.mark.kernel

# What it means for an assertion that it failed, with the values of its sides.
_SEEN = {
    "assert_eq": "{0} != {1}",
    "assert_ne": "{0} == {1}",
    "assert_le": "{0} > {1}",
    "assert_ge": "{0} < {1}",
    "test_assert": "false",
    "test_require": "false",
}


def test_c(ctest: CTest, machine: Machine) -> None:
    report = machine.run(ctest)
    if report.failed:
        pytest.fail("\n".join(failure_lines(report)), pytrace=False)
    assert report.passed, f"{ctest} asserts nothing"


def failure_lines(report: Report) -> Iterator[str]:
    for failure in report.failures:
        text = statement(failure)
        seen = _SEEN.get(text.partition("(")[0], "{0} and {1}").format(failure.left, failure.right)
        yield f"bpf/{failure.file}:{failure.line}: {text}: {seen}"
    missing = report.failed - len(report.failures)
    if missing:
        yield f"and {missing} more"


def statement(failure: Failure) -> str:
    """The assertion as the source has it."""
    lines = (SOURCES / failure.file).read_text().splitlines()[failure.line - 1 :]
    end = next((number for number, line in enumerate(lines) if line.endswith(";")), 0)
    return " ".join(line.strip() for line in lines[: end + 1]).rstrip(";")
