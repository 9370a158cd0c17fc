"""What fuzzing needs of the machine."""

from __future__ import annotations

import os

import pytest

from cli.lab.preflight import ensure_bpffs


@pytest.fixture(autouse=True, scope="session")
def bpffs() -> None:
    """The BPF file system is mounted; as root a machine where that fails fails the tests."""
    if os.geteuid() == 0:
        ensure_bpffs()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("objects"))
