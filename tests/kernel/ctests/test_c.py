"""The C tests of bpf/tests, one item each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.kernel.ctests.conftest import CHECKS
from tests.kernel.ctests.layout import Report
from tests.kernel.ctests.machine import Machine
from tests.kernel.ctests.objects import Broken, CTest

pytestmark = pytest.mark.kernel

_OPERATORS = (" == ", " != ", " <= ", " >= ")


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
        # Of a condition there is nothing more to say than that it does not hold.
        values = f": {failure.left}, {failure.right}" if any(op in failure.text for op in _OPERATORS) else ""
        yield f"bpf/{source}:{failure.line}: not {failure.text}{values}"
    missing = report.failed - len(report.failures)
    if missing:
        yield f"and {missing} more"
