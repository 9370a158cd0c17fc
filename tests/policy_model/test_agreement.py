# SPDX-License-Identifier: Apache-2.0
"""Engine, deltas and model agree, whatever happens in whatever order.

`FIMBRIA_MODEL_EXAMPLES` sets how many worlds of each sort are tried; without it as many as fit into a minute.
"""

from __future__ import annotations

import os
from typing import Any
from zlib import crc32

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.policy.engine import MANY, Engine
from services.policy.rules import PolicyRef
from tests.policy_model.cluster import RESERVED_ENDS, Cluster, Connection
from tests.policy_model.generators import (
    KINDS,
    OFTEN,
    Step,
    bundles,
    clusters,
    has_order,
    key_of,
    reordered,
    steps,
)
from tests.policy_model.harness import Deployment
from tests.policy_model.model import Model, Verdict
from tests.policy_model.replica import Packet
from tests.policy_model.vocabulary import OUTSIDE

EXAMPLES = int(os.environ.get("FIMBRIA_MODEL_EXAMPLES", "15"))
# Every border of the generators' ranges, from both sides, and every declared port.
TCP = (52, 53, 54, 59, 79, 80, 81, 82, 84, 86, 89, 442, 443, 444, 449, 65535)
UDP = (53, 80, 81, 82, 443, 50000)
SCTP = (53, 80, 83)
TRAFFIC = (
    *(("TCP", port) for port in TCP),
    *(("UDP", port) for port in UDP),
    *(("SCTP", port) for port in SCTP),
    ("ICMP", 0),
    ("ICMP", 8),
    ("ICMPv6", 128),
    ("ICMPv6", 135),
)
# Transitions are checked with less: they multiply with every entry.
FEW = (("TCP", 80), ("TCP", 81), ("TCP", 444), ("UDP", 53), ("ICMP", 8), ("ICMPv6", 128))


class World:
    """A cluster, the documents about it, and both opinions on them."""

    def __init__(self, cluster: Cluster, engine: Engine, late: bool = False) -> None:
        self.cluster = cluster
        self.documents: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.model = Model(cluster)
        self.deployment = Deployment(cluster, OUTSIDE, FEW, engine, late)

    def do(self, step: Step) -> None:
        match step.what:
            case "apply":
                self.documents.update({key_of(document): document for document in step.value})
                self.deployment.apply(step.value)
            case "reorder":
                place, priority = step.value
                found = [document for document in self.documents.values() if has_order(document)]
                if found:
                    self.do(Step("apply", value=[reordered(found[place % len(found)], priority)]))
            case "delete":
                if not self.documents:
                    return
                key = list(self.documents)[step.value % len(self.documents)]
                del self.documents[key]
                self.deployment.apply((), [PolicyRef(*key)])
            case "pod":
                self.cluster.put(step.value)
                self.deployment.settle_pods()
            case "pod gone":
                self.cluster.pods.pop(step.name, None)
                self.deployment.settle_pods()
            case "namespace":
                self.cluster.namespaces[step.name] = step.value
                self.deployment.settle_pods()
            case "forget":
                self.deployment.forget_identities()
            case other:
                raise ValueError(f"got a step {other!r}, expected one that generators makes")

    def check(self) -> None:
        """Everybody's verdict on everybody."""
        self.model.read(self.documents.values())
        for name in (*self.cluster.pods, "@host"):
            opinion = _Opinion(self.deployment, name)
            for other in (*self.cluster.pods, *RESERVED_ENDS, *OUTSIDE):
                if other != name:
                    self._compare(opinion, name, other)

    def _compare(self, opinion: _Opinion, name: str, other: str) -> None:
        for direction in ("ingress", "egress"):
            source, destination = (other, name) if direction == "ingress" else (name, other)
            for protocol, port in TRAFFIC:
                for family in _families(other, protocol):
                    connection = Connection(source, destination, protocol, port, family)
                    wanted = self.model.verdict(connection, direction)
                    found = opinion.on(connection, direction, other)
                    assert found == wanted, f"{connection} {direction}: the model: {wanted}, nodes: {found}"


class _Opinion:
    """What nodes make of an end's policy: its replica, and for some connections `entries.judge`."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        self.deployment = deployment
        self.state = deployment.state(name)
        subject = deployment.subject(name)
        assert subject is not None
        self.held = deployment.maps[subject]
        self._known: dict[Packet, Verdict] = {}

    def on(self, connection: Connection, direction: str, other: str) -> Verdict:
        if direction == "ingress" and other == "@host":
            return Verdict(True)
        packet = self.deployment.packet(connection, direction)
        if packet not in self._known:
            found = self._known[packet] = Verdict(*self.held.verdict(packet))
            # The reference verdict is a function of the same entries: a part of the packets will do.
            if crc32(str(packet).encode()) % 8 == 0:
                judged = self.deployment.judged(self.state, connection, direction)
                assert judged == found, f"{connection} {direction}: judge: {judged}, the replica: {found}"
        return self._known[packet]


def _families(other: str, protocol: str) -> tuple[int, ...]:
    """The families in which an end talks such a protocol. Ports are tried in one of them only."""
    if not other.startswith("@") and "/" not in other:
        family = 6 if ":" in other else 4
        fits = {"ICMP": 4, "ICMPv6": 6}.get(protocol, family) == family
        return (family,) if fits else ()
    return {"ICMP": (4,), "ICMPv6": (6,), "UDP": (6,)}.get(protocol, (4,))


@pytest.mark.parametrize("kinds", KINDS)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    # Not `explain`: it runs what has failed many times over, under a tracer.
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(st.data())
def test_engine_deltas_and_model_agree(kinds: str, data: st.DataObject) -> None:
    documents = KINDS[kinds]
    # With 1 every identity is taken over as thousands would be.
    many = data.draw(st.sampled_from((1, MANY)), label="many")
    late = data.draw(st.booleans(), label="late")
    world = World(data.draw(clusters(), label="cluster"), Engine(many), late)
    first = Step("apply", value=data.draw(bundles(documents), label="first"))
    changes = st.lists(steps(documents, OFTEN.get(kinds, "apply")), min_size=2, max_size=7)
    for step in (first, *data.draw(changes, label="changes")):
        world.do(step)
        world.check()
