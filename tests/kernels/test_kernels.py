"""The datapath under Debian's kernels: that they load it, and what it then does with packets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.datapath import SOURCES
from tests.kernels.conftest import REPORT
from tests.kernels.objects import complaints
from tests.kernels.packages import KERNELS, Kernel, kernel
from tests.kernels.run import REPOSITORY, bandwidth_under, datapath_under, tests_in_c_under
from tests.kernels.suites import SUITES, Suite, run_suite

# tcx came with 6.6.
TCX = {"6.1": "clsact", "6.12": "tcx"}

Recorder = Callable[[str, object], None]

pytestmark = pytest.mark.kernel
every_kernel = pytest.mark.parametrize("under", KERNELS, ids=lambda each: each.name)


@every_kernel
def test_the_datapath_loads_and_treats_packets_right(under: Kernel) -> None:
    result = datapath_under(under)

    assert not result.failures
    assert not result.wrong
    assert result.packets > 0
    assert set(result.attached.values()) == {"clsact", TCX[under.name]}


@every_kernel
@pytest.mark.parametrize("suite", SUITES, ids=lambda each: each.name)
def test_what_passes_here_passes_there(under: Kernel, suite: Suite, record_property: Recorder) -> None:
    report = run_suite(under, suite)
    record_property(REPORT, str(report))

    assert not report.failed, "\n".join(f"{test}:\n{words}" for test, words in report.failed.items())
    assert not report.unfounded
    assert report.passed or report.skipped


def test_the_tests_in_c_pass() -> None:
    # Not under 6.1, whose verifier refuses what the tests themselves are made of.
    outcome = tests_in_c_under(kernel("6.12"))

    assert outcome.status == 0, outcome.console


def test_fq_keeps_an_endpoints_rate() -> None:
    found = bandwidth_under(kernel("6.12"))

    assert found["limited"] == pytest.approx(found["rate"], rel=0.2)
    assert found["unlimited"] > 2 * found["rate"]


def test_programs_ask_for_nothing_that_5_15_lacks(tmp_path: Path) -> None:
    compiled = compile_sources(str(REPOSITORY / "bpf"), SOURCES, str(tmp_path))

    assert [complaint for each in compiled for complaint in complaints(each.path)] == []
