"""Prefixes, tiers and audit mode on a node: what a policy service says of them is what packets meet."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from fimbria.loader.v1 import loader_pb2
from fimbria.policy.v1 import policy_pb2 as pb

from tests.kernel.echo import echo_server
from tests.kernel.loader.outside import FAR, FAR6, NEAR, NEAR6, OTHER, Outside, somebody_outside
from tests.kernel.loader.rig import DUAL_POOL, Pod, Rig
from tests.kernel.loader.scripted_policy import ScriptedPolicy, entry, prefix, scripted_policy
from tests.kernel.loader.traffic import connect, reaches, talks
from tests.kernel.netlink.namespaces import Namespaces

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]

WIDE, NARROW, SIX, PODS = 0xFF0000, 0xFF0001, 0xFF0002, 0xFF0003
WORLD = 2
ADMIN, BASELINE = pb.TIER_ADMIN, pb.TIER_BASELINE


@dataclass
class World:
    """A node, a policy service that is scripted, and somebody outside with several addresses."""

    rig: Rig
    script: ScriptedPolicy
    outside: Outside
    pods: dict[str, Pod]

    def identity(self, name: str) -> int:
        return int(self.rig.nodes[0].endpoint(name).identity)

    def dial(self, source: str) -> socket.socket:
        """A connection from one of the addresses outside to web. Raises OSError."""
        return self.outside.dial(source, self.pods["web"])

    def enters(self, source: str) -> bool:
        """Whether web answers somebody outside."""
        return self.outside.enters(source, self.pods["web"])

    def leaves(self, destination: str) -> bool:
        """Whether client is answered by somebody outside."""
        return self.outside.is_reached(destination, self.pods["client"])

    def flows(self, verdict: int) -> list[loader_pb2.Flow]:
        return [flow for flow in self.rig.nodes[0].flows() if flow.verdict == verdict]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Namespaces() as namespaces:
        rig = Rig(tmp_path_factory.mktemp("rig"), namespaces, nodes=1, cidrs=DUAL_POOL)
        del rig.services["policy"]
        try:
            with scripted_policy(rig.target("policy")) as script:
                rig.start()
                pods = {name: rig.pod(rig.nodes[0], name, app=name) for name in ("web", "client", "other")}
                for pod in pods.values():
                    pod.add()
                made = World(rig, script, somebody_outside(rig), pods)
                with echo_server(pods["web"].namespace, 80), echo_server(made.outside.namespace, 80):
                    yield made
        finally:
            rig.close()


@pytest.fixture(autouse=True)
def nothing_said(world: World) -> Iterator[None]:
    yield
    world.script.reset()


def by_identity(world: World) -> None:
    """Two prefixes, one within the other, and one of IPv6, in use by identity."""
    world.script.name(
        prefix("203.0.113.0/24", WIDE, by_identity=True),
        prefix("203.0.113.128/25", NARROW, by_identity=True),
        prefix("2001:db8:f::/64", SIX, by_identity=True),
    )


def test_a_prefix_is_allowed_and_what_it_leaves_out_is_not(world: World) -> None:
    web = world.identity("web")
    assert world.enters(NEAR) and world.enters(NEAR6)
    by_identity(world)
    world.script.policy(web, entry(WIDE, cookie=1), entry(SIX, cookie=1), ingress=True)
    assert [world.enters(each) for each in (NEAR, FAR, OTHER)] == [True, False, False]
    assert [world.enters(each) for each in (NEAR6, FAR6)] == [True, False]
    assert not reaches(world.pods["client"], world.pods["web"], 80)


def test_a_prefix_is_denied_and_what_it_leaves_out_is_not(world: World) -> None:
    by_identity(world)
    client = world.identity("client")
    world.script.policy(client, entry(WIDE, cookie=1, deny=True, egress=True))
    assert [world.leaves(each) for each in (NEAR, FAR, OTHER)] == [False, True, True]
    (flow, *_) = world.flows(loader_pb2.FLOW_VERDICT_DROPPED)[-1:]
    assert flow.destination.identity == WIDE
    assert "cidr:203.0.113.0/24" in flow.destination.labels
    assert flow.rule == "Policy script spec.rules[1]"


def test_a_prefix_by_identity_is_not_about_pods(world: World) -> None:
    web, client = world.pods["web"], world.pods["client"]
    world.script.name(
        prefix("10.244.0.0/16", PODS, by_identity=True),
        prefix(f"{client.ipv4}/32", WIDE, by_identity=True),
    )
    world.script.policy(world.identity("web"), entry(PODS, cookie=1), entry(WIDE, cookie=1), ingress=True)
    assert not reaches(client, web, 80)
    world.script.policy(world.identity("web"), entry(world.identity("client"), cookie=1), ingress=True)
    assert reaches(client, web, 80)


def test_a_prefix_by_address_is_about_whoever_has_the_address(world: World) -> None:
    web, client, other = world.pods["web"], world.pods["client"], world.pods["other"]
    world.script.name(
        prefix(f"{client.ipv4}/32", PODS, by_address=True),
        prefix("203.0.113.0/24", WIDE, by_address=True),
        prefix("203.0.113.128/25", NARROW, by_address=True),
        prefix(f"{client.ipv6}/128", SIX, by_address=True),
    )
    entries = [entry(number, cookie=2, by_address=True) for number in (PODS, WIDE, SIX)]
    world.script.policy(world.identity("web"), *entries, ingress=True)
    assert reaches(client, web, 80) and reaches(client, web, 80, ipv6=True)
    assert not reaches(other, web, 80) and not reaches(other, web, 80, ipv6=True)
    assert [world.enters(each) for each in (NEAR, FAR, OTHER)] == [True, False, False]
    held = {found.name: found.entries for found in world.rig.nodes[0].status().maps}
    assert (held["block4"], held["block6"]) == (3, 1)
    # The pods' own identities are what they were.
    assert world.rig.nodes[0].ipcache()[f"{client.ipv4}/32"].identity == world.identity("client")


def test_an_established_connection_ends_with_its_prefix(world: World, eventually: Eventually) -> None:
    web = world.identity("web")
    by_identity(world)
    world.script.policy(web, entry(WIDE, cookie=1), ingress=True)
    with world.dial(NEAR) as connection:
        assert talks(connection)
        world.script.forget("203.0.113.0/24")
        assert not talks(connection)
    assert not world.enters(NEAR)
    assert "203.0.113.0/24" not in world.rig.nodes[0].ipcache()


@pytest.mark.parametrize("begins", [True, False])
def test_an_established_connection_is_judged_again_when_another_prefix_holds_its_address(
    world: World, begins: bool
) -> None:
    web = world.identity("web")
    inner = prefix(f"{NEAR}/32", NARROW, by_address=True)
    world.script.name(prefix("203.0.113.0/24", WIDE, by_address=True))
    allowed, denied = (WIDE, NARROW) if begins else (NARROW, WIDE)
    world.script.policy(
        web,
        entry(allowed, cookie=1, by_address=True),
        entry(denied, cookie=2, by_address=True, deny=True),
        ingress=True,
    )
    if not begins:
        world.script.name(inner)
    with world.dial(NEAR) as connection:
        assert talks(connection)
        if begins:
            world.script.name(inner)
        else:
            world.script.forget(inner.cidr)
        assert not talks(connection)


def test_the_admin_tier_comes_before_all_others(world: World) -> None:
    web, client, other = world.pods["web"], world.pods["client"], world.pods["other"]
    subject = world.identity("web")
    normal = [entry(world.identity(name), cookie=1) for name in ("client", "other")]
    world.script.policy(subject, *normal, ingress=True)
    assert reaches(client, web, 80) and reaches(other, web, 80)
    deny = entry(world.identity("client"), cookie=2, deny=True, tier=ADMIN, order=7)
    world.script.policy(subject, *normal, deny, ingress=True)
    assert not reaches(client, web, 80) and reaches(other, web, 80)
    # What comes first decides, if it decides.
    allow = entry(0, cookie=3, tier=ADMIN, order=6)
    world.script.policy(subject, deny, allow, ingress=True)
    assert reaches(client, web, 80) and reaches(other, web, 80)
    leave = entry(world.identity("client"), cookie=4, passes=True, tier=ADMIN, order=5)
    world.script.policy(subject, deny, allow, leave, ingress=True)
    assert not reaches(client, web, 80) and reaches(other, web, 80)
    world.script.policy(subject, deny, leave, *normal, ingress=True)
    assert reaches(client, web, 80)


def test_the_baseline_is_asked_about_what_nobody_has_an_opinion_on(world: World) -> None:
    web, client, other = world.pods["web"], world.pods["client"], world.pods["other"]
    subject = world.identity("web")
    baseline = entry(0, cookie=1, deny=True, tier=BASELINE, order=3)
    world.script.policy(subject, baseline)
    assert not reaches(client, web, 80) and not world.enters(NEAR)
    world.script.policy(subject, baseline, entry(world.identity("client"), cookie=2))
    assert reaches(client, web, 80) and not reaches(other, web, 80)
    world.script.policy(subject, entry(0, cookie=1, tier=BASELINE, order=3), ingress=True)
    assert not reaches(client, web, 80)


def test_a_policy_in_audit_mode_lets_pass_and_tells(world: World, eventually: Eventually) -> None:
    web, client = world.pods["web"], world.pods["client"]
    subject, peer = world.identity("web"), world.identity("client")
    world.script.policy(subject, entry(peer, cookie=9, deny=True, audit=True))
    with connect(client, web, 80) as connection:
        assert talks(connection)

    def told(rule: str) -> bool:
        return any(
            flow.rule == rule and flow.source.identity == peer and flow.destination.port == 80
            for flow in world.flows(loader_pb2.FLOW_VERDICT_AUDIT)
        )

    eventually(lambda: told("Policy script spec.rules[9]"))
    # Nothing allows it: what a policy in audit mode would refuse by default.
    world.script.policy(subject, audit_ingress=True)
    assert reaches(client, web, 80)
    eventually(lambda: told("default deny: Policy script"))


def test_a_restarted_loader_keeps_prefixes_until_it_knows_better(
    world: World, eventually: Eventually
) -> None:
    node, web = world.rig.nodes[0], world.identity("web")
    by_identity(world)
    world.script.name(prefix(f"{OTHER}/32", PODS, by_address=True))
    world.script.policy(web, entry(WIDE, cookie=1), entry(PODS, cookie=2, by_address=True), ingress=True)
    with world.dial(NEAR) as connection:
        assert talks(connection)
        node.loader.kill()
        assert world.enters(NEAR) and world.enters(OTHER) and not world.enters(FAR)
        world.script.change_unheard(
            forget=["2001:db8:f::/64", f"{OTHER}/32"], name=[prefix("192.0.2.0/24", SIX, by_address=True)]
        )
        node.loader.start()
        world.script.settle()
        assert talks(connection)
    assert world.enters(NEAR) and not world.enters(OTHER) and not world.enters(FAR)
    named = {cidr: each.identity for cidr, each in node.ipcache().items() if each.identity >= WIDE}
    assert named == {"203.0.113.0/24": WIDE, "203.0.113.128/25": NARROW}
    held = {found.name: found.entries for found in node.status().maps}
    assert (held["block4"], held["block6"]) == (1, 0)


def test_no_tier_counts_where_policies_are_enforced_nowhere(world: World, eventually: Eventually) -> None:
    node, web = world.rig.nodes[0], world.identity("web")
    world.script.policy(web, entry(0, cookie=1, deny=True, tier=ADMIN, order=1))
    assert not world.enters(NEAR)
    try:
        node.loader.kill()
        node.loader.arguments.append("--policy-enforcement=never")
        node.loader.start()
        world.script.settle()
        assert world.enters(NEAR)
        node.loader.kill()
        node.loader.arguments[-1] = "--policy-enforcement=always"
        node.loader.start()
        world.script.settle()
        # The baseline has nothing left to decide.
        world.script.policy(web, entry(0, cookie=1, tier=BASELINE, order=1))
        assert not world.enters(NEAR)
        world.script.policy(web, entry(0, cookie=1, tier=ADMIN, order=1))
        assert world.enters(NEAR)
    finally:
        node.loader.kill()
        node.loader.arguments.pop()
        node.loader.start()
        world.script.settle()
