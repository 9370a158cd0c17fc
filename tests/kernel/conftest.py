"""What every kernel test needs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from cli.lab.preflight import ensure_bpffs
from tests.patience import patient


@pytest.fixture(autouse=True, scope="session")
def bpffs() -> None:
    """The BPF file system is mounted; as root a machine where that fails fails the tests."""
    if os.geteuid() == 0:
        ensure_bpffs()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Fails unless a condition comes true within ten seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + patient(10)
        while not condition():
            assert time.monotonic() < deadline, "it did not come true"
            time.sleep(0.02)

    return wait
