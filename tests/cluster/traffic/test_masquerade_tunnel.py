"""Masquerading beside the overlay."""

from __future__ import annotations

import pytest

from cli.lab.network import Asked
from tests.cluster.traffic.masquerade import EXCLUDE, Masquerade

pytestmark = pytest.mark.cluster
NETWORK = Asked(routing="tunnel", settings={"FIMBRIA_MASQUERADE_EXCLUDE": EXCLUDE})


class TestMasquerade(Masquerade):
    OTHER_NODES_SEE_NODE = True
