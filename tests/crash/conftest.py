"""A cluster a module, whose first node's loader the tests kill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cli.lab.preflight import ensure_bpffs
from tests.crash.cluster import CrashCluster, crash_cluster


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CrashCluster]:
    """A module's LOADER_FLAGS are the loaders'."""
    ensure_bpffs()
    flags = getattr(request.module, "LOADER_FLAGS", ())
    with crash_cluster(tmp_path_factory.mktemp("crash"), flags) as made:
        yield made
