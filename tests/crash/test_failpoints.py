"""The loader is killed at every place that has a name: not a packet is lost or wrongly passed, and the next
start puts everything in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

import grpc
import pytest

from services.loader.failpoints import PLACES
from tests.crash.cluster import TCP_FROM_ADDRESS, TCP_FROM_STRANGERS, CrashCluster, gets_through

pytestmark = pytest.mark.kernel

_numbers = itertools.count(1)
# Every one of these maps something else than before; the sizes alternate.
_SIZES: Final = itertools.cycle([f"ct4={size},policy={size // 4}" for size in (300_000, 262_144, 280_000)])


# What has to be seen after the restart, beside what always has to.
Afterwards: TypeAlias = Callable[[], None]
Scenario: TypeAlias = Callable[[CrashCluster, str], Afterwards | None]


@contextmanager
def unanswered() -> Iterator[None]:
    """A call in the block is cut off by the end of its server."""
    with pytest.raises(grpc.RpcError) as told:
        yield
    assert told.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), told.value


def _start(cluster: CrashCluster, place: str) -> None:
    """A start to which the sizes of maps are new."""
    cluster.node.loader.kill()
    cluster.node.loader.environment["FIMBRIA_MAP_SIZES"] = next(_SIZES)
    cluster.choose(place)
    cluster.node.loader.start(wait=False)


def _new_device(cluster: CrashCluster, place: str) -> None:
    """A start that finds one more device of the node: nothing is on it yet."""
    device = f"extra{next(_numbers)}"
    cluster.node.loader.kill()
    cluster.node.namespace.command(
        "ip", "link", "add", device, "type", "veth", "peer", "name", f"peer-{device}"
    )
    cluster.node.loader.environment["FIMBRIA_DEVICES"] = f"eth0,{device}"
    cluster.choose(place)
    cluster.node.loader.start(wait=False)


def _resize(cluster: CrashCluster, place: str) -> Afterwards:
    """Another size for a map that programs write; it is then the old or the new one."""
    before, wanted = cluster.sizes()["ct4"], 100_000 + next(_numbers)
    cluster.choose(place)
    with unanswered():
        cluster.resize("ct4", wanted)

    def look() -> None:
        assert cluster.sizes()["ct4"] in (before, wanted)

    return look


def _reload(cluster: CrashCluster, place: str) -> None:
    """The same programs, compiled and loaded again."""
    cluster.choose(place)
    with unanswered():
        cluster.reload()


def _add(cluster: CrashCluster, place: str) -> Afterwards:
    """An ADD over which the loader dies, mostly before it answers; the runtime tries again later."""
    pod = cluster.rig.pod(cluster.node, f"late-{next(_numbers)}", app="client")
    cluster.expected.unknown.add(pod.container_id)
    cluster.choose(place)
    code, _ = pod.call("ADD")
    # The cluster may be told after the answer.
    assert code or place == "add.published"

    def again() -> None:
        pod.add()
        assert gets_through(pod.namespace, cluster.web.ipv4, 80)
        cluster.expected.unknown.discard(pod.container_id)
        pod.delete()

    return again


def _delete(cluster: CrashCluster, place: str) -> None:
    """A DEL that has to succeed though its loader dies over it."""
    pod = cluster.add(f"short-{next(_numbers)}", app="client")
    cluster.expected.there.discard(pod.container_id)
    cluster.choose(place)
    pod.delete()


def _labels(cluster: CrashCluster, place: str) -> Afterwards:
    """Another identity for a pod that sends all the while."""
    number = next(_numbers)
    cluster.choose(place)
    with unanswered():
        cluster.relabel(cluster.near, f"k8s:turn={number}")
    return lambda: cluster.relabel(cluster.near, f"k8s:turn={number}")


def _policy(cluster: CrashCluster, place: str) -> Afterwards:
    """A policy that both lets in and shuts out, and so goes by another instance."""
    port = 7000 + next(_numbers)
    cluster.choose(place)
    cluster.apply(TCP_FROM_STRANGERS.format(port=port))

    def look() -> None:
        assert gets_through(cluster.outsider.namespace, cluster.web.ipv4, port)
        assert not gets_through(cluster.outsider.namespace, cluster.web.ipv4, port + 1, seconds=0.2)

    return look


def _prefix(cluster: CrashCluster, place: str) -> Afterwards:
    """A policy about an address, which comes into the kernel beside its entries."""
    port = 8000 + next(_numbers)
    address = cluster.outsider.ipv4
    cluster.choose(place)
    manifest = TCP_FROM_ADDRESS.format(address=address, port=port)
    cluster.apply(manifest)

    def look() -> None:
        assert gets_through(cluster.outsider.namespace, cluster.web.ipv4, port)
        assert not gets_through(cluster.outsider.namespace, cluster.web.ipv4, port + 1, seconds=0.2)
        cluster.remove(manifest)

    return look


# Where each place is passed. A place without a scenario fails the test of the table.
SCENARIOS: Final[dict[str, tuple[Scenario, ...]]] = {
    "load.compiled": (_start, _reload),
    "load.loaded": (_start, _reload),
    "migrate.created": (_start, _resize),
    "migrate.filled": (_start, _resize),
    "migrate.committed": (_start, _resize),
    "migrate.switched": (_start, _resize),
    "migrate.caught_up": (_start, _resize),
    "migrate.map_pinned": (_start, _resize),
    "migrate.done": (_start, _resize),
    "pin.program": (_start, _reload),
    "attach.filter": (_add,),
    "attach.link_created": (_new_device,),
    "attach.link_pinned": (_new_device,),
    "attach.replaced": (_start, _reload),
    "slot.row": (_add, _labels),
    "slot.device": (_add, _labels),
    "slot.address": (_add,),
    "subject.row": (_labels, _policy),
    "subject.turned": (_labels, _policy),
    "policy.instance_written": (_policy, _labels),
    "policy.in_force": (_policy, _labels),
    "policy.old_deleted": (_policy,),
    "prefixes.written": (_prefix,),
    "record.written": (_add, _delete, _labels),
    "record.renamed": (_add, _delete, _labels),
    "record.deleted": (_delete,),
    "add.recorded": (_add,),
    "add.linked": (_add,),
    "add.realized": (_add,),
    "add.published": (_add,),
    "delete.noted": (_delete,),
    "delete.device": (_delete,),
    "delete.rows": (_delete,),
    "identity.policy": (_labels,),
    "identity.switched": (_labels,),
    "identity.saved": (_labels,),
}
CASES: Final = [(place, scenario) for place in PLACES for scenario in SCENARIOS.get(place, ())]


@pytest.mark.parametrize(
    ("place", "scenario"), CASES, ids=[f"{place}-{scenario.__name__[1:]}" for place, scenario in CASES]
)
def test_killed_there_the_node_forwards_and_recovers(
    cluster: CrashCluster, place: str, scenario: Scenario
) -> None:
    if cluster.node.loader.running is None or cluster.node.loader.running.poll() is not None:
        cluster.restart()
    try:
        afterwards = scenario(cluster, place)
        cluster.wait_died(place)
        cluster.restart()
        cluster.enforced()
        cluster.require_consistent()
        if afterwards is not None:
            afterwards()
        cluster.require_traffic()
    finally:
        cluster.choose("")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("migrate.filled", "migrate.filled"),
        ("migrate.committed", "migrate.map_pinned"),
        ("migrate.committed", "attach.replaced"),
        ("migrate.switched", "migrate.map_pinned"),
        ("migrate.caught_up", "pin.program"),
        ("migrate.map_pinned", "migrate.map_pinned"),
        ("migrate.map_pinned", "migrate.done"),
        ("pin.program", "migrate.created"),
        ("migrate.done", "migrate.created"),
    ],
)
def test_killed_again_as_it_recovers_the_node_forwards_and_recovers(
    cluster: CrashCluster, first: str, second: str
) -> None:
    _start(cluster, first)
    cluster.wait_died(first)
    # The one after is told other sizes again, so that it both finishes the former migration and begins one.
    _start(cluster, second)
    cluster.wait_died(second)
    cluster.restart()
    cluster.enforced()
    cluster.require_consistent()
    cluster.require_traffic()


def test_every_place_has_a_scenario() -> None:
    assert set(SCENARIOS) == set(PLACES)
    assert not [place for place, scenarios in SCENARIOS.items() if not scenarios]
