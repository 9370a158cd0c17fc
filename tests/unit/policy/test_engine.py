# SPDX-License-Identifier: Apache-2.0
"""The engine says step by step what a computation from nothing says at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy.engine import (
    HOST,
    Engine,
    Event,
    IdentityDelete,
    IdentityPut,
    PolicyDelete,
    PolicyPut,
    PortsPut,
    Subject,
    SubjectAdd,
    SubjectRemove,
)
from services.policy.entries import EntryKey, EntryValue, SubjectPolicy
from services.policy.resolve import BoundPolicy, resolve
from services.policy.rules import (
    Direction,
    NamedPort,
    Policy,
    PolicyRef,
    PortMatch,
    PortName,
    PortRange,
    Protocol,
    Rule,
    RuleSpec,
)
from services.policy.selector import ANY_SOURCE, K8S, Labels, Operator, Requirement, Selector, equals

KEYS, VALUES = ("app", "tier"), ("a", "b", "c")
NAMES = ("http", "dns")
NUMBERS = st.integers(256, 262)

label_sets = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)).map(
    lambda found: Labels(f"k8s:{key}={value}" for key, value in found.items())
)
named_ports = st.sets(
    st.builds(
        NamedPort,
        st.sampled_from(NAMES),
        st.sampled_from((Protocol.TCP, Protocol.UDP)),
        st.integers(80, 83),
    ),
    max_size=2,
)


def requirement(source: str, key: str, operator: Operator, values: set[str]) -> Requirement:
    listed = operator in (Operator.IN, Operator.NOT_IN)
    return Requirement(source, key, operator, tuple(sorted(values)) if listed else ())


selectors = st.lists(
    st.builds(
        requirement,
        st.sampled_from((K8S, ANY_SOURCE)),
        st.sampled_from(KEYS),
        st.sampled_from(Operator),
        st.sets(st.sampled_from(VALUES), min_size=1, max_size=2),
    ),
    max_size=2,
).map(Selector.of)


@st.composite
def port_ranges(draw: st.DrawFn) -> PortRange:
    first = draw(st.integers(80, 84))
    return PortRange(
        draw(st.sampled_from((Protocol.TCP, Protocol.UDP))), first, first + draw(st.integers(0, 3))
    )


port_names = st.builds(
    PortName, st.sampled_from((Protocol.ANY, Protocol.TCP, Protocol.UDP)), st.sampled_from(NAMES)
)
port_matches: st.SearchStrategy[PortMatch] = st.one_of(port_ranges(), port_names)


@st.composite
def specs(draw: st.DrawFn, path: str) -> RuleSpec:
    rules = tuple(
        Rule(
            draw(st.sampled_from(Direction)),
            draw(st.booleans()),
            tuple(draw(st.lists(selectors, max_size=2))),
            tuple(draw(st.lists(port_matches, max_size=2))),
            f"{path}[{index}]",
        )
        for index in range(draw(st.integers(0, 3)))
    )
    default_deny = (draw(st.booleans()), draw(st.booleans()))
    return RuleSpec(draw(selectors), rules, default_deny, path, nodes=draw(st.booleans()))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    ref = PolicyRef("CiliumNetworkPolicy", "shop", draw(st.sampled_from(("one", "two", "three"))))
    return Policy(ref, tuple(draw(specs(f"specs[{index}]")) for index in range(draw(st.integers(1, 2)))))


nodes = label_sets.map(lambda found: Subject(HOST, labels=tuple(sorted(found.strings))))
subjects = st.one_of(st.builds(Subject, NUMBERS, named_ports.map(lambda found: tuple(sorted(found)))), nodes)
steps = st.one_of(
    policies(),
    st.builds(PolicyDelete, policies().map(lambda policy: policy.ref)),
    st.builds(IdentityPut, NUMBERS, label_sets),
    st.builds(IdentityDelete, NUMBERS),
    st.builds(PortsPut, NUMBERS, named_ports.map(frozenset)),
    st.builds(SubjectAdd, subjects),
    st.builds(SubjectRemove, subjects),
)


@dataclass
class Model:
    """What there is, in plain dictionaries."""

    policies: dict[PolicyRef, BoundPolicy] = field(default_factory=dict)
    identities: dict[int, Labels] = field(default_factory=dict)
    ports: dict[int, frozenset[NamedPort]] = field(default_factory=dict)
    subjects: set[Subject] = field(default_factory=set)
    last_cookie: int = 0

    def event(self, step: Policy | Event) -> Event:
        """Take a step over, and give rules their numbers."""
        match step:
            case Policy(ref=ref):
                cookies = {}
                for rule in step.rules():
                    self.last_cookie += 1
                    cookies[rule.path] = self.last_cookie
                self.policies[ref] = BoundPolicy(step, cookies)
                return PolicyPut(self.policies[ref])
            case PolicyDelete(ref):
                self.policies.pop(ref, None)
            case IdentityPut(number, labels):
                self.identities[number] = labels
            case IdentityDelete(number):
                self.identities.pop(number, None)
            case PortsPut(number, ports):
                self.ports[number] = ports
            case SubjectAdd(subject):
                self.subjects.add(subject)
            case SubjectRemove(subject):
                self.subjects.discard(subject)
        return step

    def state(self, subject: Subject) -> SubjectPolicy | None:
        labels = self.identities.get(subject.identity)
        if subject.is_node:
            labels = Labels([*subject.labels, "reserved:host"])
        if labels is None:
            return None
        return resolve(self.policies.values(), self.identities, labels, subject.ports, self.ports)


@dataclass
class Told:
    """What a node would hold after the snapshots and deltas that it was sent."""

    enforced: tuple[bool, bool]
    entries: dict[EntryKey, EntryValue]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(steps, min_size=1, max_size=4), max_size=14))
def test_incremental_equals_recomputed(batches: list[list[Policy | Event]]) -> None:
    engine, model = Engine(), Model()
    told: dict[Subject, Told] = {}
    for batch in batches:
        adding = [step for step in batch if isinstance(step, SubjectAdd)]
        changing = [step for step in batch if not isinstance(step, SubjectAdd)]
        for change in engine.apply([model.event(step) for step in changing]):
            assert change.subject in model.subjects
            if change.reset:
                state = engine.state(change.subject)
                assert state is not None
                told[change.subject] = Told(state.enforced, dict(state.entries))
                continue
            held = told[change.subject]
            held.enforced = change.enforced
            for key in change.deletes:
                del held.entries[key]
            for key, value in change.upserts:
                assert held.entries.get(key) != value, "a delta repeats what was said"
                held.entries[key] = value
        engine.apply([model.event(step) for step in adding])
        for step in adding:
            fresh = engine.state(step.subject)
            if fresh is not None:
                told[step.subject] = Told(fresh.enforced, dict(fresh.entries))
        for subject in model.subjects:
            expected = model.state(subject)
            assert engine.state(subject) == expected
            if expected is not None:
                assert (told[subject].enforced, told[subject].entries) == (
                    expected.enforced,
                    expected.entries,
                )


def test_a_subject_keeps_its_policy_while_its_identity_is_gone() -> None:
    engine = Engine()
    subject = Subject(300)
    rule = Rule(Direction.INGRESS, False, (Selector(),), (), "spec.ingress[0]")
    spec = RuleSpec(Selector(), (rule,), (True, False), "spec")
    policy = BoundPolicy(Policy(PolicyRef("NetworkPolicy", "shop", "web"), (spec,)), {rule.path: 1})
    engine.apply([IdentityPut(300, Labels(["k8s:app=a"])), SubjectAdd(subject), PolicyPut(policy)])
    assert engine.apply([IdentityDelete(300)]) == []
    assert engine.state(subject) is None
    (change,) = engine.apply([IdentityPut(300, Labels(["k8s:app=a"]))])
    assert change.reset


def test_nodes_are_selected_by_their_labels_and_only_by_policies_for_nodes() -> None:
    engine = Engine()
    edge, inner, pod = Subject(HOST, labels=("k8s:role=edge",)), Subject(HOST), Subject(300)
    everything = Labels(["k8s:role=edge"])
    engine.apply([IdentityPut(HOST, Labels(["reserved:host"])), IdentityPut(300, everything)])
    engine.apply([SubjectAdd(each) for each in (edge, inner, pod)])
    role = Selector.of([equals(K8S, "role", "edge")])

    def selected(name: str, subject: Selector, *, nodes: bool) -> list[Subject]:
        spec = RuleSpec(subject, (), (True, False), "spec", nodes=nodes)
        ref = PolicyRef("CiliumClusterwideNetworkPolicy", "", name)
        found = engine.apply([PolicyPut(BoundPolicy(Policy(ref, (spec,)), {}))])
        engine.apply([PolicyDelete(ref)])
        return [change.subject for change in found]

    assert selected("edge-nodes", role, nodes=True) == [edge]
    assert selected("all-nodes", Selector(), nodes=True) == [edge, inner]
    assert selected("edge-pods", role, nodes=False) == [pod]
    assert selected("all-pods", Selector(), nodes=False) == [pod]


def test_of_rules_that_say_the_same_the_first_is_named_and_deny_wins() -> None:
    engine = Engine()
    subject = Subject(300)
    rules = tuple(
        Rule(Direction.INGRESS, deny, (Selector(),), (), f"spec[{index}]")
        for index, deny in enumerate((False, False, True))
    )
    spec = RuleSpec(Selector(), rules, (True, False), "spec")
    policy = Policy(PolicyRef("CiliumNetworkPolicy", "shop", "web"), (spec,))
    cookies = {rule.path: cookie for rule, cookie in zip(rules, (9, 4, 7), strict=True)}
    engine.apply([IdentityPut(300, Labels(["k8s:app=a"])), SubjectAdd(subject)])
    engine.apply([PolicyPut(BoundPolicy(policy, cookies))])
    state = engine.state(subject)
    assert state is not None
    assert list(state.entries.values()) == [EntryValue(True, 7)]
    without = Policy(policy.ref, (RuleSpec(Selector(), rules[:2], (True, False), "spec"),))
    (change,) = engine.apply([PolicyPut(BoundPolicy(without, cookies))])
    assert [value for _, value in change.upserts] == [EntryValue(False, 4)]
