"""Finds the C tests, and keeps one machine a session for them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kernel.ctests import machine as machines
from tests.kernel.ctests.objects import compile_source, find_tests, program_names, sources


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ctest" in metafunc.fixturenames:
        tests = [
            test for source in sources() for test in find_tests(source, program_names(compile_source(source)))
        ]
        metafunc.parametrize("ctest", tests, ids=str)


@pytest.fixture(scope="session")
def machine(bpffs: None) -> Iterator[machines.Machine]:
    with machines.machine(f"/sys/fs/bpf/fimbria/ctests-{os.getpid()}") as made:
        yield made
