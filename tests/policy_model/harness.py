# SPDX-License-Identifier: Apache-2.0
"""The engine as the services run it: identities are handed out, prefixes numbered, changes put in order, and
deltas replayed into replicas of the nodes' maps. Whatever is changed is checked while it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.chassis.labels import pod_labels
from services.policy.engine import (
    HOST,
    Engine,
    Event,
    IdentityDelete,
    IdentityPut,
    PortsPut,
    PrefixDelete,
    PrefixPut,
    Subject,
    SubjectAdd,
    SubjectRemove,
)
from services.policy.entries import SubjectPolicy, judge
from services.policy.groups import literal_prefixes
from services.policy.in_force import InForce, Steps
from services.policy.manifest import parse_manifests
from services.policy.prefixes import PrefixUse
from services.policy.resolve import BoundPolicy, resolve
from services.policy.rules import Direction, NamedPort, Policy, PolicyRef, Protocol
from services.policy.selector import Labels
from services.policy.stored import Gone, StoredPolicy
from tests.policy_model.cluster import Cluster, Connection, End, Pod
from tests.policy_model.model import Verdict
from tests.policy_model.replica import Packet, PolicyMap, Prefixes, check_transition

RESERVED = {
    "@host": HOST,
    "@unmanaged": 3,
    "@health": 4,
    "@init": 5,
    "@remote-node": 6,
    "@kube-apiserver": 7,
    "@ingress": 8,
}
WORLD = 2
WELL_KNOWN_PREFIXES = {"0.0.0.0/0": 9, "::/0": 10}
FIRST_PREFIX = 0xFF0000
FIRST_IDENTITY = 256
# An identity that nobody has: what wildcards say to it is what they say to everybody to come.
NOBODY = 65000
PROTOCOLS = {
    "TCP": Protocol.TCP,
    "UDP": Protocol.UDP,
    "SCTP": Protocol.SCTP,
    "ICMP": Protocol.ICMP,
    "ICMPv6": Protocol.ICMPV6,
}
_NUMBERED = (IdentityPut, IdentityDelete, PrefixPut, PrefixDelete)
DIRECTIONS = {"ingress": Direction.INGRESS, "egress": Direction.EGRESS}


@dataclass
class Deployment:
    """A cluster with the engine's view of it.

    `outside` are addresses of others. `traffic` are the (protocol, port) with which changes are checked
    while they are made; nothing: they are not. `late`: nodes ask for the policy of pods that are new before
    the engine hears of their identities.
    """

    cluster: Cluster
    outside: tuple[str, ...] = ()
    traffic: Sequence[tuple[str, int]] = ()
    engine: Engine = field(default_factory=Engine)
    late: bool = False
    maps: dict[Subject, PolicyMap] = field(default_factory=dict)
    prefixes: Prefixes = field(default_factory=Prefixes)
    documents: InForce = field(default_factory=InForce)
    _texts: dict[PolicyRef, str] = field(default_factory=dict)
    _identities: dict[Labels, int] = field(default_factory=dict)
    _pods: dict[str, Pod] = field(default_factory=dict)
    _subjects: dict[str, Subject] = field(default_factory=dict)
    _ports: dict[int, frozenset[NamedPort]] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=lambda: dict(WELL_KNOWN_PREFIXES))
    _checked: dict[str, SubjectPolicy] = field(default_factory=dict)
    _last_cookie: int = 0
    _last_identity: int = FIRST_IDENTITY - 1
    _last_prefix: int = FIRST_PREFIX - 1

    def __post_init__(self) -> None:
        names = {**{name.removeprefix("@"): number for name, number in RESERVED.items()}, "world": WORLD}
        self._apply([IdentityPut(number, Labels([f"reserved:{name}"])) for name, number in names.items()])
        self._watch_node()
        self.settle_pods()

    # -- policies

    def apply(self, documents: Iterable[Mapping[str, Any]], deletes: Iterable[PolicyRef] = ()) -> None:
        """Apply documents as one bundle, and delete what is named, as the service would."""
        text = "\n---\n".join(json.dumps(document) for document in documents)
        self.apply_text(text, deletes)

    def apply_text(self, text: str, deletes: Iterable[PolicyRef] = ()) -> None:
        """The same with manifests as text."""
        changes: list[StoredPolicy | Gone] = [Gone(ref, 0) for ref in deletes]
        for manifest in parse_manifests(text) if text.strip() else ():
            policy, ref = manifest.policy, manifest.policy.ref
            if self._texts.get(ref) == manifest.text:
                continue
            self._texts[ref] = manifest.text
            named = literal_prefixes(policy, manifest.group)
            bound = BoundPolicy(policy, self._new_cookies(policy))
            numbers = {cidr: self._number(cidr) for cidr in named}
            changes.append(StoredPolicy(bound, manifest.text, 0, 0, numbers, group=manifest.group))
        for change in changes:
            if isinstance(change, Gone):
                self._texts.pop(change.ref, None)
        self._follow(self.documents.take(changes))

    def _new_cookies(self, policy: Policy) -> dict[str, int]:
        cookies = {}
        for rule in policy.rules():
            self._last_cookie += 1
            cookies[rule.path] = self._last_cookie
        return cookies

    def _number(self, cidr: str) -> int:
        """That of a prefix which stands in documents, or a new one as of the identity service."""
        known = self.documents.number_of(cidr) or self._numbers.get(cidr)
        if known is None:
            self._last_prefix += 1
            known = self._last_prefix
        self._numbers[cidr] = known
        return known

    def _follow(self, steps: Steps) -> None:
        """Give the engine and nodes what a change of documents means, in its order."""
        before = self._all_verdicts()
        self._apply(steps.known)
        assert self._all_verdicts() == before, "a prefix changed verdicts before it took effect"
        self._tell(steps.begin)
        assert self._all_verdicts() == before, "a prefix changed verdicts although no policy names it yet"
        self._apply(steps.policies)
        before = self._all_verdicts()
        self._tell(steps.cease)
        assert self._all_verdicts() == before, "verdicts changed with a prefix that no policy names any more"
        self._apply(steps.forgotten)
        assert self._all_verdicts() == before, "verdicts changed with entries for a prefix that is gone"
        self._numbers = {
            cidr: number
            for cidr, number in self._numbers.items()
            if cidr in WELL_KNOWN_PREFIXES or self.documents.number_of(cidr) is not None
        }

    def _tell(self, prefixes: Iterable[tuple[int, PrefixUse]]) -> None:
        """Tell nodes how prefixes are in use from now on, by their text."""
        for number, use in prefixes:
            if use.by_identity or use.by_address:
                self.prefixes.known[use.cidr] = number, use.by_identity, use.by_address
            else:
                del self.prefixes.known[use.cidr]

    @property
    def policies(self) -> Iterable[PolicyRef]:
        return self.documents.policies

    # -- pods and identities

    def settle_pods(self) -> None:
        """Take over what has changed of pods and namespaces."""
        labels = {name: _labels(self.cluster, pod) for name, pod in self.cluster.pods.items()}
        events: list[Event] = []
        for found in labels.values():
            if found not in self._identities:
                self._last_identity += 1
                self._identities[found] = self._last_identity
                events.append(IdentityPut(self._last_identity, found))
        subjects = {
            name: Subject(self._identities[labels[name]], _ports(pod))
            for name, pod in self.cluster.pods.items()
        }
        known = set(self.maps)
        if self.late:
            self._declare({*subjects.values(), *self._subjects.values()})
            for subject in subjects.values():
                self._watch(subject)
        before = self._all_verdicts(known)
        self._apply(events)
        assert self._all_verdicts(known) == before, "an identity that nobody has yet changed verdicts"
        self._declare({*subjects.values(), *self._subjects.values()})
        for subject in subjects.values():
            self._watch(subject)
        self._pods, self._subjects = dict(self.cluster.pods), subjects
        self._declare(set(subjects.values()))
        for subject in [each for each in self.maps if not each.is_node]:
            if subject not in subjects.values():
                self._apply([SubjectRemove(subject)])
                del self.maps[subject]

    def _declare(self, subjects: set[Subject]) -> None:
        found: dict[int, set[NamedPort]] = {}
        for subject in subjects:
            found.setdefault(subject.identity, set()).update(subject.ports)
        now = {number: frozenset(ports) for number, ports in found.items() if ports}
        self._apply(
            [
                PortsPut(number, now.get(number, frozenset()))
                for number in sorted({*self._ports, *now})
                if self._ports.get(number) != now.get(number)
            ]
        )
        self._ports = now

    def _watch(self, subject: Subject) -> None:
        if subject in self.maps:
            return
        assert self.engine.apply([SubjectAdd(subject)]) == []
        self.maps[subject] = PolicyMap()
        # What is not known yet comes as a change that says `reset`.
        if (state := self.engine.state(subject)) is not None:
            self.maps[subject].reset(state)

    def _watch_node(self) -> None:
        labels = tuple(sorted(f"k8s:{key}={value}" for key, value in self.cluster.node_labels.items()))
        node = Subject(HOST, labels=labels)
        for other in [each for each in self.maps if each.is_node and each != node]:
            self._apply([SubjectRemove(other)])
            del self.maps[other]
        self._node = node
        self._watch(node)

    def forget_identities(self) -> None:
        """Delete the identities that no pod has, as their leases end."""
        used = {subject.identity for subject in self._subjects.values()}
        gone = {labels: number for labels, number in self._identities.items() if number not in used}
        before = self._all_verdicts()
        self._apply([IdentityDelete(number) for number in gone.values()])
        for labels in gone:
            del self._identities[labels]
        assert self._all_verdicts() == before, "an identity that nobody had changed verdicts by going"

    # -- the engine

    def _apply(self, events: Sequence[Event]) -> None:
        """Give a batch to the engine and replay what it answers."""
        self._checked.clear()
        if not events:
            return
        changes = self.engine.apply(events)
        subjects = [change.subject for change in changes]
        assert len(set(subjects)) == len(subjects), "a subject has two changes in one batch"
        for change in changes:
            held = self.maps[change.subject]
            if change.reset:
                state = self.engine.state(change.subject)
                assert state is not None
                held.reset(state)
                continue
            if self.traffic:
                numbers = {key.identity for key, _ in change.upserts}
                numbers.update(key.identity for key in change.deletes)
                # Nobody has a number as long as the engine is told about it.
                numbers.difference_update(event.number for event in events if isinstance(event, _NUMBERED))
                check_transition(held, change, self._packets(numbers))
            held.take(change)

    def _packets(self, more: set[int]) -> list[Packet]:
        """Packets of everybody there is, and of whoever could come with one of these numbers."""
        whom = {self.peer(name, family) for name in self.ends() for family in (4, 6)}
        whom.update((number, 0) for number in more if number and number < FIRST_PREFIX)
        whom.update((WORLD, number) for number in more if number >= FIRST_PREFIX or number in (9, 10))
        whom.update((number, 0) for number in more if number >= FIRST_PREFIX or number in (9, 10))
        whom.add((NOBODY, 0))
        return [
            Packet(direction, identity, prefix, PROTOCOLS[protocol], port)
            for direction in Direction
            for identity, prefix in sorted(whom)
            for protocol, port in self.traffic
        ]

    def ends(self) -> list[str]:
        """Everybody there is."""
        return [*self._pods, *RESERVED, *self.outside]

    def _all_verdicts(
        self, subjects: Iterable[Subject] | None = None
    ) -> dict[tuple[Subject, str, int, int, str, int], bool]:
        """All verdicts of these subjects by name, with the prefixes that are in force; nothing without
        `traffic`.
        """
        found = {}
        for subject in self.maps if subjects is None else subjects:
            held = self.maps[subject]
            judged: dict[Packet, bool] = {}
            for name in self.ends() if self.traffic else ():
                for family in (4, 6):
                    peer = self.peer(name, family)
                    for direction in Direction:
                        for protocol, port in self.traffic:
                            packet = Packet(direction, *peer, PROTOCOLS[protocol], port)
                            if packet not in judged:
                                judged[packet] = held.verdict(packet)[0]
                            found[subject, name, family, int(direction), protocol, port] = judged[packet]
        return found

    # -- verdicts

    def peer(self, name: str, family: int) -> tuple[int, int]:
        """What nodes take somebody for who talks IPv4 or IPv6: (identity, number of the prefix for rules
        about addresses).
        """
        if name in self._subjects:
            end = End(name, frozenset(), self._pods[name].addresses, self._pods[name])
        else:
            end = self.cluster.end(name)
        address = end.address(family)
        prefix = self.prefixes.number(address, by_address=True)
        if name in RESERVED:
            return RESERVED[name], prefix
        if name in self._subjects:
            return self._subjects[name].identity, prefix
        return self.prefixes.number(address, by_address=False) or WORLD, prefix

    def subject(self, name: str) -> Subject | None:
        """Whose policy holds for an end; None when there is none here."""
        return self._node if name == "@host" else self._subjects.get(name)

    def state(self, name: str) -> SubjectPolicy:
        """What the engine says of an end's policy. It is what a computation from nothing says, and what the
        replica has been told; AssertionError otherwise.
        """
        if name in self._checked:
            return self._checked[name]
        subject = self.subject(name)
        assert subject is not None
        state = self.engine.state(subject)
        assert state is not None
        held = self.maps[subject]
        assert dict(state.entries) == held.entries, f"{name}: {_difference(state, held)}"
        assert (state.enforced, state.audit_enforced) == (held.enforced, held.audit_enforced), name
        assert state == self.fresh(name), (
            f"{name}: {_difference(state, PolicyMap(dict(self.fresh(name).entries)))}"
        )
        return state

    def fresh(self, name: str) -> SubjectPolicy:
        """The policy of an end computed from nothing."""
        subject = self.subject(name)
        assert subject is not None
        identities = {number: labels for labels, number in self._identities.items()}
        labels = Labels((*subject.labels, "reserved:host"))
        if not subject.is_node:
            labels = identities[subject.identity]
        for reserved, number in RESERVED.items():
            identities[number] = Labels([f"reserved:{reserved[1:]}"])
        identities[WORLD] = Labels(["reserved:world"])
        policies = [stored.bound for stored in self.documents.policies.values()]
        numbered = self.documents.prefixes()
        assert dict(self.engine.prefixes) == numbered
        return resolve(policies, identities, labels, subject.ports, self._ports, numbered)

    def packet(self, connection: Connection, direction: str) -> Packet:
        other = connection.source if direction == "ingress" else connection.destination
        peer = self.peer(other, connection.family)
        return Packet(DIRECTIONS[direction], *peer, PROTOCOLS[connection.protocol], connection.port)

    def judged(self, state: SubjectPolicy, connection: Connection, direction: str) -> Verdict:
        """The verdict of `entries.judge`, and the node's access to its pods."""
        packet = self.packet(connection, direction)
        if direction == "ingress" and packet.identity == HOST and connection.destination != "@host":
            return Verdict(True)
        prefixes = (packet.prefix,) if packet.prefix else ()
        found = judge(
            state, DIRECTIONS[direction], packet.identity, packet.protocol, packet.port, prefixes=prefixes
        )
        return Verdict(found.allowed, found.audited is not None)

    def allowed(self, connection: Connection) -> bool:
        """Whether both ends let a connection pass."""
        if connection.source == connection.destination:
            return True
        ends = {"egress": connection.source, "ingress": connection.destination}
        return all(
            self.judged(self.state(name), connection, direction).allowed
            for direction, name in ends.items()
            if self.subject(name) is not None
        )


def _labels(cluster: Cluster, pod: Pod) -> Labels:
    """A pod's labels as the identity service gets them."""
    of_namespace = cluster.namespaces.get(pod.namespace, {})
    return Labels(pod_labels(pod.namespace, pod.labels, of_namespace, pod.service_account))


def _ports(pod: Pod) -> tuple[NamedPort, ...]:
    return tuple(sorted(NamedPort(port.name, PROTOCOLS[port.protocol], port.number) for port in pod.ports))


def _difference(state: SubjectPolicy, held: PolicyMap) -> str:
    missing = {key: value for key, value in state.entries.items() if held.entries.get(key) != value}
    extra = {key: value for key, value in held.entries.items() if key not in state.entries}
    return f"the engine's state has also {missing}, and lacks {extra}"
