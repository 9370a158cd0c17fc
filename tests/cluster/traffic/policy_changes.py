"""A policy that changes takes effect on connections that are there already, in both directions."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from cli.commands.policy import apply_manifests, wait_enforced
from cli.flow import connection_flows
from cli.lab.lab import Lab
from tests.cluster.traffic.places import ASKERS, FAMILIES, FAR, NEAR, WEB, Places, poll
from tests.cluster.traffic.sockets import Echo, connect, exchange, receive

PORT = 7000
FLOWS = [(asker, family) for asker in ASKERS.values() for family in FAMILIES]

ALLOW_ALL = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: to-web, namespace: traffic}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{}]
"""
# What is not denied still has to be allowed.
DENY_FAR_INGRESS = f"""\
{ALLOW_ALL}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: change, namespace: traffic}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  ingressDeny:
  - fromEndpoints: [{{matchLabels: {{app: far}}}}]
"""
DENY_EGRESS = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: change, namespace: traffic}
spec:
  endpointSelector: {matchExpressions: [{key: app, operator: In, values: [near, far]}]}
  egressDeny:
  - toEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: "7000", protocol: ANY}]}]
"""
ONLY_NEAR = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: change, namespace: traffic}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [near]}]}}]
"""


@dataclass
class Open:
    """A connection that stays open while policies change."""

    asker: str
    family: int
    connection: socket.socket
    protocol: str
    count: int = 0

    @property
    def source(self) -> tuple[str, int]:
        address, port, *_ = self.connection.getsockname()
        return str(address), int(port)

    def message(self) -> bytes:
        self.count += 1
        return b"%-16d" % self.count

    def works(self) -> None:
        """What is sent comes back."""
        data = self.message()
        assert exchange(self.connection, data) == data


class PolicyChanges:
    """Connections of near and far to web, by TCP and UDP, in both families."""

    @pytest.fixture
    def changed(self, places: Places) -> Iterator[Callable[[str], None]]:
        """Applies a manifest, returns when it is in force, and removes all policies afterwards."""
        yield lambda manifest: apply(places.lab, manifest)
        remove_all(places.lab)

    @pytest.fixture
    def echo(self, places: Places) -> Iterator[Echo]:
        with Echo(places[WEB], PORT) as made:
            yield made

    @pytest.fixture
    def connections(self, places: Places, echo: Echo) -> Iterator[list[Open]]:
        with ExitStack() as stack:
            made = []
            for asker, family in FLOWS:
                for protocol, kind in (("TCP", socket.SOCK_STREAM), ("UDP", socket.SOCK_DGRAM)):
                    address = places[WEB].addresses[family]
                    connection = stack.enter_context(connect(places[asker], address, PORT, kind))
                    made.append(Open(asker, family, connection, protocol))
            for each in made:
                each.works()
            yield made

    @pytest.mark.parametrize(
        ("manifest", "cut"),
        [(DENY_FAR_INGRESS, {FAR}), (ONLY_NEAR, {FAR}), (DENY_EGRESS, {NEAR, FAR})],
        ids=["ingress-deny", "no-longer-allowed", "egress-deny"],
    )
    def test_a_denied_connection_is_cut_and_goes_on_when_it_is_allowed_again(
        self,
        places: Places,
        echo: Echo,
        connections: list[Open],
        changed: Callable[[str], None],
        manifest: str,
        cut: set[str],
    ) -> None:
        changed(manifest)
        denied = [each for each in connections if each.asker in cut]
        waiting = [(each, _cut(places, echo, each)) for each in denied]
        for each in connections:
            if each not in denied:
                each.works()
        remove_all(places.lab)
        for each, data in waiting:
            if each.protocol == "TCP":
                # TCP sends again what it got no answer to: nothing is lost, nothing comes twice.
                assert receive(each.connection, len(data)) == data
            each.works()
        for each in denied:
            if each.protocol == "TCP":
                sent = b"".join(b"%-16d" % number for number in range(1, each.count + 1))
                assert bytes(echo.received[each.source]) == sent

    def test_a_pod_that_is_relabelled_loses_and_regains_its_connections(
        self, places: Places, echo: Echo, connections: list[Open], changed: Callable[[str], None]
    ) -> None:
        changed(ONLY_NEAR.replace("[near]", "[near, far]"))
        for each in connections:
            each.works()
        places.lab.label(FAR, ["app=other"])
        try:
            far = [each for each in connections if each.asker == FAR]
            waiting = [(each, _cut(places, echo, each)) for each in far]
        finally:
            places.lab.label(FAR, ["app=far"])
        for each, data in waiting:
            if each.protocol == "TCP":
                assert receive(each.connection, len(data)) == data
        for each in connections:
            each.works()

    def test_an_answer_needs_no_policy_of_its_own(
        self, connections: list[Open], changed: Callable[[str], None]
    ) -> None:
        # Web may send nothing, near and far may receive nothing: answers are part of what they asked for.
        changed(
            ALLOW_ALL
            + """\
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: change, namespace: traffic}
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: change-ingress, namespace: traffic}
spec: {podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}, policyTypes: [Ingress]}
"""
        )
        for each in connections:
            each.works()

    def test_both_ends_see_who_the_other_is(
        self, places: Places, echo: Echo, changed: Callable[[str], None]
    ) -> None:
        changed(ALLOW_ALL)
        rows = {pod: places.pod_row(pod) for pod in (WEB, NEAR, FAR)}
        for asker, family in FLOWS:
            address = places[WEB].addresses[family]
            with connect(places[asker], address, PORT) as connection:
                opened = Open(asker, family, connection, "TCP")
                opened.works()
                (flow, *_) = poll(lambda: _flows(places, opened, "node-1"), f"a flow of {asker}")  # noqa: B023
            assert flow["verdict"] == "forwarded" and "to-web" in flow["rule"]
            assert flow["source"]["identity"] == rows[asker]["identity"]
            assert flow["destination"]["identity"] == rows[WEB]["identity"]
            assert flow["source"]["ip"] == places[asker].addresses[family]


