# SPDX-License-Identifier: Apache-2.0
"""What all kinds of policies come down to: subjects, and statements about connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.policy_model.cluster import Connection, DeclaredPort, End, Pod, parsed_address, parsed_network

INGRESS, EGRESS = "ingress", "egress"
ADMIN, NORMAL, BASELINE = "admin", "normal", "baseline"
ALLOW, DENY, PASS = "allow", "deny", "pass"
TRANSPORT = ("TCP", "UDP", "SCTP")


@dataclass(frozen=True)
class Peer:
    """Who may be at the other end. `names_ports`: its port names count in egress rules, as they do for
    pods but not for addresses.
    """

    matches: Callable[[End, int], bool]
    names_ports: bool = True


@dataclass(frozen=True)
class Ports:
    """Ports of some protocols: `first`..`last`, or those that their owner declares as `name`."""

    protocols: tuple[str, ...]
    first: int = 0
    last: int = 65535
    name: str = ""

    def holds(self, connection: Connection, owners: tuple[Pod, ...]) -> bool:
        if connection.protocol not in self.protocols:
            return False
        if not self.name:
            return self.first <= connection.port <= self.last
        wanted = DeclaredPort(self.name, connection.protocol, connection.port)
        return any(wanted in pod.ports for pod in owners)


@dataclass(frozen=True)
class Statement:
    """One rule. `index` is its place among those of its policy and direction. `ports` None: all traffic."""

    direction: str
    action: str
    peers: tuple[Peer, ...]
    ports: tuple[Ports, ...] | None
    index: int = 0

    def covers(self, connection: Connection, source: End, destination: End, alike: tuple[Pod, ...]) -> bool:
        """Whether the rule is about the connection. `alike` are the pods with the destination's labels."""
        other = source if self.direction == INGRESS else destination
        for peer in self.peers:
            if not peer.matches(other, connection.family):
                continue
            if self.ports is None:
                return True
            # A pod knows its own ports; others know what is declared by pods that are labelled as it is.
            owners: tuple[Pod, ...] = () if destination.pod is None else (destination.pod,)
            if self.direction == EGRESS:
                owners = alike if peer.names_ports else ()
            if any(port.holds(connection, owners) for port in self.ports):
                return True
        return False


@dataclass(frozen=True)
class Reading:
    """A policy, or one part of it that has a subject of its own. `isolates` has the directions in which its
    subjects refuse what nothing allows.
    """

    selects: Callable[[End], bool]
    statements: tuple[Statement, ...]
    isolates: frozenset[str] = frozenset()
    tier: str = NORMAL
    priority: int = 0
    audit: bool = False


def everybody(_end: End, _family: int) -> bool:
    return True


EVERYBODY = Peer(everybody)


def within(address: str | None, cidr: str, excepts: Sequence[str]) -> bool:
    """Whether the address is in the prefix and in none of those left out."""
    if address is None:
        return False
    there = parsed_address(address)
    if there not in parsed_network(cidr):
        return False
    return not any(there in parsed_network(left_out) for left_out in excepts)


def of_address(cidr: str, excepts: Sequence[str] = ()) -> Peer:
    """Whoever has such an address."""
    return Peer(lambda end, family: within(end.address(family), cidr, excepts), names_ports=False)


def of_outside(cidr: str, excepts: Sequence[str] = ()) -> Peer:
    """Who is outside of the cluster and has such an address."""
    return Peer(
        lambda end, family: end.is_outside and within(end.address(family), cidr, excepts), names_ports=False
    )
