# SPDX-License-Identifier: Apache-2.0
"""The engine says step by step what a computation from nothing says at the end."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy.engine import (
    HOST,
    MANY,
    Engine,
    Event,
    IdentityDelete,
    IdentityPut,
    PolicyDelete,
    PolicyPut,
    PortsPut,
    PrefixDelete,
    PrefixPut,
    Subject,
    SubjectAdd,
    SubjectChange,
    SubjectRemove,
)
from services.policy.entries import (
    BY_ADDRESS,
    EntryKey,
    EntryValue,
    SubjectPolicy,
    Transition,
    judge,
)
from services.policy.prefixes import PrefixUse
from services.policy.resolve import BoundPolicy, resolve
from services.policy.rules import (
    CidrGroupPeer,
    CidrPeer,
    Direction,
    NamedPort,
    Peer,
    Policy,
    PolicyRef,
    PortMatch,
    PortName,
    PortRange,
    Protocol,
    Rule,
    RuleSpec,
    Tier,
)
from services.policy.selector import ANY_SOURCE, K8S, Labels, Operator, Requirement, Selector

KEYS, VALUES = ("app", "tier"), ("a", "b", "c")
NAMES = ("http", "dns")
NUMBERS = st.integers(256, 260)
WORLD = 9
# Each prefix has a number of its own; one more number is whatever prefix's.
CIDRS = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "172.16.0.0/12", "::/0", "2001:db8::/32")
PREFIX_NUMBERS = {cidr: 0xFF0000 + index for index, cidr in enumerate(CIDRS)} | {CIDRS[0]: WORLD}
SPARE_NUMBER = 0xFFFFFF

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


cidr_peers = st.builds(
    CidrPeer,
    st.sampled_from(CIDRS),
    st.lists(st.sampled_from(CIDRS[1:]), max_size=1).map(tuple),
    st.booleans(),
)
peers: st.SearchStrategy[Peer] = st.one_of(selectors, cidr_peers, st.just(CidrGroupPeer("nobody")))


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
def specs(draw: st.DrawFn, path: str, tier: Tier) -> RuleSpec:
    rules = []
    for index in range(draw(st.integers(0, 3))):
        action = draw(st.sampled_from(("allow", "deny", "pass" if tier is Tier.ADMIN else "allow")))
        rules.append(
            Rule(
                draw(st.sampled_from(Direction)),
                action == "deny",
                tuple(draw(st.lists(peers, max_size=2))),
                tuple(draw(st.lists(port_matches, max_size=2))),
                f"{path}[{index}]",
                action == "pass",
                0 if tier is Tier.NORMAL else draw(st.integers(0, 3)),
            )
        )
    default_deny = (draw(st.booleans()), draw(st.booleans()))
    return RuleSpec(draw(selectors), tuple(rules), default_deny, path, nodes=draw(st.booleans()))


REFS = st.builds(PolicyRef, st.just("CiliumNetworkPolicy"), st.just("shop"), st.sampled_from("abc"))


@dataclass(frozen=True)
class Edit:
    """A policy that there is loses a rule, or two of its rules change places."""

    ref: PolicyRef
    place: int
    swap: bool

    def edited(self, policy: Policy) -> Policy:
        spec = policy.specs[0]
        rules = list(spec.rules)
        if rules and not self.swap:
            del rules[self.place % len(rules)]
        elif rules:
            one, other = self.place % len(rules), (self.place + 1) % len(rules)
            rules[one], rules[other] = (
                replace(rules[other], path=rules[one].path),
                replace(rules[one], path=rules[other].path),
            )
        return replace(policy, specs=(replace(spec, rules=tuple(rules)), *policy.specs[1:]))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    ref = draw(REFS)
    tier = draw(st.sampled_from(Tier))
    found = tuple(draw(specs(f"specs[{index}]", tier)) for index in range(draw(st.integers(1, 2))))
    return Policy(ref, found, tier, audit=draw(st.booleans()))


nodes = label_sets.map(lambda found: Subject(HOST, labels=tuple(sorted(found.strings))))
subjects = st.one_of(st.builds(Subject, NUMBERS, named_ports.map(lambda found: tuple(sorted(found)))), nodes)
prefixes = st.one_of(
    st.builds(
        lambda cidr, identity, address: PrefixPut(PREFIX_NUMBERS[cidr], cidr, identity, address),
        st.sampled_from(CIDRS),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(PrefixPut, st.just(SPARE_NUMBER), st.sampled_from(CIDRS), st.booleans(), st.booleans()),
    st.builds(PrefixDelete, st.sampled_from((*PREFIX_NUMBERS.values(), SPARE_NUMBER))),
)
steps = st.one_of(
    policies(),
    prefixes,
    st.builds(PolicyDelete, REFS),
    st.builds(Edit, REFS, st.integers(0, 2), st.booleans()),
    st.builds(IdentityPut, st.one_of(NUMBERS, st.just(WORLD)), label_sets),
    st.builds(IdentityDelete, st.one_of(NUMBERS, st.just(WORLD))),
    st.builds(PortsPut, NUMBERS, named_ports.map(frozenset)),
    st.builds(SubjectAdd, subjects),
    st.builds(SubjectRemove, subjects),
)


Step = Policy | Edit | Event


@dataclass
class Model:
    """What there is, in plain dictionaries."""

    policies: dict[PolicyRef, BoundPolicy] = field(default_factory=dict)
    identities: dict[int, Labels] = field(default_factory=dict)
    prefixes: dict[int, PrefixUse] = field(default_factory=dict)
    ports: dict[int, frozenset[NamedPort]] = field(default_factory=dict)
    subjects: set[Subject] = field(default_factory=set)
    last_cookie: int = 0
    # Numbers with the use, by address or not, that has begun or ended with the batch.
    moved: set[tuple[int, bool]] = field(default_factory=set)
    # Numbers of identities that the batch was about.
    named: set[int] = field(default_factory=set)

    def event(self, step: Step) -> Event:
        """Take a step over, and give rules their numbers."""
        if isinstance(step, Edit):
            known = self.policies.get(step.ref)
            step = PolicyDelete(step.ref) if known is None else step.edited(known.policy)
        match step:
            case Policy(ref=ref):
                self.policies[ref] = BoundPolicy(step, self.cookies(step))
                return PolicyPut(self.policies[ref])
            case PolicyDelete(ref):
                self.policies.pop(ref, None)
            case IdentityPut(number, labels):
                self.identities[number] = labels
                self.named.add(number)
            case IdentityDelete(number):
                self.named.add(number)
                self.identities.pop(number, None)
            case PrefixPut(number, cidr, by_identity, by_address):
                self.use(number, PrefixUse(cidr, by_identity, by_address))
            case PrefixDelete(number):
                self.use(number, None)
            case PortsPut(number, ports):
                self.ports[number] = ports
            case SubjectAdd(subject):
                self.subjects.add(subject)
            case SubjectRemove(subject):
                self.subjects.discard(subject)
        return step

    def use(self, number: int, use: PrefixUse | None) -> None:
        held = self.prefixes.pop(number, None)
        if use is not None:
            self.prefixes[number] = use
        uses = [
            (each.cidr if each else None, each and each.by_identity, each and each.by_address)
            for each in (held, use)
        ]
        (cidr, *before), (other, *after) = uses
        for by_address, (one, two) in enumerate(zip(before, after, strict=True)):
            if (one or two) and (cidr, one) != (other, two):
                self.moved.add((number, bool(by_address)))

    def nobodys(self) -> set[tuple[int, bool]]:
        """Numbers that nobody has while the batch is put into force."""
        return {
            (number, by_address)
            for number, by_address in self.moved
            if by_address or (number not in self.identities and number not in self.named)
        }

    def cookies(self, policy: Policy) -> dict[str, int]:
        """A rule has the number that the one in its place had before."""
        held = dict(self.policies[policy.ref].cookies) if policy.ref in self.policies else {}
        for rule in policy.rules():
            if rule.path not in held:
                self.last_cookie += 1
                held[rule.path] = self.last_cookie
        return held

    def state(self, subject: Subject) -> SubjectPolicy | None:
        labels = self.identities.get(subject.identity)
        if subject.is_node:
            labels = Labels([*subject.labels, "reserved:host"])
        if labels is None:
            return None
        return resolve(
            self.policies.values(), self.identities, labels, subject.ports, self.ports, self.prefixes
        )


def replayed(told: SubjectPolicy, change: SubjectChange) -> SubjectPolicy:
    """What a node has after a delta."""
    entries = dict(told.entries)
    for key in change.deletes:
        del entries[key]
    for key, value in change.upserts:
        assert entries.get(key) != value, "a delta repeats what was said"
        entries[key] = value
    return SubjectPolicy(
        change.enforced, change.enforced_by, entries, change.audit_enforced, change.audit_enforced_by
    )


Packet = tuple[Direction, int, int, int, tuple[int, ...]]


def packets(keys: Iterable[EntryKey], inert: set[tuple[int, bool]], chance: random.Random) -> list[Packet]:
    """Some that these keys, and others, are about; none of numbers that nobody has."""
    drawn = list(keys)
    found: list[Packet] = []
    for key in chance.sample(drawn, min(len(drawn), 6)):
        others = [other.identity for other in drawn if other.space & BY_ADDRESS]
        address = (chance.choice(others),) if others and chance.random() < 0.7 else ()
        by_identity = [other.identity for other in drawn if not other.space & BY_ADDRESS] or [256]
        identity = chance.choice(by_identity)
        if key.space & BY_ADDRESS:
            address = (key.identity,)
        else:
            identity = key.identity
        if inert.isdisjoint({(identity, False), *((number, True) for number in address)}):
            found.append((Direction(key.direction), identity or 256, key.protocol or 6, key.port, address))
    return found


def check_transition(
    before: SubjectPolicy,
    change: SubjectChange,
    after: SubjectPolicy,
    inert: set[tuple[int, bool]],
    chance: random.Random,
) -> None:
    """Entry by entry in any order, the defaults last, packets meet only the verdicts of before and after."""
    if change.transition is Transition.SWAP:
        return
    steps: list[tuple[EntryKey, EntryValue | None]] = [
        *change.upserts,
        *((key, None) for key in change.deletes),
    ]
    chance.shuffle(steps)
    entries = dict(before.entries)
    for packet in packets({**before.entries, **after.entries}, inert, chance):
        first, last = judge(before, *packet).allowed, judge(after, *packet).allowed
        match change.transition:
            case Transition.NEUTRAL:
                assert first == last
            case Transition.WIDENS:
                assert first <= last
            case Transition.NARROWS:
                assert first >= last
        entries = dict(before.entries)
        for key, value in steps:
            if value is None:
                del entries[key]
            else:
                entries[key] = value
            assert judge(replace(before, entries=entries), *packet).allowed in (first, last)


HTTP = NamedPort("http", Protocol.TCP, 80)
# Most of what can happen happens to somebody who is there.
OPENING: list[Step] = [
    *(
        IdentityPut(256 + number, Labels([f"k8s:app={app}", f"k8s:tier={tier}"]))
        for number, (app, tier) in enumerate((("a", "a"), ("a", "b"), ("b", "a"), ("b", "c")))
    ),
    *(PrefixPut(PREFIX_NUMBERS[cidr], cidr, True, True) for cidr in CIDRS[1:4]),
    PortsPut(256, frozenset((HTTP,))),
    SubjectAdd(Subject(256, (HTTP,))),
    SubjectAdd(Subject(258)),
    SubjectAdd(Subject(HOST, labels=("k8s:app=a",))),
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(steps, min_size=1, max_size=4), max_size=10),
    st.sampled_from((1, MANY)),
    st.randoms(use_true_random=False),
)
def test_incremental_equals_recomputed(batches: list[list[Step]], many: int, chance: random.Random) -> None:
    engine, model = Engine(many), Model()
    told: dict[Subject, SubjectPolicy] = {}
    for batch in (OPENING, *batches):
        adding = [step for step in batch if isinstance(step, SubjectAdd)]
        changing = [step for step in batch if not isinstance(step, SubjectAdd)]
        model.moved.clear()
        model.named.clear()
        for change in engine.apply([model.event(step) for step in changing]):
            assert change.subject in model.subjects
            if change.reset:
                state = engine.state(change.subject)
                assert state is not None
                told[change.subject] = state
                continue
            before = told[change.subject]
            told[change.subject] = replayed(before, change)
            check_transition(before, change, told[change.subject], model.nobodys(), chance)
        engine.apply([model.event(step) for step in adding])
        for step in adding:
            fresh = engine.state(step.subject)
            if fresh is not None:
                told[step.subject] = fresh
        for subject in model.subjects:
            expected = model.state(subject)
            assert engine.state(subject) == expected
            if expected is not None:
                assert told[subject] == expected
        assert engine.prefixes == model.prefixes
        assert set(engine.identities()) == set(model.identities)
