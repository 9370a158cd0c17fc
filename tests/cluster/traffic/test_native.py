"""Real traffic with pods' packets routed as they are between the nodes."""

from __future__ import annotations

import pytest

from cli.lab.network import Asked
from tests.cluster.traffic.path_mtu import NativePathMtu
from tests.cluster.traffic.peers import NativePeers
from tests.cluster.traffic.policy_changes import PolicyChanges
from tests.cluster.traffic.transport import Transport

pytestmark = pytest.mark.cluster
NETWORK = Asked(routing="native")


class TestPathMtu(NativePathMtu):
    pass


class TestPeers(NativePeers):
    pass


class TestPolicyChanges(PolicyChanges):
    pass


class TestTransport(Transport):
    pass
