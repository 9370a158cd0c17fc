# SPDX-License-Identifier: Apache-2.0
"""How far each policy has come: whom it selects, which nodes have them, and who is late and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from services.policy.diff import is_endpoint, node_labels
from services.policy.diff_peers import Universe
from services.policy.enforcement import NodeState
from services.policy.engine import Subject
from services.policy.groups import groups_named
from services.policy.manifest import CIDR_GROUP
from services.policy.rules import Direction, Policy, PolicyRef, PortName, Rule, Tier
from services.policy.selector import Labels, Selector
from services.policy.stored import StoredPolicy


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node that has a subject. `late` says why it has not come as far as the policy; empty when it has.
    `late_ns`: for how long.
    """

    state: NodeState
    late: str = ""
    late_ns: int = 0


@dataclass(frozen=True, slots=True)
class SubjectStatus:
    """A subject of a policy; `nodes` by name."""

    identity: int
    labels: tuple[str, ...]
    nodes: tuple[NodeStatus, ...]


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """`revision`: of the last change of the policy or of what it refers to."""

    stored: StoredPolicy
    revision: int
    subjects: tuple[SubjectStatus, ...]
    notes: tuple[str, ...]

    @property
    def enforced(self) -> bool:
        return not any(node.late for subject in self.subjects for node in subject.nodes)


@dataclass(frozen=True)
class Situation:
    """What there is. `policies` are bound to groups; `stated` gives a policy as it stands in its manifest.

    `watchers` are the nodes of each subject that some node watches; `now_ns` is Unix time.
    """

    policies: Mapping[PolicyRef, StoredPolicy]
    groups: Mapping[str, StoredPolicy]
    stated: Callable[[StoredPolicy], Policy]
    universe: Universe
    watchers: Mapping[Subject, tuple[str, ...]]
    nodes: Mapping[str, NodeState]
    now_ns: int
    _overriding: list[list[tuple[StoredPolicy, Selector, Rule]]] = field(default_factory=list)

    def status(self, stored: StoredPolicy) -> PolicyStatus:
        """A policy's status, or that of a CIDR group, which has no subjects."""
        revision = stored.effective_revision or stored.revision
        if stored.ref.kind == CIDR_GROUP:
            return PolicyStatus(stored, revision, (), tuple(self._group_notes(stored)))
        selected = self._selected(stored.bound.policy)
        subjects = tuple(
            SubjectStatus(
                subject.identity,
                tuple(sorted(labels.strings)),
                tuple(
                    self._node(self.nodes[name], subject, stored, revision)
                    for name in names
                    if name in self.nodes
                ),
            )
            for subject, labels, names in selected
        )
        return PolicyStatus(stored, revision, subjects, tuple(self._notes(stored, selected)))

    def _selected(self, policy: Policy) -> list[tuple[Subject, Labels, tuple[str, ...]]]:
        """The watched subjects that a policy selects, with their labels and nodes; nodes first."""
        pods = self._pods(policy)
        for_nodes = any(spec.nodes for spec in policy.specs)
        found = []
        for subject, names in self.watchers.items():
            if subject.is_node:
                if for_nodes:
                    labels = node_labels(subject)
                    if any(spec.selects(labels) for spec in policy.specs):
                        found.append((subject, labels, names))
            elif subject.identity in pods:
                found.append((subject, self.universe.identities[subject.identity], names))
        return sorted(found, key=lambda item: (item[0].identity, item[0].labels, item[0].ports))

    def _pods(self, policy: Policy) -> set[int]:
        """The identities of pods that a policy selects, wherever they are."""
        found: set[int] = set()
        for spec in policy.specs:
            if not spec.nodes:
                found |= self.universe.matching(spec.subject)
        return {number for number in found if is_endpoint(self.universe.identities[number])}

    def _node(self, state: NodeState, subject: Subject, stored: StoredPolicy, revision: int) -> NodeStatus:
        late = late_because(state, subject, revision)
        if not late:
            return NodeStatus(state)
        # It may have been late before this policy was.
        since = max(state.late_since_ns, stored.updated_ns)
        return NodeStatus(state, late, max(self.now_ns - since, 0))

    # -- what its author may not expect

    def _notes(
        self, stored: StoredPolicy, selected: list[tuple[Subject, Labels, tuple[str, ...]]]
    ) -> Iterator[str]:
        policy = stored.bound.policy
        if policy.audit:
            yield "in audit mode: it changes no verdict, and what it would deny is reported as audit flows"
        if not selected:
            pods = self._pods(policy)
            if pods:
                yield f"no node has a pod that it selects, of {len(pods)} identities"
            else:
                yield "it selects nobody: no pod and no node that is there has such labels"
        stated = self.stated(stored)
        for name, paths in groups_named(stated).items():
            if name not in self.groups:
                where = ", ".join(paths)
                yield f"there is no CiliumCIDRGroup {name!r}, which {where} names: it matches nobody"
            elif not self.groups[name].group:
                yield f"CiliumCIDRGroup {name!r}, which {', '.join(paths)} names, is empty: it matches nobody"
        for rule in stated.rules():
            if not rule.peers:
                yield f"{rule.path} matches nobody: its list of peers is empty"
        if selected:
            yield from self._unknown_ports(policy, selected)
        if not policy.audit:
            yield from self._overridden(stored)

    def _unknown_ports(
        self, policy: Policy, selected: list[tuple[Subject, Labels, tuple[str, ...]]]
    ) -> Iterator[str]:
        for spec in policy.specs:
            declared = {
                port.name for subject, labels, _ in selected if spec.selects(labels) for port in subject.ports
            }
            for rule in spec.rules:
                names = {port.name for port in rule.ports if isinstance(port, PortName)}
                if rule.direction is Direction.INGRESS:
                    for name in sorted(names - declared):
                        yield f"{rule.path}: no pod that it selects declares a port {name!r}"

    def _overridden(self, stored: StoredPolicy) -> Iterator[str]:
        """Its rules that another decides before, for everybody whom they are about."""
        policy = stored.bound.policy
        for spec in policy.specs:
            if spec.nodes:
                continue
            mine = self.universe.matching(spec.subject)
            for rule in spec.rules:
                for other, subject, stronger in self._stronger():
                    if (
                        mine
                        and _comes_before(other.bound.policy.tier, stronger, policy.tier, rule)
                        and _includes(stronger, rule)
                        and mine <= self.universe.matching(subject)
                    ):
                        yield f"{rule.path} has no effect: {other.ref} {stronger.path} decides before it"
                        break

    def _stronger(self) -> list[tuple[StoredPolicy, Selector, Rule]]:
        """Rules that can make others void: those that deny, and all of the admin tier that decide."""
        if not self._overriding:
            self._overriding.append(
                [
                    (stored, spec.subject, rule)
                    for stored in self.policies.values()
                    if not stored.bound.policy.audit
                    for spec in stored.bound.policy.specs
                    if not spec.nodes
                    for rule in spec.rules
                    if rule.peers
                    and not rule.passes
                    and (rule.deny or stored.bound.policy.tier is Tier.ADMIN)
                ]
            )
        return self._overriding[0]

    def _group_notes(self, stored: StoredPolicy) -> Iterator[str]:
        users = sum(stored.ref.name in groups_named(self.stated(policy)) for policy in self.policies.values())
        if not users:
            yield "no policy names it"


