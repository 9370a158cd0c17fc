"""A cluster a module, whose first node's loader the tests kill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cli.lab.preflight import ensure_bpffs
from tests.crash.cluster import CrashCluster, crash_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashCluster]:
    ensure_bpffs()
    with crash_cluster(tmp_path_factory.mktemp("crash")) as made:
        yield made
