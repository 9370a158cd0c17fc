# SPDX-License-Identifier: Apache-2.0
"""The rule model: what a policy says once its manifest has been understood."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from services.policy.selector import Labels, Selector

MAX_PORT = 65535


class Direction(IntEnum):
    """Which side of a connection a rule judges; the numbers are those of the datapath's policy key."""

    INGRESS = 0
    EGRESS = 1


class Protocol(IntEnum):
    """IP protocol numbers; ANY is the datapath's wildcard."""

    ANY = 0
    ICMP = 1
    TCP = 6
    UDP = 17
    SCTP = 132


# The protocols that have ports, in the order in which an unnamed protocol is expanded.
PORT_PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


@dataclass(frozen=True, slots=True, order=True)
class PolicyRef:
    """Names a policy in the cluster. `namespace` is empty for cluster-wide kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        owner = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {owner}{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class NamedPort:
    """A port that a pod declares: `protocol` is TCP, UDP or SCTP, `port` 1..65535."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports `first`..`last` of one protocol, both included; 0..65535 means every port."""

    protocol: Protocol
    first: int = 0
    last: int = MAX_PORT


@dataclass(frozen=True, slots=True)
class PortName:
    """A port by the name under which the destination declares it; protocol ANY accepts every protocol."""

    protocol: Protocol
    name: str


PortMatch = PortRange | PortName


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy.

    `peers` are alternatives; none at all means that the rule matches nobody. `ports` are alternatives too,
    and none at all means every protocol and port. `path` names the rule in its manifest, e.g.
    `spec.ingress[0]`.
    """

    direction: Direction
    deny: bool
    peers: tuple[Selector, ...]
    ports: tuple[PortMatch, ...]
    path: str


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """Rules that share a subject: one `spec`, or one of `specs`.

    `default_deny` tells for (ingress, egress) whether a selected subject refuses what no rule allows.
    `nodes`: the subject is one of nodes, by their labels, and of pods otherwise.
    """

    subject: Selector
    rules: tuple[Rule, ...]
    default_deny: tuple[bool, bool]
    path: str
    nodes: bool = False

    def selects(self, labels: Labels) -> bool:
        """Whether the rules apply to whoever has these labels."""
        return self.nodes is labels.is_node and self.subject.matches(labels)

    def applies(self, direction: Direction) -> bool:
        """Whether the spec says anything about this direction."""
        return self.default_deny[direction] or any(rule.direction is direction for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy, as one manifest stated it."""

    ref: PolicyRef
    specs: tuple[RuleSpec, ...]

    def rules(self) -> Iterator[Rule]:
        for spec in self.specs:
            yield from spec.rules
