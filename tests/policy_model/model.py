# SPDX-License-Identifier: Apache-2.0
"""The verdict on a connection, by asking every policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.policy_model.cilium import cilium_policy
from tests.policy_model.cluster import Cluster, Connection, End, Pod
from tests.policy_model.kubernetes import admin_policy, network_policy
from tests.policy_model.own import own_policy
from tests.policy_model.reading import (
    ADMIN,
    ALLOW,
    BASELINE,
    DENY,
    INGRESS,
    NORMAL,
    PASS,
    Reading,
    Statement,
)

Document = Mapping[str, Any]
GROUP = "CiliumCIDRGroup"
AUDIT_ANNOTATION = "fimbria.io/audit"
# Between policies of the same priority, which their API leaves open.
_STRONGER = (DENY, PASS, ALLOW)


@dataclass(frozen=True)
class Verdict:
    """What one end says. `audited`: it lets the connection pass, and policies in audit mode would not."""

    allowed: bool
    audited: bool = False


class Model:
    """Documents about a cluster; verdicts are about both as they were at the last `read`."""

    def __init__(self, cluster: Cluster, documents: Iterable[Document] = ()) -> None:
        self.cluster = cluster
        self._readings: list[Reading] = []
        self._ends: dict[str, End] = {}
        self._alike: dict[str, tuple[Pod, ...]] = {}
        self._heard: dict[str, list[Reading]] = {}
        self.read(documents)

    def read(self, documents: Iterable[Document]) -> None:
        """Take these for all policies and CIDR groups there are."""
        listed = list(documents)
        groups = {item["metadata"]["name"]: item for item in listed if item["kind"] == GROUP}
        self._readings = []
        self._ends, self._alike, self._heard = {}, {}, {}
        for document in listed:
            match document["kind"]:
                case "CiliumCIDRGroup":
                    continue
                case "NetworkPolicy":
                    found: Sequence[Reading] = (network_policy(document, self.cluster),)
                case "CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy":
                    found = tuple(cilium_policy(document, self.cluster, groups))
                case "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy":
                    found = (admin_policy(document, self.cluster),)
                case "Policy":
                    found = (own_policy(document, self.cluster, groups),)
                case kind:
                    raise ValueError(f"got a document of the kind {kind!r}, expected a policy")
            annotations = document["metadata"].get("annotations") or {}
            audit = annotations.get(AUDIT_ANNOTATION) == "true"
            self._readings.extend(replace(reading, audit=reading.audit or audit) for reading in found)

    def allowed(self, connection: Connection) -> bool:
        """Whether both ends let it pass. Who talks to himself is not judged."""
        if connection.source == connection.destination:
            return True
        return all(self.verdict(connection, direction).allowed for direction in ("egress", "ingress"))

    def verdict(self, connection: Connection, direction: str) -> Verdict:
        """What the receiver's ingress policies, or the sender's egress policies, say."""
        source, destination = self._end(connection.source), self._end(connection.destination)
        subject = destination if direction == INGRESS else source
        if direction == INGRESS and source.is_host and subject.pod is not None:
            # A node reaches the pods that run on it.
            return Verdict(True)
        heard = self._heard[subject.name]
        alike = self._alike[destination.name]
        said = [
            (reading, statement)
            for reading in heard
            for statement in reading.statements
            if statement.direction == direction and statement.covers(connection, source, destination, alike)
        ]
        in_force = _passes(
            [reading for reading in heard if not reading.audit],
            [(reading, statement) for reading, statement in said if not reading.audit],
            direction,
        )
        return Verdict(in_force, in_force and not _passes(heard, said, direction))

    def _end(self, name: str) -> End:
        if name not in self._ends:
            end = self._ends[name] = self.cluster.end(name)
            self._alike[name] = self.cluster.alike(end) if end.pod is not None else ()
            self._heard[name] = [reading for reading in self._readings if reading.selects(end)]
        return self._ends[name]


def _passes(heard: Sequence[Reading], said: Sequence[tuple[Reading, Statement]], direction: str) -> bool:
    """`heard` are the policies that select the subject, `said` their rules that cover the connection."""
    decided = _first(said, ADMIN)
    if decided is not None and decided != PASS:
        return decided == ALLOW
    actions = [statement.action for reading, statement in said if reading.tier == NORMAL]
    if DENY in actions:
        return False
    if ALLOW in actions:
        return True
    if any(direction in reading.isolates for reading in heard if reading.tier == NORMAL):
        return False
    return _first(said, BASELINE) != DENY


def _first(said: Sequence[tuple[Reading, Statement]], tier: str) -> str | None:
    """The action of the tier's first rule, by priority and then by its place in its policy."""
    ranked = [
        (reading.priority, statement.index, _STRONGER.index(statement.action))
        for reading, statement in said
        if reading.tier == tier
    ]
    return _STRONGER[min(ranked)[2]] if ranked else None
