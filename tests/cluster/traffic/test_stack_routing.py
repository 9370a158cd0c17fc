"""Real traffic with native routing through the nodes' stacks, in both directions."""

from __future__ import annotations

import pytest

from cli.lab.network import Asked
from tests.cluster.traffic.path_mtu import NativePathMtu
from tests.cluster.traffic.policy_changes import PolicyChanges
from tests.cluster.traffic.transport import Transport

pytestmark = pytest.mark.cluster
NETWORK = Asked(routing="native", settings={"FIMBRIA_HOST_ROUTING": "false"})


class TestPathMtu(NativePathMtu):
    pass


class TestPolicyChanges(PolicyChanges):
    pass


class TestTransport(Transport):
    pass
