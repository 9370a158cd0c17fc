"""A policy that selects a node, as traffic of that node: from outside, from nodes, from pods, and its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fimbria.loader.v1 import loader_pb2

from tests.kernel.host.conftest import CLOSED, OPEN, SSH, UDP_CLOSED, UDP_OPEN, Cluster
from tests.kernel.host.policies import (
    AUDITED,
    BY_ZONE,
    DENY_FAR,
    EGRESS,
    FROM_NEAR,
    FROM_OUTSIDE,
    INGRESS,
    OTHER_ZONE,
)
from tests.kernel.host.traffic import asks, blocked, pings, reaches

pytestmark = pytest.mark.kernel

Apply = Callable[[str], None]
Eventually = Callable[[Callable[[], bool]], None]
both = pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])


def expect(
    cluster: Cluster, source: str, destination: str, wanted: dict[int, bool], *, ipv6: bool = False
) -> None:
    """Fails unless one place reaches these ports of another, or does not."""
    here, there = cluster.place(source), cluster.place(destination)
    for port, reached in wanted.items():
        if reached:
            assert reaches(here, there, port, ipv6=ipv6), f"{source} to {destination}: {port}"
        else:
            assert blocked(reaches, here, there, port, ipv6=ipv6), f"{source} to {destination}: {port}"


ALL = {OPEN: True, CLOSED: True, SSH: True}
ONLY_OPEN = {OPEN: True, CLOSED: False, SSH: True}


@both
def test_without_a_policy_everything_passes(cluster: Cluster, ipv6: bool) -> None:
    for source in ("world", "other", "pod", "far"):
        expect(cluster, source, "node", ALL, ipv6=ipv6)
    expect(cluster, "far", "router", ALL, ipv6=ipv6)
    expect(cluster, "node", "world", ALL, ipv6=ipv6)
    assert pings(cluster.world, cluster.node, ipv6=ipv6)


@both
def test_ingress_is_judged_by_who_sends(cluster: Cluster, policy: Apply, ipv6: bool) -> None:
    policy(INGRESS)
    expect(cluster, "world", "node", ONLY_OPEN, ipv6=ipv6)
    expect(cluster, "other", "node", ALL, ipv6=ipv6)
    # Pods of this node, and of the other one through the overlay.
    expect(cluster, "pod", "node", ONLY_OPEN, ipv6=ipv6)
    expect(cluster, "pod", "router", ONLY_OPEN, ipv6=ipv6)
    expect(cluster, "far", "router", ONLY_OPEN, ipv6=ipv6)
    # The node that is not selected is as open as before.
    expect(cluster, "world", "other", ALL, ipv6=ipv6)
    expect(cluster, "pod", "other", ALL, ipv6=ipv6)


@both
def test_what_the_node_begins_gets_its_answers(cluster: Cluster, policy: Apply, ipv6: bool) -> None:
    policy(INGRESS)
    for destination in ("world", "other", "pod", "far"):
        expect(cluster, "node", destination, ALL, ipv6=ipv6)
        assert asks(cluster.node, cluster.place(destination), UDP_CLOSED, ipv6=ipv6), destination
        assert pings(cluster.node, cluster.place(destination), ipv6=ipv6), destination


@both
def test_other_protocols_and_fragments(cluster: Cluster, policy: Apply, ipv6: bool) -> None:
    policy(INGRESS)
    for size in (16, 4000):
        assert asks(cluster.world, cluster.node, UDP_OPEN, size=size, ipv6=ipv6)
        assert blocked(asks, cluster.world, cluster.node, UDP_CLOSED, size=size, ipv6=ipv6)
        assert asks(cluster.node, cluster.world, UDP_CLOSED, size=size, ipv6=ipv6)
    assert blocked(pings, cluster.world, cluster.node, ipv6=ipv6)
    assert blocked(pings, cluster.pod, cluster.node, ipv6=ipv6)
    assert pings(cluster.other, cluster.node, ipv6=ipv6)


@both
def test_pods_among_themselves_and_to_the_world_are_as_before(
    cluster: Cluster, policy: Apply, ipv6: bool
) -> None:
    policy(INGRESS)
    policy(EGRESS)
    expect(cluster, "pod", "far", ALL, ipv6=ipv6)
    expect(cluster, "far", "pod", ALL, ipv6=ipv6)
    # With the node's address, which is none of the node's doing.
    expect(cluster, "pod", "world", ALL, ipv6=ipv6)
    assert asks(cluster.pod, cluster.world, UDP_CLOSED, size=4000, ipv6=ipv6)
    assert pings(cluster.pod, cluster.world, ipv6=ipv6)


@both
def test_egress(cluster: Cluster, policy: Apply, ipv6: bool) -> None:
    policy(EGRESS)
    expect(cluster, "node", "world", {OPEN: True, CLOSED: False, SSH: False}, ipv6=ipv6)
    assert asks(cluster.node, cluster.world, UDP_OPEN, ipv6=ipv6)
    assert blocked(asks, cluster.node, cluster.world, UDP_CLOSED, ipv6=ipv6)
    for destination in ("other", "pod", "far"):
        expect(cluster, "node", destination, ALL, ipv6=ipv6)
    # Ingress is not restricted, and answers are no egress.
    for source in ("world", "other", "pod"):
        expect(cluster, source, "node", ALL, ipv6=ipv6)
    assert pings(cluster.world, cluster.node, ipv6=ipv6)


@both
def test_peers_may_be_pods_and_may_be_denied(cluster: Cluster, policy: Apply, ipv6: bool) -> None:
    policy(INGRESS)
    policy(FROM_NEAR)
    expect(cluster, "pod", "node", ALL, ipv6=ipv6)
    expect(cluster, "far", "router", ONLY_OPEN, ipv6=ipv6)
    policy(DENY_FAR)
    expect(cluster, "pod", "node", ALL, ipv6=ipv6)
    # But for what no policy closes.
    expect(cluster, "far", "router", {OPEN: False, CLOSED: False, SSH: True}, ipv6=ipv6)


def test_nodes_are_selected_by_the_labels_that_their_loaders_were_given(
    cluster: Cluster, policy: Apply
) -> None:
    policy(OTHER_ZONE)
    expect(cluster, "world", "node", ALL, ipv6=False)
    policy(BY_ZONE)
    expect(cluster, "world", "node", ONLY_OPEN, ipv6=False)
    expect(cluster, "world", "other", ONLY_OPEN, ipv6=False)


@both
def test_every_address_of_the_node_is_behind_it(
    cluster: Cluster, policy: Apply, eventually: Eventually, ipv6: bool
) -> None:
    extra = "2001:db8::99" if ipv6 else "172.31.1.99"
    length = 64 if ipv6 else 16
    namespace = cluster.node.namespace
    namespace.command(
        "ip", "address", "add", f"{extra}/{length}", "dev", "eth0", *(["nodad"] if ipv6 else [])
    )
    try:
        there = type(cluster.node)(namespace, extra, extra)
        for source in (cluster.world, cluster.pod):
            assert reaches(source, there, CLOSED, ipv6=ipv6)
        policy(INGRESS)
        assert reaches(cluster.world, there, OPEN, ipv6=ipv6)
        assert blocked(reaches, cluster.world, there, CLOSED, ipv6=ipv6)
        eventually(lambda: blocked(reaches, cluster.pod, there, CLOSED, ipv6=ipv6))
        assert reaches(cluster.pod, there, OPEN, ipv6=ipv6)
    finally:
        namespace.command("ip", "address", "del", f"{extra}/{length}", "dev", "eth0")


def test_a_drop_is_told_of_with_its_policy(cluster: Cluster, policy: Apply, eventually: Eventually) -> None:
    policy(INGRESS)
    assert blocked(reaches, cluster.world, cluster.node, CLOSED)

    def told() -> bool:
        return any(
            flow.reason == "Policy denied"
            and flow.destination.port == CLOSED
            and flow.destination.identity == 1
            and flow.source.identity == 2
            and "node-ingress" in flow.rule
            for flow in cluster.rig.nodes[0].flows()
        )

    eventually(told)


@both
def test_peers_may_be_addresses_outside(cluster: Cluster, policy: Apply, ipv6: bool) -> None:
    policy(INGRESS)
    expect(cluster, "world", "node", ONLY_OPEN, ipv6=ipv6)
    policy(FROM_OUTSIDE)
    # What the world may do, whoever has a narrower name in it may do too.
    expect(cluster, "world", "node", ALL, ipv6=ipv6)
    expect(cluster, "pod", "node", ONLY_OPEN, ipv6=ipv6)


def test_a_policy_in_audit_mode_closes_nothing_and_tells(
    cluster: Cluster, policy: Apply, eventually: Eventually
) -> None:
    policy(AUDITED)
    expect(cluster, "world", "node", ALL)

    def told() -> set[str]:
        return {flow.rule for flow in audited(cluster) if flow.destination.port == CLOSED}

    eventually(lambda: told() == {"default deny: CiliumClusterwideNetworkPolicy node-ingress"})
    assert not any(flow.destination.port == OPEN for flow in audited(cluster))


def audited(cluster: Cluster) -> list[loader_pb2.Flow]:
    flows = cluster.rig.nodes[0].flows()
    return [flow for flow in flows if flow.verdict == loader_pb2.FLOW_VERDICT_AUDIT]
