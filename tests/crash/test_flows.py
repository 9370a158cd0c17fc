"""What watches the crash tests' packets does see what they must not do."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.crash.cluster import TCP_FROM_STRANGERS, CrashCluster
from tests.crash.flows import Fault, Flow, Traffic, show, traffic
from tests.crash.generator import Running
from tests.crash.invariants import pinned_maps
from tests.kernel.loader.rig import ONLY_CLIENT
from tests.kernel.netlink.namespaces import Namespace, Namespaces

pytestmark = pytest.mark.kernel


@pytest.fixture
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces with a wire between them."""
    with Namespaces() as namespaces:
        left, right = namespaces.make(), namespaces.make()
        left.command("ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", right.name)
        for number, each in ((1, left), (2, right)):
            each.command("ip", "address", "add", f"192.0.2.{number}/24", "dev", "wire")
            each.command("ip", "link", "set", "wire", "up")
        yield left, right


def sent(flows: Traffic, name: str, more: int) -> list[Fault]:
    """What went wrong until so many more packets of a flow had been sent."""
    found = flows.faults()
    goal = flows.sent[name] + more
    while flows.sent[name] < goal:
        found += flows.faults()
    return found


def test_each_lost_packet_is_named_with_its_time(pair: tuple[Namespace, Namespace]) -> None:
    left, right = pair
    flow = Flow("there", "udp", left.path, right.path, "192.0.2.2", 9000, 0.002)
    with traffic([flow]) as flows:
        assert sent(flows, "there", 1000) == []
        began = time.monotonic()
        right.command("ip", "address", "delete", "192.0.2.2/24", "dev", "wire")
        right.command("ip", "address", "add", "192.0.2.2/24", "dev", "wire")
        ended = time.monotonic()
        lost = sent(flows, "there", 2000)
    numbers = [each.sequence for each in lost]
    assert numbers
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert {each.what for each in lost} <= {"lost", "its answer was lost"}
    assert began - 0.1 < lost[0].time <= lost[-1].time < ended + 0.1


def test_a_packet_that_must_not_pass_is_named(pair: tuple[Namespace, Namespace]) -> None:
    left, right = pair
    flow = Flow("denied", "fresh", left.path, right.path, "192.0.2.2", 9001, 0.002, passes=False)
    with traffic([flow]) as flows:
        assert {each.what for each in sent(flows, "denied", 10)} == {"wrongly passed"}


def test_a_packet_that_comes_twice_is_named() -> None:
    running = Running(0, Flow("there", "udp", "", "", "192.0.2.2", 9000, 0.002))
    for _ in range(3):
        number = running.next()
        running.arrived[number] = running.answered[number] = 1
    running.arrived[1] = 2
    assert running.faults(time.monotonic()) == []
    (fault,) = running.faults(time.monotonic() + 60)
    assert (fault["sequence"], fault["what"]) == (1, "duplicated")


def test_runs_of_faults_are_shown_in_a_line() -> None:
    faults = [Fault("local", number, "lost", 10 + number / 1000) for number in (1, 2, 3, 7)]
    assert show(faults) == "10.001 local #1: lost … #3 at 10.003 (3 in all)\n10.007 local #7: lost"


def test_a_node_that_forgot_its_connections_would_be_seen(cluster: CrashCluster) -> None:
    cluster.require_traffic()
    with pinned_maps(cluster.rig.pins(cluster.node) / "maps") as open_map:
        table = open_map("ct4")
        table.delete_many([key for key, _ in table.items()])
    found: set[tuple[str, str]] = set()
    while not found:
        found |= {(each.flow, each.what) for each in cluster.traffic.faults()}
    assert ("local-answers", "lost") in found


def test_a_node_without_its_policy_would_be_seen(cluster: CrashCluster) -> None:
    cluster.rig.remove_policy(ONLY_CLIENT)
    cluster.rig.remove_policy(TCP_FROM_STRANGERS.format(port=7000))
    found: set[tuple[str, str]] = set()
    while not {("local-denied", "wrongly passed"), ("remote-denied", "wrongly passed")} <= found:
        found |= {(each.flow, each.what) for each in cluster.traffic.faults()}
