"""The C tests of bpf/tests, one item each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.kernel.ctests.conftest import CHECKS
from tests.kernel.ctests.layout import Report
from tests.kernel.ctests.machine import Machine
from tests.kernel.ctests.objects import SOURCES, Broken, CTest

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


def test_c(ctest: CTest | Broken, machine: Machine, record_property: Callable[[str, object], None]) -> None:
    if isinstance(ctest, Broken):
        pytest.fail(ctest.message, pytrace=False)
    report = machine.run(ctest)
    record_property(CHECKS, report.passed + report.failed)
    if report.failed:
        pytest.fail("\n".join(failure_lines(ctest.source, report)), pytrace=False)
    assert report.passed, f"{ctest} asserts nothing"


def failure_lines(source: str, report: Report) -> Iterator[str]:
    for failure in report.failures:
        text = statement(source, failure.line)
        seen = _SEEN.get(text.partition("(")[0], "{0} and {1}").format(failure.left, failure.right)
        yield f"bpf/{source}:{failure.line}: {text}: {seen}"
    missing = report.failed - len(report.failures)
    if missing:
        yield f"and {missing} more"


def statement(source: str, number: int) -> str:
    """The assertion as the source has it."""
    lines = (SOURCES / source).read_text().splitlines()[number - 1 :]
    end = next((index for index, line in enumerate(lines) if line.endswith(";")), 0)
    return " ".join(line.strip() for line in lines[: end + 1]).rstrip(";")
