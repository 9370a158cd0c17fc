# SPDX-License-Identifier: Apache-2.0
"""What a delta says of how it can be put into force is true, and says as much as it can in plain cases."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
from fimbria.policy.v1 import policy_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy.engine import (
    Engine,
    Event,
    IdentityPut,
    PolicyDelete,
    PolicyPut,
    PrefixDelete,
    PrefixPut,
    Subject,
    SubjectAdd,
    SubjectChange,
)
from services.policy.entries import EntryKey, EntryValue, SubjectPolicy, Transition, judge
from services.policy.resolve import BoundPolicy
from services.policy.rules import (
    CidrPeer,
    Direction,
    Policy,
    PolicyRef,
    PortRange,
    Protocol,
    Rule,
    RuleSpec,
    Tier,
)
from services.policy.selector import K8S, Labels, Selector, equals

SUBJECT = Subject(300)
FRIENDS = Selector.of([equals(K8S, "app", "friend")])
EVERYBODY = Selector()
WEB = PortRange(Protocol.TCP, 80, 80)
PACKETS = [(identity, port) for identity in (301, 302) for port in (80, 81)]


def engine() -> Engine:
    made = Engine()
    names = {300: "self", 301: "friend", 302: "stranger"}
    made.apply([IdentityPut(number, Labels([f"k8s:app={name}"])) for number, name in names.items()])
    made.apply([SubjectAdd(SUBJECT)])
    return made


def rule(
    action: str = "allow",
    peer: Selector | CidrPeer = FRIENDS,
    ports: tuple[PortRange, ...] = (WEB,),
    order: int = 0,
) -> Rule:
    return Rule(Direction.INGRESS, action == "deny", (peer,), ports, "", action == "pass", order)


def put(
    name: str,
    *rules: Rule,
    tier: Tier = Tier.NORMAL,
    default_deny: bool = False,
    audit: bool = False,
    first_cookie: int = 1,
) -> PolicyPut:
    named = tuple(replace(each, path=f"spec.ingress[{number}]") for number, each in enumerate(rules))
    spec = RuleSpec(EVERYBODY, named, (default_deny, False), "spec")
    policy = Policy(PolicyRef("Policy", "", name), (spec,), tier, audit=audit)
    cookies = {each.path: first_cookie + number for number, each in enumerate(named)}
    return PolicyPut(BoundPolicy(policy, cookies))


def gone(name: str) -> PolicyDelete:
    return PolicyDelete(PolicyRef("Policy", "", name))


def state(made: Engine) -> SubjectPolicy:
    found = made.state(SUBJECT)
    assert found is not None
    return found


def change(made: Engine, events: Iterable[Event]) -> SubjectChange:
    (found,) = made.apply(events)
    return found


@pytest.mark.parametrize(
    ("before", "events", "transition"),
    [
        ([], [put("p", rule(), default_deny=True)], Transition.NARROWS),
        ([], [put("p", rule("deny"))], Transition.NARROWS),
        ([], [put("p", rule(), rule("deny"))], Transition.NARROWS),
        ([put("d", default_deny=True)], [put("p", rule())], Transition.WIDENS),
        ([put("d", default_deny=True)], [put("p", rule("deny"))], Transition.NARROWS),
        ([put("d", default_deny=True)], [put("p", rule(), rule("deny", EVERYBODY))], Transition.SWAP),
        ([put("d", default_deny=True)], [gone("d")], Transition.WIDENS),
        ([put("d", rule(), default_deny=True)], [gone("d")], Transition.SWAP),
        ([put("d", default_deny=True), put("p", rule())], [gone("p")], Transition.NARROWS),
        ([put("p", rule("deny"))], [gone("p")], Transition.WIDENS),
        ([put("p", rule())], [gone("p")], Transition.NEUTRAL),
        # Only the name of the rule that decides, or of the policy that makes a default.
        ([put("p", rule(), first_cookie=5)], [put("q", rule(), first_cookie=1)], Transition.NEUTRAL),
        ([put("d", default_deny=True)], [put("e", default_deny=True)], Transition.NEUTRAL),
        # What is in audit mode changes no verdict.
        ([], [put("p", rule("deny"), rule(), default_deny=True, audit=True)], Transition.NEUTRAL),
        # Tiers with an order.
        ([], [put("a", rule(), tier=Tier.ADMIN)], Transition.WIDENS),
        ([], [put("a", rule("deny"), tier=Tier.BASELINE)], Transition.NARROWS),
        ([], [put("a", rule("pass"), tier=Tier.ADMIN)], Transition.SWAP),
        ([put("a", rule("pass"), tier=Tier.ADMIN)], [gone("a")], Transition.SWAP),
        (
            [put("a", rule(order=5), tier=Tier.ADMIN)],
            [put("a", rule(order=4), tier=Tier.ADMIN)],
            Transition.WIDENS,
        ),
        (
            [put("a", rule("deny", order=5), tier=Tier.ADMIN)],
            [put("a", rule("deny", order=6), tier=Tier.ADMIN)],
            Transition.WIDENS,
        ),
        # An allow is worth something to who would meet the baseline.
        ([put("b", rule("deny"), tier=Tier.BASELINE)], [put("p", rule())], Transition.WIDENS),
        (
            [put("b", rule("deny"), tier=Tier.BASELINE)],
            [put("p", rule(), default_deny=True)],
            Transition.SWAP,
        ),
    ],
)  # fmt: skip
def test_the_plain_cases(before: list[Event], events: list[Event], transition: Transition) -> None:
    made = engine()
    made.apply(before)
    assert change(made, events).transition is transition


def test_a_prefix_changes_no_verdict_before_somebody_has_its_number() -> None:
    made = engine()
    inside = CidrPeer("10.0.0.0/8", ("10.9.0.0/16",))
    block = rule("deny", CidrPeer("10.0.0.0/8", (), by_address=True))
    made.apply([put("p", rule("allow", inside), default_deny=True), put("q", block)])
    added = change(made, [PrefixPut(0xFF0000, "10.1.0.0/16", by_identity=True, by_address=True)])
    assert len(added.upserts) == 2
    assert added.transition is Transition.NEUTRAL
    assert change(made, [PrefixDelete(0xFF0000)]).transition is Transition.NEUTRAL


rules = st.builds(
    rule,
    st.sampled_from(("allow", "deny")),
    st.sampled_from((FRIENDS, EVERYBODY)),
    st.sampled_from(((WEB,), ())),
)
ordered_rules = st.builds(
    rule,
    st.sampled_from(("allow", "deny", "pass")),
    st.sampled_from((FRIENDS, EVERYBODY)),
    st.sampled_from(((WEB,), ())),
    st.integers(0, 3),
)


@st.composite
def puts(draw: st.DrawFn) -> PolicyPut:
    tier = draw(st.sampled_from(Tier))
    drawn = draw(st.lists(rules if tier is Tier.NORMAL else ordered_rules, max_size=2))
    name = draw(st.sampled_from("abcd"))
    return put(
        name,
        *drawn,
        tier=tier,
        default_deny=draw(st.booleans()),
        audit=draw(st.sampled_from((False, False, False, True))),
        first_cookie=10 * "abcd".index(name),
    )


events_drawn = st.one_of(puts(), puts(), st.builds(gone, st.sampled_from("abcd")))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(events_drawn, max_size=4),
    st.lists(events_drawn, min_size=1, max_size=2),
    st.randoms(use_true_random=False),
)
def test_entry_by_entry_no_packet_meets_a_third_verdict(
    before: list[Event], events: list[Event], chance: random.Random
) -> None:
    made = engine()
    made.apply(before)
    old = state(made)
    found = made.apply(events)
    new = state(made)
    if not found or found[0].transition is Transition.SWAP:
        return
    (told,) = found
    steps: list[tuple[EntryKey, EntryValue | None]] = [*told.upserts, *((key, None) for key in told.deletes)]
    chance.shuffle(steps)
    entries = dict(old.entries)
    halfway = []
    for key, value in steps:
        if value is None:
            del entries[key]
        else:
            entries[key] = value
        halfway.append(replace(old, entries=dict(entries)))
    for identity, port in PACKETS:
        first, last = (
            judge(each, Direction.INGRESS, identity, Protocol.TCP, port).allowed for each in (old, new)
        )
        allowed = {
            Transition.NEUTRAL: first == last,
            Transition.WIDENS: first <= last,
            Transition.NARROWS: first >= last,
        }
        assert allowed[told.transition]
        for each in halfway:
            assert judge(each, Direction.INGRESS, identity, Protocol.TCP, port).allowed in (first, last)


def test_numbers_are_those_of_the_api() -> None:
    for transition in Transition:
        assert int(pb.Transition.Value(f"TRANSITION_{transition.name}")) == int(transition)
    assert len(Transition) == len(pb.Transition.values()) - 1
