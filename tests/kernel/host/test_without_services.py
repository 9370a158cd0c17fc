"""The node stays under its policy whatever dies, and there is a way out with everything else down."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernel.host.conftest import CLOSED, OPEN, SSH, Cluster
from tests.kernel.host.policies import INGRESS
from tests.kernel.host.traffic import blocked, connect, reaches, talks

pytestmark = pytest.mark.kernel

Apply = Callable[[str], None]


def test_a_policy_outlives_processes_and_the_loader_can_switch_it_off_alone(
    cluster: Cluster, policy: Apply
) -> None:
    rig, loader = cluster.rig, cluster.rig.nodes[0].loader

    def expect(*, closed: bool) -> None:
        assert reaches(cluster.world, cluster.node, OPEN)
        assert reaches(cluster.world, cluster.node, SSH)
        if closed:
            assert blocked(reaches, cluster.world, cluster.node, CLOSED)
        else:
            assert reaches(cluster.world, cluster.node, CLOSED)

    policy(INGRESS)
    with connect(cluster.world, cluster.node, OPEN) as admitted:
        loader.kill()
        expect(closed=True)
        for service in rig.services.values():
            service.kill()
        # It knows the node, and of its policy what the kernel has.
        loader.start()
        expect(closed=True)
        assert talks(admitted)

        loader.kill()
        loader.arguments.append("--host-firewall=false")
        loader.start()
        expect(closed=False)
        for service in rig.services.values():
            service.start(wait=False)
        for service in rig.services.values():
            service.wait_ready()
        # What the services say makes no difference to this node; a change is acknowledged all the same.
        policy(INGRESS.replace("8443", "8444"))
        expect(closed=False)

        loader.kill()
        loader.arguments.remove("--host-firewall=false")
        loader.start()
        policy(INGRESS)
        expect(closed=True)
        assert talks(admitted)


def test_without_its_programs_the_device_is_open_until_the_loader_starts(
    cluster: Cluster, policy: Apply
) -> None:
    loader = cluster.rig.nodes[0].loader
    policy(INGRESS)
    loader.kill()
    assert blocked(reaches, cluster.world, cluster.node, CLOSED)
    pins = list((cluster.rig.pin_root / "node-1" / "links" / "eth0").iterdir())
    for pin in pins:
        pin.unlink()
    if not pins:
        # Where links have no such pins, filters hang on the device.
        cluster.node.namespace.command("tc", "qdisc", "del", "dev", "eth0", "clsact")
    assert reaches(cluster.world, cluster.node, CLOSED)
    loader.start()
    assert blocked(reaches, cluster.world, cluster.node, CLOSED)
