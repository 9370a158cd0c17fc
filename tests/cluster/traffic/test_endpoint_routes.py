"""Real traffic with native routing and a route to every pod: the stacks of the nodes take packets to them."""

from __future__ import annotations

import pytest

from cli.lab.network import Asked
from tests.cluster.traffic.path_mtu import NativePathMtu
from tests.cluster.traffic.policy_changes import PolicyChanges
from tests.cluster.traffic.transport import Transport

pytestmark = pytest.mark.cluster
NETWORK = Asked(routing="native", endpoint_routes=True)


class TestPathMtu(NativePathMtu):
    pass


class TestPolicyChanges(PolicyChanges):
    pass


class TestTransport(Transport):
    pass
