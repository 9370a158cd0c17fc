# SPDX-License-Identifier: Apache-2.0
"""What a change of policies would change, against the verdicts of before and after one by one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy.diff import OTHERS, Change, Cluster, World, diff, node_labels
from services.policy.diff_peers import ROOTS, Universe, prefix_uses
from services.policy.diff_rows import Named
from services.policy.engine import Subject
from services.policy.entries import SubjectPolicy, judge
from services.policy.prefixes import PrefixUse, longest_prefix
from services.policy.resolve import BoundPolicy, resolve
from services.policy.rules import (
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
from services.policy.selector import EVERYTHING, Labels, Selector, equals, exists

HTTP = NamedPort("http", Protocol.TCP, 8080)
IDENTITIES = {
    1: Labels(["reserved:host"]),
    2: Labels(["reserved:world"]),
    6: Labels(["reserved:remote-node"]),
    300: Labels(["k8s:app=web", "k8s:tier=front"]),
    301: Labels(["k8s:app=client", "k8s:tier=front"]),
    302: Labels(["k8s:app=client", "k8s:tier=back"]),
    303: Labels(["k8s:app=db"]),
}
PORTS_OF = {300: frozenset((HTTP,)), 303: frozenset((NamedPort("http", Protocol.TCP, 81),))}
NODE = Subject(1, (), ("k8s:role=edge",))
CIDRS = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.0.0.0/9", "10.128.0.0/9", "0.0.0.0/0", "fd00::/8")
ADDRESSES = ("10.1.2.3", "10.1.9.9", "10.9.9.9", "10.200.0.1", "192.0.2.1", "fd00::1", "2001:db8::1")
POD_ADDRESSES = ("10.1.2.3", "10.1.9.9", "10.200.0.1", "192.0.2.1", None)
# An identity that no policy has been resolved for: whoever comes later and is named by no rule.
STRANGER = 400


def world(*policies: Policy) -> World:
    cookies = itertools.count(1)
    return World(
        {
            policy.ref: BoundPolicy(policy, {rule.path: next(cookies) for rule in policy.rules()})
            for policy in policies
        }
    )


def cluster(identities: Mapping[int, Labels] = IDENTITIES) -> Cluster:
    return Cluster(Universe(identities), PORTS_OF, (NODE,), {"10.0.0.0/8": 0xFF0001})


def policy(
    name: str, subject: Selector, *rules: Rule, deny: tuple[bool, bool] = (False, False), **more: object
) -> Policy:
    numbered = tuple(replace(rule, path=f"rules[{index}]") for index, rule in enumerate(rules))
    spec = RuleSpec(subject, numbered, deny, "spec")
    return Policy(PolicyRef("Policy", "", name), (spec,), **more)  # type: ignore[arg-type]


def rule(
    *peers: Peer,
    ports: tuple[PortMatch, ...] = (),
    direction: Direction = Direction.INGRESS,
    deny: bool = False,
) -> Rule:
    return Rule(direction, deny, peers, ports, "")


def app(name: str) -> Selector:
    return Selector.of([equals("k8s", "app", name)])


def tcp(first: int, last: int | None = None) -> tuple[PortRange]:
    return (PortRange(Protocol.TCP, first, first if last is None else last),)


def told(before: World, after: World) -> list[str]:
    """The changes in words."""
    found = []
    for change in diff(before, after, cluster()):
        stretch = change.stretch
        who = [named.name for named in change.peers] + ["*"] * change.every_other_peer
        verdicts = {True: "allow", False: "deny"}
        what = f"{verdicts[stretch.before.allowed]}->{verdicts[stretch.after.allowed]}"
        audit = " audit" if change.audit_only else ""
        found.append(
            f"{change.subject.identity} {change.direction.name.lower()} {stretch.protocol}/"
            f"{stretch.first}-{stretch.last} {' | '.join(who)}: {what}{audit}"
        )
    return found


CLIENTS = "k8s:app=client,k8s:tier=front | k8s:app=client,k8s:tier=back"


def test_a_default_deny_with_one_rule() -> None:
    new = world(policy("web", app("web"), rule(app("client"), ports=tcp(80)), deny=(True, False)))
    assert told(world(), new) == [
        f"300 ingress 0/0-65535 {CLIENTS}: allow->deny",
        f"300 ingress 6/0-79 {CLIENTS}: allow->deny",
        f"300 ingress 6/81-65535 {CLIENTS}: allow->deny",
        "300 ingress 0/0-65535 *: allow->deny",
    ]


def test_only_what_a_changed_rule_is_about() -> None:
    old = policy("web", app("web"), rule(app("client"), ports=tcp(80)), deny=(True, False))
    new = policy("web", app("web"), rule(app("client"), ports=tcp(80, 90)), deny=(True, False))
    assert told(world(old), world(new)) == [f"300 ingress 6/81-90 {CLIENTS}: deny->allow"]
    assert told(world(old), world(old)) == []


def test_an_exception_is_left_out_of_a_prefix() -> None:
    old = policy("web", app("web"), rule(CidrPeer("10.0.0.0/8", ("10.1.0.0/16",))), deny=(True, False))
    new = policy("web", app("web"), rule(CidrPeer("192.0.2.0/24")), deny=(True, False))
    assert told(world(old), world(new)) == [
        "300 ingress 0/0-65535 10.0.0.0/8 except 10.1.0.0/16 outside the cluster: allow->deny",
        "300 ingress 0/0-65535 192.0.2.0/24 outside the cluster: deny->allow",
    ]


def test_who_is_selected_by_address_whoever_it_is() -> None:
    old = policy("web", app("web"), deny=(True, False))
    new = policy(
        "web", app("web"), rule(CidrPeer("10.0.0.0/8", ("10.1.0.0/16",), by_address=True)), deny=(True, False)
    )
    assert told(world(old), world(new)) == [
        "300 ingress 0/0-65535 10.0.0.0/8 except 10.1.0.0/16: deny->allow",
    ]


def test_who_has_an_address_is_taken_out_of_who_has_an_identity() -> None:
    """Where an identity fares otherwise with some addresses, it is said of both."""
    by_address = rule(CidrPeer("10.0.0.0/8", by_address=True), deny=True)
    of_db = rule(app("db"), deny=True)
    old, new = policy("web", app("web"), by_address), policy("web", app("web"), of_db)
    assert told(world(old), world(new)) == [
        "300 ingress 0/0-65535 k8s:app=db with an address that no rule selects: allow->deny",
        "300 ingress 0/0-65535 everybody else with an address in 10.0.0.0/8 | "
        "10.0.0.0/8 outside the cluster: deny->allow",
        "300 ingress 0/0-65535 k8s:app=db with an address in 10.0.0.0/8: deny->deny",
        "300 ingress 0/0-65535 0.0.0.0/0 except 10.0.0.0/8 outside the cluster | "
        "::/0 outside the cluster | *: allow->allow",
    ]
    always = policy("always", app("web"), by_address)
    assert told(world(always), world(always, new)) == [
        "300 ingress 0/0-65535 k8s:app=db with an address that no rule selects: allow->deny",
        "300 ingress 0/0-65535 k8s:app=db with an address in 10.0.0.0/8: deny->deny",
    ]


def test_a_port_by_name_is_another_for_each_peer() -> None:
    named = rule(EVERYTHING, ports=(PortName(Protocol.TCP, "http"),), direction=Direction.EGRESS, deny=True)
    assert told(world(), world(policy("db", app("db"), named))) == [
        "303 egress 6/8080-8080 k8s:app=web,k8s:tier=front: allow->deny",
        "303 egress 6/81-81 k8s:app=db: allow->deny",
    ]


def test_audit_mode_changes_no_verdict() -> None:
    new = policy("web", app("web"), rule(app("client")), deny=(True, False), audit=True)
    rows = list(diff(world(), world(new), cluster()))
    assert all(change.audit_only for change in rows if change.changed)
    assert {change.stretch.after.allowed for change in rows} == {True}
    (stays,) = [change for change in rows if not change.changed]
    assert {named.number for named in stays.peers} == {301, 302}


def test_a_node_is_a_subject_too() -> None:
    spec = RuleSpec(
        Selector.of([exists("k8s", "role")]), (rule(app("client")),), (True, False), "spec", nodes=True
    )
    spec = replace(spec, rules=(replace(spec.rules[0], path="a"),))
    new = Policy(PolicyRef("Policy", "", "edge"), (spec,))
    assert {change.subject for change in diff(world(), world(new), cluster())} == {NODE}


# -- every verdict, one by one


@dataclass(frozen=True)
class At:
    """A peer: an identity of the cluster and its address, or, without one, somebody outside."""

    identity: int | None
    address: str | None


def peers() -> list[At]:
    inside = [number for number in IDENTITIES if number != 2] + [STRANGER]
    return [At(number, address) for number in inside for address in POD_ADDRESSES] + [
        At(None, address) for address in ADDRESSES
    ]


def numbered(policies: World) -> dict[int, PrefixUse]:
    spare = itertools.count(0xFF0001)
    uses = prefix_uses(policies.policies.values())
    return {ROOTS.get(cidr) or next(spare): use for cidr, use in uses.items()}


class Verdicts:
    """Those of one set of policies, from nothing."""

    def __init__(self, policies: World) -> None:
        self.prefixes = numbered(policies)
        self._policies = policies.policies.values()
        self._of: dict[Subject, SubjectPolicy] = {}
        self._told: dict[tuple[object, ...], tuple[bool, bool]] = {}

    def __call__(
        self, subject: Subject, direction: Direction, at: At, protocol: int, port: int
    ) -> tuple[bool, bool]:
        labels = node_labels(subject) if subject.is_node else IDENTITIES[subject.identity]
        if subject not in self._of:
            self._of[subject] = resolve(
                self._policies, IDENTITIES, labels, subject.ports, PORTS_OF, self.prefixes
            )
        held: tuple[int, ...] = ()
        identity = at.identity
        if at.address is not None:
            found = longest_prefix(self.prefixes, at.address, by_address=True)
            held = (found,) if found is not None else ()
            if identity is None:
                identity = longest_prefix(self.prefixes, at.address, by_address=False) or 2
        assert identity is not None
        asked = subject, direction, identity, protocol, port, held
        if asked not in self._told:
            judged = judge(self._of[subject], direction, identity, protocol, port, held)
            self._told[asked] = judged.allowed, judged.audited is not None
        return self._told[asked]


def holds(where: Iterable[tuple[str, tuple[str, ...]]], address: str | None) -> bool:
    return address is not None and any(
        ip_address(address) in ip_network(cidr)
        and not any(ip_address(address) in ip_network(each) for each in excepts)
        for cidr, excepts in where
    )


def means(named: Named, at: At) -> bool:
    """Whether a name, other than those of prefixes for whoever has an address there, means this peer."""
    if named.outside:
        return at.identity is None and holds(named.where, at.address)
    if named.identity is None or named.identity != at.identity:
        return False
    return not named.where or holds(named.where, at.address)


def rows_of(changes: list[Change], at: At) -> list[Change]:
    """The rows of one subject and direction that are about a peer, as a reader has to take them."""
    whoever = [
        c
        for c in changes
        if any(n.identity is None and not n.outside and holds(n.where, at.address) for n in c.peers)
    ]
    if whoever:
        return whoever
    named = [
        (change, peer)
        for change in changes
        for peer in change.peers
        if means(peer, at) and not peer.unselected
    ]
    if not named:
        named = [(c, p) for c in changes for p in c.peers if means(p, at) and p.unselected]
    if named:
        return [change for change, _ in named]
    if at.identity is not None:
        others = [c for c in changes for n in c.peers if n.identity == OTHERS and holds(n.where, at.address)]
        if others:
            return others
    return [change for change in changes if change.every_other_peer]


def of_port(rows: list[Change], protocol: int, port: int) -> Change | None:
    of_protocol = [change for change in rows if change.stretch.protocol == protocol]
    if of_protocol:
        return next((c for c in of_protocol if c.stretch.first <= port <= c.stretch.last), None)
    return next((change for change in rows if not change.stretch.protocol), None)


selectors = st.sampled_from(
    (
        EVERYTHING,
        app("client"),
        app("db"),
        Selector.of([equals("k8s", "tier", "front")]),
        Selector.of([equals("reserved", "world", "")]),
        Selector.of([equals("cidr", "10.1.0.0/16", "")]),
        Selector.of([exists("reserved", "world-ipv4")]),
    )
)
cidrs = st.builds(
    CidrPeer,
    st.sampled_from(CIDRS),
    st.lists(st.sampled_from(CIDRS[1:4]), max_size=1).map(tuple),
    st.booleans(),
).map(
    lambda peer: replace(
        peer,
        excepts=tuple(e for e in peer.excepts if ":" not in peer.cidr and _inside(e, peer.cidr)),
    )
)


def _inside(inner: str, outer: str) -> bool:
    return inner != outer and ip_network(inner).subnet_of(ip_network(outer))  # type: ignore[arg-type]


PORTS: tuple[PortMatch, ...] = (
    PortRange(Protocol.TCP, 80, 80),
    PortRange(Protocol.TCP, 78, 85),
    PortRange(Protocol.TCP),
    PortRange(Protocol.UDP, 53, 53),
    PortRange(Protocol.ICMP, 8, 8),
    PortName(Protocol.TCP, "http"),
)
ports = st.lists(st.sampled_from(PORTS), max_size=2).map(tuple)


@st.composite
def policies(draw: st.DrawFn, name: str) -> Policy:
    tier = draw(st.sampled_from((Tier.NORMAL, Tier.NORMAL, Tier.ADMIN, Tier.BASELINE)))
    rules = []
    for index in range(draw(st.integers(0, 3))):
        action = draw(st.sampled_from(("allow", "deny", "pass")))
        rules.append(
            Rule(
                draw(st.sampled_from(tuple(Direction))),
                action == "deny" or (action == "pass" and tier is not Tier.ADMIN),
                draw(st.lists(st.one_of(selectors, cidrs), max_size=2).map(tuple)),
                draw(ports),
                f"r{index}",
                action == "pass" and tier is Tier.ADMIN,
                draw(st.integers(0, 2)) if tier is not Tier.NORMAL else 0,
            )
        )
    nodes = draw(st.booleans()) and draw(st.booleans())
    subject = draw(st.sampled_from((app("web"), Selector.of([equals("k8s", "tier", "front")]), EVERYTHING)))
    if nodes:
        subject = Selector.of([exists("k8s", "role")])
    deny = (draw(st.booleans()), draw(st.booleans()))
    spec = RuleSpec(subject, tuple(rules), deny if tier is Tier.NORMAL else (False, False), "spec", nodes)
    return Policy(
        PolicyRef("Policy", "", name), (spec,), tier, 0, draw(st.booleans()) and draw(st.booleans())
    )


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_it_is_every_verdict_that_changes_and_no_other(data: st.DataObject) -> None:
    kept = [data.draw(policies(name)) for name in ("a", "b")[: data.draw(st.integers(0, 2))]]
    before = world(*kept, *([data.draw(policies("c"))] if data.draw(st.booleans()) else []))
    after = world(*kept, *([data.draw(policies("c"))] if data.draw(st.booleans()) else []))
    changes = list(diff(before, after, cluster()))
    old, new = Verdicts(before), Verdicts(after)
    subjects = [Subject(number, tuple(sorted(PORTS_OF.get(number, ())))) for number in (300, 301)]
    for subject, direction in itertools.product([*subjects, NODE], Direction):
        mine = [c for c in changes if (c.subject, c.direction) == (subject, direction)]
        assert not mine or any(change.changed for change in mine)
        for at in peers():
            if at.identity == 1 and direction is Direction.INGRESS and not subject.is_node:
                continue
            rows = rows_of(mine, at)
            for protocol, port in (
                *((6, number) for number in (77, 78, 80, 81, 85, 8080)),
                (17, 53),
                (17, 54),
                (1, 8),
                (132, 80),
            ):
                was = old(subject, direction, at, protocol, port)
                is_ = new(subject, direction, at, protocol, port)
                row = of_port(rows, protocol, port)
                where = (subject, direction, at, protocol, port, was, is_, row)
                if row is None or not row.changed:
                    assert was == is_, where
                else:
                    assert (tuple(row.stretch.before), tuple(row.stretch.after)) == (was, is_), where


def test_it_is_fast_whatever_there_is() -> None:
    identities = {
        1000 + n: Labels([f"k8s:group=g{n % 100}", f"k8s:n=v{n}", "k8s:io.kubernetes.pod.namespace=shop"])
        for n in range(10_000)
    }

    def group(number: int) -> Selector:
        return Selector.of([equals("k8s", "group", f"g{number % 100}")])

    held = [
        policy(f"p{n}", group(n), rule(group(n * 7 + 1), ports=tcp(1000 + n % 50)), deny=(True, False))
        for n in range(1000)
    ]
    changed = policy("p0", group(0), rule(group(3), ports=tcp(80)), deny=(True, False))
    before, after = world(*held), world(changed, *held[1:])
    started = time.monotonic()
    rows = list(diff(before, after, cluster(identities)))
    assert time.monotonic() - started < 1.0
    assert {row.subject.identity for row in rows} == {1000 + n for n in range(0, 10_000, 100)}
