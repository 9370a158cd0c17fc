# SPDX-License-Identifier: Apache-2.0
"""Engine, deltas and model agree, whatever happens in whatever order.

`FIMBRIA_MODEL_EXAMPLES` sets how many worlds are tried; without it as many as fit into a minute.
"""

from __future__ import annotations

import os
from typing import Any
from zlib import crc32

from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from services.policy.rules import PolicyRef
from tests.policy_model.cluster import RESERVED_ENDS, Cluster, Connection
from tests.policy_model.generators import OUTSIDE, Step, bundles, clusters, key_of, steps
from tests.policy_model.harness import Deployment
from tests.policy_model.model import Model, Verdict

EXAMPLES = int(os.environ.get("FIMBRIA_MODEL_EXAMPLES", "40"))
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

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.documents: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.model = Model(cluster)
        self.deployment = Deployment(cluster, OUTSIDE, FEW)

    def do(self, step: Step) -> None:
        match step.what:
            case "apply":
                self.documents.update({key_of(document): document for document in step.value})
                self.deployment.apply(step.value)
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
        ends = [*self.cluster.pods, *RESERVED_ENDS, *OUTSIDE]
        for name in (*self.cluster.pods, "@host"):
            state = self.deployment.state(name)
            subject = self.deployment.subject(name)
            assert subject is not None
            held = self.deployment.maps[subject]
            for other in ends:
                if other == name:
                    continue
                for direction in ("ingress", "egress"):
                    source, destination = (other, name) if direction == "ingress" else (name, other)
                    for protocol, port in TRAFFIC:
                        for family in _families(other, protocol):
                            connection = Connection(source, destination, protocol, port, family)
                            self._compare(connection, direction, state, held)

    def _compare(self, connection: Connection, direction: str, state: Any, held: Any) -> None:
        wanted = self.model.verdict(connection, direction)
        packet = self.deployment.packet(connection, direction)
        if direction == "ingress" and connection.source == "@host":
            found = Verdict(True)
        else:
            found = Verdict(*held.verdict(packet))
        assert found == wanted, f"{connection} {direction}: the model says {wanted}, the replica {found}"
        # The reference verdict is a function of the same entries: a part of the connections will do.
        if crc32(str(connection).encode()) % 8 == 0:
            judged = self.deployment.judged(state, connection, direction)
            assert judged == wanted, f"{connection} {direction}: the model says {wanted}, judge {judged}"


def _families(other: str, protocol: str) -> tuple[int, ...]:
    """The families in which an end talks such a protocol. Ports are tried in one of them only."""
    if not other.startswith("@") and "/" not in other:
        family = 6 if ":" in other else 4
        fits = {"ICMP": 4, "ICMPv6": 6}.get(protocol, family) == family
        return (family,) if fits else ()
    return {"ICMP": (4,), "ICMPv6": (6,), "UDP": (6,)}.get(protocol, (4,))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    # Not `explain`: it runs what has failed many times over, under a tracer.
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(clusters(), bundles, st.lists(steps, min_size=1, max_size=6))
def test_engine_deltas_and_model_agree(
    cluster: Cluster, first: list[dict[str, Any]], changes: list[Step]
) -> None:
    world = World(cluster)
    for step in (Step("apply", value=first), *changes):
        note(str(step))
        world.do(step)
        world.check()
