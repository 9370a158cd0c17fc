# SPDX-License-Identifier: Apache-2.0
"""What the engine says in cases that are thought out, one by one."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import replace

import pytest

from services.policy.engine import (
    HOST,
    MANY,
    Engine,
    IdentityDelete,
    IdentityPut,
    PolicyDelete,
    PolicyPut,
    PortsPut,
    PrefixPut,
    Subject,
    SubjectAdd,
    SubjectChange,
)
from services.policy.engine_rules import Part
from services.policy.entries import (
    EntryValue,
    SubjectPolicy,
    judge,
)
from services.policy.resolve import BoundPolicy
from services.policy.rules import (
    CidrGroupPeer,
    CidrPeer,
    Direction,
    NamedPort,
    Peer,
    Policy,
    PolicyRef,
    PortName,
    PortRange,
    Protocol,
    Rule,
    RuleSpec,
    Tier,
)
from services.policy.selector import K8S, Labels, Selector, equals

HTTP = NamedPort("http", Protocol.TCP, 80)


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


def bound(*rules: Rule, name: str = "web", default_deny: bool = True, **more: object) -> PolicyPut:
    """A policy on everybody with these rules, numbered from 1."""
    named = tuple(replace(rule, path=f"spec[{number}]") for number, rule in enumerate(rules))
    spec = RuleSpec(Selector(), named, (default_deny, default_deny), "spec")
    policy = replace(Policy(PolicyRef("Policy", "", name), (spec,)), **more)  # type: ignore[arg-type]
    return PolicyPut(BoundPolicy(policy, {rule.path: number for number, rule in enumerate(named, 1)}))


def held(engine: Engine, subject: Subject) -> SubjectPolicy:
    state = engine.state(subject)
    assert state is not None
    return state


@pytest.mark.parametrize("many", [1, MANY])
def test_a_named_port_follows_who_declares_it_and_who_has_the_labels(many: int) -> None:
    engine, subject = Engine(many), Subject(300)
    peer, name = Selector.of([equals(K8S, "app", "a")]), PortName(Protocol.TCP, "http")
    engine.apply([IdentityPut(300, Labels([])), IdentityPut(301, Labels(["k8s:app=a"])), SubjectAdd(subject)])
    engine.apply([bound(Rule(Direction.EGRESS, False, (peer,), (name,), ""))])

    def opened() -> list[tuple[int, int]]:
        return [(key.identity, key.port) for key in held(engine, subject).entries]

    assert opened() == []
    assert engine.apply([PortsPut(301, frozenset((HTTP,)))])[0].upserts[0][0].port == 80
    assert opened() == [(301, 80)]
    (relabelled,) = engine.apply([IdentityPut(301, Labels(["k8s:app=b"]))])
    assert [key.identity for key in relabelled.deletes] == [301]
    (back,) = engine.apply([IdentityPut(301, Labels(["k8s:app=a"]))])
    assert [key.port for key, _ in back.upserts] == [80]
    engine.apply([PortsPut(301, frozenset((NamedPort("http", Protocol.TCP, 81),)))])
    assert opened() == [(301, 81)]
    engine.apply([IdentityDelete(301)])
    assert opened() == []


def test_the_longest_prefix_decides_and_what_is_left_out_has_a_number_of_its_own() -> None:
    engine, subject = Engine(), Subject(300)
    wide, hole = 0xFF0001, 0xFF0002
    engine.apply([IdentityPut(300, Labels(["k8s:app=a"])), SubjectAdd(subject)])
    engine.apply(
        [
            PrefixPut(wide, "10.0.0.0/8", by_identity=True, by_address=True),
            PrefixPut(hole, "10.1.0.0/16", by_identity=True, by_address=True),
        ]
    )

    def allowed(peer: Peer) -> dict[str, bool]:
        engine.apply([bound(Rule(Direction.EGRESS, False, (peer,), (), ""))])
        policy = held(engine, subject)
        found = {
            "outside": judge(policy, Direction.EGRESS, wide, 6, 80, (wide,)),
            "outside, left out": judge(policy, Direction.EGRESS, hole, 6, 80, (hole,)),
            "pod": judge(policy, Direction.EGRESS, 300, 6, 80, (wide,)),
            "pod, left out": judge(policy, Direction.EGRESS, 300, 6, 80, (hole,)),
        }
        return {name: judgement.allowed for name, judgement in found.items()}

    nobody = dict.fromkeys(allowed(CidrGroupPeer("unbound")), False)
    by_identity = CidrPeer("10.0.0.0/8", ("10.1.0.0/16",))
    assert allowed(by_identity) == {**nobody, "outside": True}
    assert allowed(replace(by_identity, excepts=())) == {
        **nobody,
        "outside": True,
        "outside, left out": True,
    }
    by_address = replace(by_identity, by_address=True)
    assert allowed(by_address) == {**nobody, "outside": True, "pod": True}
    # Whoever is outside has the labels of a prefix, and no pod has.
    world = Selector.of([equals("reserved", "world", "")])
    assert allowed(world) == {**nobody, "outside": True, "outside, left out": True}


def test_administrators_are_asked_first_and_what_they_pass_is_left_to_the_others() -> None:
    engine, subject = Engine(), Subject(300)
    engine.apply([IdentityPut(300, Labels(["k8s:app=a"])), SubjectAdd(subject)])
    everybody, ingress = (Selector(),), Direction.INGRESS

    def ports(first: int, last: int) -> tuple[PortRange, ...]:
        return (PortRange(Protocol.TCP, first, last),)

    engine.apply(
        [
            bound(
                Rule(ingress, False, everybody, ports(80, 80), "", order=1),
                Rule(ingress, False, everybody, ports(81, 81), "", passes=True, order=2),
                Rule(ingress, True, everybody, ports(80, 82), "", order=3),
                name="admin",
                tier=Tier.ADMIN,
            ),
            bound(Rule(ingress, True, everybody, ports(80, 80), ""), name="normal", default_deny=False),
            bound(
                Rule(ingress, True, everybody, ports(81, 83), ""),
                Rule(ingress, False, everybody, ports(83, 83), "", order=1),
                name="baseline",
                tier=Tier.BASELINE,
            ),
        ]
    )
    verdicts = [judge(held(engine, subject), ingress, 300, 6, port).allowed for port in range(80, 85)]
    assert verdicts == [True, False, False, False, True]
    assert held(engine, subject).enforced == (False, False)
    engine.apply([bound(name="default")])
    assert not judge(held(engine, subject), ingress, 300, 6, 84).allowed


def test_a_policy_in_audit_mode_says_what_it_would_deny_and_denies_nothing() -> None:
    engine, subject = Engine(), Subject(300)
    engine.apply([IdentityPut(300, Labels(["k8s:app=a"])), SubjectAdd(subject)])
    web = Rule(Direction.INGRESS, False, (Selector(),), (PortRange(Protocol.TCP, 80, 80),), "")
    (change,) = engine.apply([bound(web, audit=True)])
    assert change.enforced == (False, False)
    assert change.audit_enforced == (True, True)
    assert [ref.name for ref in change.audit_enforced_by[0]] == ["web"]
    policy = held(engine, subject)
    assert judge(policy, Direction.INGRESS, 300, 6, 80).audited is None
    other = judge(policy, Direction.INGRESS, 300, 6, 81)
    assert other.allowed
    assert other.audited is not None
    (enforced,) = engine.apply([bound(web)])
    assert (enforced.enforced, enforced.audit_enforced) == ((True, True), (False, False))
    assert not judge(held(engine, subject), Direction.INGRESS, 300, 6, 81).allowed


def test_a_delta_has_only_what_a_change_of_one_rule_changes() -> None:
    engine, subject = Engine(), Subject(300)
    selectors = [Selector.of([equals(K8S, "app", name)]) for name in "abc"]
    rules = [Rule(Direction.INGRESS, False, (peer,), (), "") for peer in selectors]
    engine.apply(
        [IdentityPut(300 + number, Labels([f"k8s:app={name}"])) for number, name in enumerate("abcd")]
    )
    engine.apply([SubjectAdd(subject), bound(*rules)])
    other = replace(rules[1], peers=(Selector.of([equals(K8S, "app", "d")]),))
    (change,) = engine.apply([bound(rules[0], other, rules[2])])
    assert [key.identity for key, _ in change.upserts] == [303]
    assert [key.identity for key in change.deletes] == [301]
    assert engine.apply([bound(rules[0], other, rules[2])]) == []


def test_nothing_is_left_of_policies_that_are_gone() -> None:
    engine, subject = Engine(), Subject(300)
    ports = (PortRange(Protocol.TCP, 80, 80), PortName(Protocol.ANY, "http"))
    peers = (Selector.of([equals(K8S, "app", "a")]), CidrPeer("10.0.0.0/8", ("10.1.0.0/16",)))
    rules = [Rule(direction, False, peers, ports, "") for direction in Direction]
    engine.apply([IdentityPut(300, Labels(["k8s:app=a"])), PortsPut(300, frozenset((HTTP,)))])
    engine.apply([SubjectAdd(subject), SubjectAdd(Subject(301))])

    def parts() -> int:
        gc.collect()
        return sum(isinstance(each, Part) for each in gc.get_objects())

    before = parts()
    for first in (0, 1):
        engine.apply([bound(*rules[first:]), bound(*rules, name="other", audit=True)])
        assert parts() > before
    engine.apply([PortsPut(300, frozenset()), PortsPut(300, frozenset((HTTP,)))])
    for name in ("web", "other"):
        engine.apply([PolicyDelete(PolicyRef("Policy", "", name))])
    assert parts() == before
    assert held(engine, subject) == SubjectPolicy()


def test_a_rule_of_thousands_of_cidrs_changes_by_those_that_differ() -> None:
    engine = Engine()
    cidrs = [f"10.{index >> 8}.{index & 255}.0/24" for index in range(3001)]
    web = Subject(300)
    engine.apply([IdentityPut(300, Labels(["k8s:app=web"])), SubjectAdd(web)])
    engine.apply([PrefixPut(0xFF0000 + index, cidr, True, False) for index, cidr in enumerate(cidrs)])

    def put(peers: Iterable[str]) -> SubjectChange:
        rule = Rule(
            Direction.INGRESS,
            deny=False,
            peers=tuple(map(CidrPeer, peers)),
            ports=(PortRange(Protocol.TCP, 80, 80),),
            path="spec.ingress[0]",
        )
        spec = RuleSpec(Selector(), (rule,), (True, False), "spec")
        policy = Policy(PolicyRef("CiliumNetworkPolicy", "shop", "cidrs"), (spec,))
        (change,) = engine.apply([PolicyPut(BoundPolicy(policy, {rule.path: 1}))])
        return change

    assert len(put(cidrs[:3000]).upserts) == 3000
    change = put(cidrs[1:])
    assert [key.identity for key, _ in change.upserts] == [0xFF0000 + 3000]
    assert [key.identity for key in change.deletes] == [0xFF0000]
    state = engine.state(web)
    assert state is not None
    assert len(state.entries) == 3000
