"""A pod that gets another identity loses no packet that both the old and the new one may send."""

from __future__ import annotations

import pytest

from tests.kernel.loader.rig import ONLY_CLIENT, Rig
from tests.kernel.loader.traffic import datagrams

pytestmark = pytest.mark.kernel

CHANGES = 15


@pytest.mark.parametrize("where", ["here", "across nodes"])
def test_no_packet_is_lost_while_a_sender_changes_its_identity(rig: Rig, where: str) -> None:
    first, second = rig.nodes
    web = rig.pod(first, f"web-{where[:4]}", app="web")
    client = rig.pod(first if where == "here" else second, f"client-{where[:4]}", app="client")
    web.add()
    client.add()
    rig.apply(ONLY_CLIENT)
    (found,) = [each for each in client.node.endpoints() if each.pod_name == client.name]
    identities = {found.identity}
    try:
        with datagrams(client, web, 9000, interval=0.0005) as stream:
            for number in range(CHANGES):
                labels = [*found.labels, f"k8s:turn={where[:4]}-{number}"]
                identities.add(client.node.update_labels(found.id, labels).identity)
        assert len(identities) == CHANGES + 1
        # Enough for every change to have met some, however slow the machine is.
        assert stream.sent > CHANGES * 5
        assert stream.lost == 0
    finally:
        rig.remove_policy(ONLY_CLIENT)
        client.delete()
        web.delete()
