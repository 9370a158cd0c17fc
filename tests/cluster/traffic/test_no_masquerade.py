"""Without masquerading who is outside sees pods with their own addresses, and needs a route to them."""

from __future__ import annotations

import pytest

from cli.lab.network import Asked
from tests.cluster.traffic.masquerade import NOT_EXCLUDED, World, addresses_seen, families, pods
from tests.cluster.traffic.places import Places

pytestmark = pytest.mark.cluster
NETWORK = Asked(masquerade=False)


class TestWorld(World):
    @families
    @pods
    def test_the_world_sees_the_pod(self, places: Places, pod: str, family: int) -> None:
        assert addresses_seen(places.world, places[pod], NOT_EXCLUDED[family]) == {
            places[pod].addresses[family]
        }

    @families
    def test_who_has_no_route_to_pods_does_not_answer(self, places: Places, family: int) -> None:
        (result,) = places.lab.probe_many([("traffic/near", "@outside", 80, "TCP")], family=family)
        assert not result.allowed