def late_because(state: NodeState, subject: Subject, revision: int) -> str:
    """Why a node has not acknowledged a policy revision, as far as a subject goes; empty when it has."""
    told = state.acknowledged
    if told.policy >= revision:
        return ""
    at = f"it has acknowledged revision {told.policy} of {revision}"
    if not state.subscribed:
        why = "its loader is not subscribed"
    elif subject in state.failed_subjects:
        why = f"it could not realize this subject: {told.error}" if told.error else "this subject failed"
    elif told.error:
        why = f"it cannot realize more: {told.error}"
    else:
        why = "not acknowledged yet"
    return f"{why}; {at}"


def _comes_before(tier: Tier, stronger: Rule, own: Tier, rule: Rule) -> bool:
    """Whether a rule is always asked before another, and decides then."""
    if stronger is rule or stronger.direction is not rule.direction:
        return False
    if tier is own:
        rank = stronger.order, not stronger.deny
        return rank < (rule.order, not rule.deny) and (tier is Tier.ADMIN or stronger.deny)
    return tier is Tier.ADMIN or (tier is Tier.NORMAL and own is Tier.BASELINE)


def _includes(wide: Rule, narrow: Rule) -> bool:
    """Whether everything that the one rule is about the other is about too, as far as that is plain."""
    everybody = any(isinstance(peer, Selector) and peer.matches_everything for peer in wide.peers)
    peers = everybody or set(narrow.peers) <= set(wide.peers)
    ports = not wide.ports or (bool(narrow.ports) and set(narrow.ports) <= set(wide.ports))
    return bool(narrow.peers) and peers and ports


def by_name(found: Iterable[StoredPolicy]) -> list[StoredPolicy]:
    """In the order of lists: by kind, namespace and name."""
    return sorted(found, key=lambda stored: stored.ref)