def apply(lab: Lab, manifest: str) -> None:
    apply_manifests(lab.cluster, manifest)


def remove_all(lab: Lab) -> None:
    from fimbria.policy.v1 import policy_pb2

    policies = lab.cluster.policies
    listed = policies.ListPolicies(policy_pb2.ListPoliciesRequest(page_size=1000), timeout=10)
    if listed.policies:
        request = policy_pb2.DeletePoliciesRequest(keys=[policy.key for policy in listed.policies])
        wait_enforced(lab.cluster, policies.DeletePolicies(request, timeout=10).revision, 20)


def _flows(places: Places, opened: Open, *nodes: str) -> list[dict[str, Any]]:
    address, port = opened.source
    found = []
    for node in nodes or tuple(places.nodes):
        target = places[WEB].addresses[opened.family]
        found += connection_flows(places.lab.cluster, node, target, PORT, opened.protocol, port)
    return [flow for flow in found if flow["source"]["ip"] == address]


def _cut(places: Places, echo: Echo, opened: Open) -> bytes:
    """Send something that does not arrive, and say what. The datapath tells that it dropped it."""
    before = len(echo.received[opened.source]), len(echo.datagrams)
    known = len([flow for flow in _flows(places, opened) if flow["verdict"] == "dropped"])
    data = opened.message()
    opened.connection.sendall(data)
    dropped = poll(
        lambda: [flow for flow in _flows(places, opened) if flow["verdict"] == "dropped"][known:],
        f"{opened.protocol} of {opened.asker} over IPv{opened.family} is dropped",
    )
    assert "policy denied" in dropped[0]["reason"].lower()
    assert (len(echo.received[opened.source]), len(echo.datagrams)) == before
    # A moment more: nothing comes after the first packet either.
    opened.connection.settimeout(0.05)
    try:
        with pytest.raises(TimeoutError):
            opened.connection.recv(1)
    finally:
        opened.connection.settimeout(20)
    return data
