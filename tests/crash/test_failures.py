"""The kernel refuses in the middle of a load or a migration: everything is as it was before, and the loader
lives and may try again.
"""

from __future__ import annotations

import itertools
from typing import Final

import grpc
import pytest

from tests.crash.cluster import CrashCluster

pytestmark = pytest.mark.kernel

_numbers = itertools.count(1)
PLACES: Final = (
    "load.loaded",
    "migrate.created",
    "migrate.filled",
    "migrate.committed",
    "migrate.switched",
    "attach.replaced",
)


@pytest.mark.parametrize("place", PLACES)
def test_a_resize_that_fails_there_changes_nothing(cluster: CrashCluster, place: str) -> None:
    before = cluster.sizes()
    wanted = 150_000 + next(_numbers)
    cluster.choose(f"{place}!EIO")
    try:
        with pytest.raises(grpc.RpcError) as told:
            cluster.resize("ct4", wanted)
    finally:
        cluster.choose("")
    assert told.value.code() is grpc.StatusCode.INTERNAL, told.value
    assert f"failpoint {place}" in str(told.value.details())
    assert cluster.sizes() == before
    cluster.require_consistent()
    cluster.require_traffic()
    cluster.resize("ct4", wanted)
    assert cluster.sizes() == before | {"ct4": wanted}
    cluster.require_consistent()
    cluster.require_traffic()
