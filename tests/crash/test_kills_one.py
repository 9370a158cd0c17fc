"""SIGKILL at random times; see :mod:`tests.crash.kills`. In two files, for two cores."""

from __future__ import annotations

import pytest

from tests.crash.cluster import CrashCluster
from tests.crash.kills import kill_at_random, seeds

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("seed", seeds(1, 3))
def test_nothing_is_lost_however_often_the_loader_is_killed(cluster: CrashCluster, seed: int) -> None:
    kill_at_random(cluster, seed=seed, kills=50)
