"""Manifests with addresses, tiers and audit mode, from the policy service to packets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from fimbria.loader.v1 import loader_pb2

from tests.kernel.echo import echo_server
from tests.kernel.loader.outside import FAR, NEAR, NEAR6, OTHER, Outside, somebody_outside
from tests.kernel.loader.rig import DUAL_POOL, Pod, Rig
from tests.kernel.loader.traffic import reaches, talks
from tests.kernel.netlink.namespaces import Namespaces

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]

FROM_CIDRS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: from-cidrs, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromCIDRSet: [{cidr: 203.0.113.0/24, except: [203.0.113.128/25]}, {cidr: "2001:db8:f::/64"}]
"""

NOT_TO_CIDR = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: not-to-cidr, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: client}}
  enableDefaultDeny: {egress: false}
  egressDeny:
  - toCIDR: [203.0.113.0/24]
"""

IP_BLOCK = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ip-block, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{ipBlock: {cidr: 10.244.0.0/16, except: [ADDRESS/32]}}]
"""

ONLY_CLIENT = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-client, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
"""

ADMIN = """
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: admin}
spec:
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
  ingress:
  - name: one
    action: ACTION
    from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}}]
  - name: two
    action: Allow
    from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: other}}}}]
"""

BASELINE = """
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec:
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
  ingress:
  - name: one
    action: Deny
    from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: other}}}}]
"""


@dataclass
class World:
    """A node with pods under a policy service, and somebody outside."""

    rig: Rig
    outside: Outside
    pods: dict[str, Pod]

    @contextmanager
    def applied(self, *manifests: str) -> Iterator[None]:
        """These policies are in force for as long as the block lasts."""
        for manifest in manifests:
            self.rig.apply(manifest)
        try:
            yield
        finally:
            for manifest in reversed(manifests):
                self.rig.remove_policy(manifest)

    def enters(self, source: str) -> bool:
        return self.outside.enters(source, self.pods["web"])

    def entries(self, pod: str) -> loader_pb2.ListPolicyEntriesResponse:
        node = self.rig.nodes[0]
        return node.policy(node.endpoint(pod).id)

    def reached_by(self, *pods: str) -> list[bool]:
        return [reaches(self.pods[pod], self.pods["web"], 80) for pod in pods]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Namespaces() as namespaces:
        rig = Rig(tmp_path_factory.mktemp("rig"), namespaces, nodes=1, cidrs=DUAL_POOL)
        try:
            rig.start()
            pods = {name: rig.pod(rig.nodes[0], name, app=name) for name in ("web", "client", "other")}
            for pod in pods.values():
                pod.add()
            made = World(rig, somebody_outside(rig), pods)
            with echo_server(pods["web"].namespace, 80), echo_server(made.outside.namespace, 80):
                yield made
        finally:
            rig.close()


def test_cidrs_are_allowed_but_for_what_they_leave_out(world: World) -> None:
    with world.applied(FROM_CIDRS):
        assert [world.enters(each) for each in (NEAR, FAR, OTHER, NEAR6)] == [True, False, False, True]
        assert world.reached_by("client") == [False]
        named = {cidr for cidr, each in world.rig.nodes[0].ipcache().items() if each.identity >= 0xFF0000}
        assert {"203.0.113.0/24", "203.0.113.128/25", "2001:db8:f::/64"} <= named
        connection = world.outside.dial(NEAR, world.pods["web"])
        assert talks(connection)
    with connection, world.applied(ONLY_CLIENT):
        assert not talks(connection)
        assert not world.enters(NEAR)
    assert world.enters(NEAR)


def test_a_cidr_is_denied(world: World) -> None:
    client = world.pods["client"]
    with world.applied(NOT_TO_CIDR):
        assert [world.outside.is_reached(each, client) for each in (NEAR, FAR, OTHER)] == [False, False, True]
        (flow, *_) = [
            flow
            for flow in world.rig.nodes[0].flows()
            if flow.verdict == loader_pb2.FLOW_VERDICT_DROPPED and flow.destination.ip == NEAR
        ]
        assert "cidr:203.0.113.0/24" in flow.destination.labels
        assert flow.rule.startswith("CiliumNetworkPolicy shop/not-to-cidr")
    assert world.outside.is_reached(NEAR, client)


def test_an_ip_block_is_about_pods_too(world: World) -> None:
    manifest = IP_BLOCK.replace("ADDRESS", world.pods["other"].ipv4)
    with world.applied(manifest):
        assert world.reached_by("client", "other") == [True, False]
        assert not world.enters(NEAR)
    assert world.reached_by("other") == [True]


@pytest.mark.parametrize(
    ("action", "expected"), [("Allow", [True, True]), ("Deny", [False, True]), ("Pass", [True, True])]
)
def test_administrators_come_first(world: World, action: str, expected: list[bool]) -> None:
    with world.applied(ONLY_CLIENT, ADMIN.replace("ACTION", action)):
        assert world.reached_by("client", "other") == expected
        assert not world.enters(NEAR)
        admin = [entry for entry in world.entries("web").entries if entry.tier == "admin"]
        told = {(entry.order & 0xFFFF, entry.deny, entry.passes) for entry in admin}
        assert told == {(0, action == "Deny", action == "Pass"), (1, False, False)}


def test_the_baseline_comes_last(world: World) -> None:
    with world.applied(BASELINE):
        assert world.reached_by("client", "other") == [True, False]
        with world.applied(ONLY_CLIENT.replace("app: client", "app: other")):
            assert world.reached_by("client", "other") == [False, True]


def test_audit_mode_reports_and_denies_nothing(world: World, eventually: Eventually) -> None:
    audited = ONLY_CLIENT.replace(
        "namespace: shop}", "namespace: shop, annotations: {fimbria.io/audit: 'true'}}"
    )
    with world.applied(audited):
        assert world.reached_by("client", "other") == [True, True]
        found = world.entries("web")
        assert found.ingress_audit_enforced
        assert not found.ingress_enforced
        assert {(entry.audit, entry.tier) for entry in found.entries} == {(True, "normal")}

        def told() -> set[str]:
            return {
                flow.source.pod
                for flow in world.rig.nodes[0].flows()
                if flow.verdict == loader_pb2.FLOW_VERDICT_AUDIT and "only-client" in flow.rule
            }

        eventually(lambda: told() == {"shop/other"})
