"""Masquerading beside native routing."""

from __future__ import annotations

import pytest

from cli.lab.network import Asked
from tests.cluster.traffic.masquerade import EXCLUDE, Masquerade

pytestmark = pytest.mark.cluster
NETWORK = Asked(routing="native", settings={"FIMBRIA_MASQUERADE_EXCLUDE": EXCLUDE})


class TestMasquerade(Masquerade):
    # Other nodes have routes to pods.
    OTHER_NODES_SEE_NODE = False
