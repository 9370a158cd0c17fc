"""Real traffic through the overlay and a route to every pod: the stacks of the nodes take packets to them."""

from __future__ import annotations

import pytest

from cli.lab.network import Asked
from tests.cluster.traffic.path_mtu import PathMtu
from tests.cluster.traffic.policy_changes import PolicyChanges
from tests.cluster.traffic.transport import Transport

pytestmark = pytest.mark.cluster
NETWORK = Asked(routing="tunnel", endpoint_routes=True)


class TestPathMtu(PathMtu):
    # 50 bytes are the overlay's.
    ROUTE_MTU = 1450


class TestPolicyChanges(PolicyChanges):
    pass


class TestTransport(Transport):
    pass
