"""Two nodes with their loaders, pods on both, and somebody outside on the same underlay; both families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.kernel.echo import echo_server
from tests.kernel.host.traffic import Place
from tests.kernel.loader.rig import DUAL_POOL, Pod, Rig
from tests.kernel.netlink.namespaces import Namespaces

# What answers on node-1, beside 22.
OPEN, CLOSED, UDP_OPEN, UDP_CLOSED = 8443, 9000, 5300, 5301
SSH = 22


@dataclass(frozen=True)
class Cluster:
    """``node`` is the one that policies select, ``other`` is not; ``pod`` is on the first, ``far`` on the
    second, ``world`` is nobody's. All of them answer on every port of this module.
    """

    rig: Rig
    node: Place
    other: Place
    pod: Place
    far: Place
    world: Place

    @property
    def router(self) -> Place:
        """``node`` by its address among its pods, which the overlay leads to from other nodes."""
        addresses = {
            prefix.partition("/")[0]
            for prefix, entry in self.rig.nodes[1].ipcache().items()
            if entry.identity == 6 and entry.tunnel_endpoint == self.node.ipv4
        }
        ipv4, ipv6 = sorted(addresses, key=lambda address: ":" in address)
        return Place(self.node.namespace, ipv4, ipv6)

    def place(self, name: str) -> Place:
        found = getattr(self, name)
        assert isinstance(found, Place)
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Namespaces() as namespaces, ExitStack() as stack:
        rig = Rig(
            tmp_path_factory.mktemp("host"), namespaces, cidrs=DUAL_POOL, flags=["--node-labels=zone=a"]
        )
        stack.callback(rig.close)
        rig.start()
        first, second = rig.nodes
        pods = [rig.pod(node, name, app=name) for node, name in ((first, "near"), (second, "far"))]
        for pod in pods:
            pod.add()
        made = Cluster(
            rig,
            Place(first.namespace, first.ipv4, first.ipv6),
            Place(second.namespace, second.ipv4, second.ipv6),
            _place(pods[0]),
            _place(pods[1]),
            _outside(rig),
        )
        for place in (made.node, made.other, made.pod, made.far, made.world):
            for port in (OPEN, CLOSED, SSH):
                stack.enter_context(echo_server(place.namespace, port))
            for port in (UDP_OPEN, UDP_CLOSED):
                stack.enter_context(echo_server(place.namespace, port, udp=True))
        yield made


def _place(pod: Pod) -> Place:
    return Place(pod.namespace, pod.ipv4, pod.ipv6)


def _outside(rig: Rig) -> Place:
    place = Place(rig.namespaces.make(), "172.31.7.7", "2001:db8::7:7")
    rig._underlay.command(
        "ip", "link", "add", "world", "type", "veth", "peer", "name", "eth0", "netns", place.namespace.name
    )
    rig._underlay.command("ip", "link", "set", "world", "master", "underlay", "up")
    for command in (
        "link set lo up",
        "link set eth0 up",
        f"address add {place.ipv4}/16 dev eth0",
        f"address add {place.ipv6}/64 dev eth0 nodad",
    ):
        place.namespace.command("ip", *command.split())
    return place


@pytest.fixture
def policy(cluster: Cluster) -> Iterator[Callable[[str], None]]:
    """Applies a policy, which is in force when the call returns; the test's policies are gone afterwards."""
    applied: list[str] = []

    def apply(manifest: str) -> None:
        if manifest not in applied:
            applied.append(manifest)
        cluster.rig.apply(manifest)

    yield apply
    for manifest in applied:
        cluster.rig.remove_policy(manifest)
