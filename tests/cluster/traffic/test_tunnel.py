"""Real traffic with the overlay between the nodes."""

from __future__ import annotations

import pytest

from cli.lab.network import Asked
from tests.cluster.traffic.path_mtu import PathMtu
from tests.cluster.traffic.peers import TunnelPeers
from tests.cluster.traffic.policy_changes import PolicyChanges
from tests.cluster.traffic.transport import Transport

pytestmark = pytest.mark.cluster
NETWORK = Asked(routing="tunnel")


class TestPathMtu(PathMtu):
    # 50 bytes are the overlay's.
    ROUTE_MTU = 1450


class TestPeers(TunnelPeers):
    pass


class TestPolicyChanges(PolicyChanges):
    pass


class TestTransport(Transport):
    pass
