"""The command line in this process, talking to a cluster that is kept in dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli import ipam_check
from cli.__main__ import run
from tests.unit.cli.fake_cluster import FakeCluster

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """A cluster of two nodes that the environment names."""
    made = FakeCluster(tmp_path)
    for name, value in made.serve().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ipam_check, "SETTLE_SECONDS", 0.0)
    yield made
    made.stop()


@pytest.fixture
def command(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command: exit code, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call
