"""SIGKILL at random times as in the other file, on nodes without an overlay and with routes per endpoint; the
services are killed too.
"""

from __future__ import annotations

import pytest

from tests.crash.cluster import CrashCluster
from tests.crash.kills import kill_at_random, seeds

pytestmark = pytest.mark.kernel
LOADER_FLAGS = ("--routing-mode=native", "--endpoint-routes=true")


@pytest.mark.parametrize("seed", seeds(3, 5))
def test_nothing_is_lost_however_often_the_loader_is_killed(cluster: CrashCluster, seed: int) -> None:
    kill_at_random(cluster, seed=seed, kills=50, services=True)
