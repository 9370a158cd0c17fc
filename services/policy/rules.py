# SPDX-License-Identifier: Apache-2.0
"""The rule model: what a policy says once its manifest has been understood."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
    ICMPV6 = 58
    SCTP = 132


class Tier(IntEnum):
    """Which policies are asked first: those of administrators, then the others, then the baseline.

    The numbers are those of the datapath's policy key.
    """

    NORMAL = 0
    ADMIN = 1
    BASELINE = 2


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
class CidrPeer:
    """Whoever has an address in `cidr` and in none of `excepts`, all in canonical text (`10.0.0.0/8`).

    `by_address`: whoever it is, as Kubernetes has it; otherwise only who has no other identity than that of
    its address, which leaves out pods and nodes, as Cilium has it.
    """

    cidr: str
    excepts: tuple[str, ...] = ()
    by_address: bool = False


@dataclass(frozen=True, slots=True)
class CidrGroupPeer:
    """The CIDRs that the group `name` holds, less `excepts`; nobody while there is no such group."""

    name: str
    excepts: tuple[str, ...] = ()


Peer = Selector | CidrPeer | CidrGroupPeer


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy.

    `peers` are alternatives; none at all means that the rule matches nobody. `ports` are alternatives too,
    and none at all means every protocol and port. `path` names the rule in its manifest, e.g.
    `spec.ingress[0]`.

    A rule allows, unless it has `deny`, or `passes`: then its tier says no more about what it matches. Only
    rules of the admin tier pass. `order` decides within the tiers ADMIN and BASELINE, the lowest first; at
    equal order denying comes before passing and passing before allowing. It is 0 in the tier NORMAL, where
    denying always comes before allowing.
    """

    direction: Direction
    deny: bool
    peers: tuple[Peer, ...]
    ports: tuple[PortMatch, ...]
    path: str
    passes: bool = False
    order: int = 0


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
    """A whole policy, as one manifest stated it.

    `audit`: it changes no verdict; what it would deny is only reported. `lines` has the line of the text
    (from 1) at which each rule begins, by the rule's path, as far as it is known.
    """

    ref: PolicyRef
    specs: tuple[RuleSpec, ...]
    tier: Tier = Tier.NORMAL
    priority: int = 0
    audit: bool = False
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)

    def rules(self) -> Iterator[Rule]:
        for spec in self.specs:
            yield from spec.rules
