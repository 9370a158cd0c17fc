"""One lab for each module here, connected as the module's NETWORK says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cli.lab.lab import Lab

for _suite in ("masquerade", "path_mtu", "peers", "places", "policy_changes", "sockets", "transport"):
    pytest.register_assert_rewrite(f"tests.cluster.traffic.{_suite}")

from tests.cluster.traffic.path_mtu import LARGE_PODS, Large, make_large  # noqa: E402
from tests.cluster.traffic.places import Places, populate  # noqa: E402


@pytest.fixture(scope="module")
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """A lab of two nodes, web and near on node-1 and far on node-2."""
    lab = Lab(tmp_path_factory.mktemp("traffic") / "lab")
    try:
        lab.up(2, request.module.NETWORK)
        yield populate(lab)
    finally:
        lab.down()


@pytest.fixture(scope="module")
def large(places: Places) -> Iterator[Large]:
    """Two pods on two nodes that do not know how much fits between them."""
    try:
        yield make_large(places)
    finally:
        for pod in LARGE_PODS:
            places.lab.delete(pod)
