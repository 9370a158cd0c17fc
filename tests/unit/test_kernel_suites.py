"""How the reports of suites under other kernels are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.run import REPOSITORY
from tests.kernels.suites import SUITES, Report, read_report, suite

JUNIT = """<?xml version="1.0"?>
<testsuites><testsuite time="12.5">
<testcase classname="tests.kernel.bpf.test_pins" name="test_a" time="1"/>
<testcase classname="tests.kernel.bpf.test_pins" name="test_b[x]" time="1">
<failure message="no">words</failure></testcase>
<testcase classname="tests.kernel.bpf.test_pins" name="test_c" time="1">
<error message="no">setup</error></testcase>
<testcase classname="tests.kernel.netkit.test_netkit" name="test_d" time="1">
<skipped type="pytest.skip" message="netkit is not in any kernel before 6.7">where</skipped></testcase>
</testsuite></testsuites>
"""


def test_a_report_tells_what_became_of_each_test(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(JUNIT)
    report = read_report("6.1", "pins", file)
    assert report.passed == 1
    assert report.failed == {"test_pins::test_b[x]": "words", "test_pins::test_c": "setup"}
    assert report.skipped == {"test_netkit::test_d": "netkit is not in any kernel before 6.7"}
    assert report.seconds == 12.5
    assert "1 passed   2 failed   1 skipped" in str(report)


@pytest.mark.parametrize(
    ("kernel", "reason", "founded"),
    [
        ("6.1", "not in any kernel before 6.7", True),
        ("6.12", "not in any kernel before 6.7", False),
        ("6.12", "this kernel, before 6.16, cannot", True),
        ("6.1", "too slow here", False),
        ("6.1", "not before noon", False),
    ],
)
def test_only_what_a_kernel_lacks_is_a_reason_to_skip(kernel: str, reason: str, founded: bool) -> None:
    report = Report(kernel, "some", skipped={"test": reason})
    assert (report.unfounded == {}) == founded


def test_an_unknown_suite_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no suite 'nets'; there are forwarding, "):
        suite("nets")


def test_the_suites_are_of_tests_that_there_are() -> None:
    for each in SUITES:
        for test in each.tests:
            path, _, name = test.partition("::")
            where = REPOSITORY / path
            assert where.exists(), test
            assert not name or f"def {name}(" in where.read_text(), test
