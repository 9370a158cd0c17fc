"""What holds for all tests, however they are started."""

from __future__ import annotations

import os
import signal

import pytest

# Whether the disk keeps what it is given is not what is tested, and takes its time: tests/postgres.py.
os.environ.setdefault("FIMBRIA_TEST_FSYNC", "off")

# Whoever starts the suite in the background may have it ignore Ctrl-C; what it runs would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root the kernel and cluster tests cannot run; as root they run or fail."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="not supported without root: makes namespaces and loads BPF programs")
    for item in items:
        if item.get_closest_marker("kernel") or item.get_closest_marker("cluster"):
            item.add_marker(skip)
