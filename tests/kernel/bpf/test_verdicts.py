"""Policy verdicts on the first packet of a flow between two local endpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.loader.bpf import drop_reasons as reason
from services.loader.bpf.layout import Direction, PolicyKey, PolicyValue, SubjectRow, direction_shape
from tests.kernel.bpf.node import (
    CLIENT,
    CLIENT_ID,
    CLIENT_SUBJECT,
    REMOTE,
    REMOTE_ID,
    WEB,
    WEB_ID,
    WEB_SUBJECT,
    WORLD,
    Node,
    Rule,
    forwarded,
)
from tests.kernel.bpf.packets import SCTP, TCP, UDP, echo, sctp, tcp, udp

pytestmark = pytest.mark.kernel

OTHER_ID = 4242


def reaches(node: Node, port: int = 80, *, sport: int = 40000) -> bool:
    return forwarded(node.leave(node.client, tcp(CLIENT, WEB, sport, port)))


def test_everything_passes_without_policy(node: Node) -> None:
    assert reaches(node)
    assert forwarded(node.leave(node.client, udp(CLIENT, WEB, 5000, 53)))
    assert node.drops() == {}
    assert node.events() == []


def test_an_enforced_direction_without_entries_denies(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[], revision=7)
    assert not reaches(node)
    assert node.drops() == {reason.POLICY: 1}
    (event,) = node.events()
    assert (event.kind, event.reason_name, event.verdict) == ("drop", "Policy denied", "deny")
    assert (event.source, event.source_port, event.destination, event.destination_port) == (
        CLIENT, 40000, WEB, 80,
    )  # fmt: skip
    assert (event.source_identity, event.destination_identity) == (CLIENT_ID, WEB_ID)
    assert (event.direction, event.endpoint_id) == (Direction.INGRESS, node.web.endpoint_id)
    assert (event.policy_revision, event.rule_cookie, event.protocol, event.tcp_flags) == (7, 0, TCP, 2)
    assert event.ifindex == node.client.ifindex
    assert event.file == "policy.h" and event.line > 0


def test_an_allow_passes_and_is_reported_with_its_rule(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80, cookie=77)], revision=9)
    assert reaches(node)
    (event,) = node.events()
    assert (event.kind, event.verdict, event.reason_name) == ("verdict", "allow", "")
    assert (event.rule_cookie, event.policy_revision, event.direction) == (77, 9, Direction.INGRESS)
    assert not reaches(node, 81)
    assert not forwarded(node.leave(node.client, udp(CLIENT, WEB, 40000, 80)))


def test_an_entry_counts_what_it_decided(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    for sport in range(40000, 40003):
        assert reaches(node, sport=sport)
    (value,) = node.datapath.policy_entries().values()
    assert (value.packets, value.bytes) == (3, 3 * 54)


def test_only_the_identity_in_the_entry_passes(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(OTHER_ID, TCP, 80)])
    assert not reaches(node)


def test_egress_is_judged_by_the_sender(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, egress=[Rule(WEB_ID, TCP, 80)])
    assert reaches(node)
    assert not reaches(node, 443)
    (_, event) = node.events()
    assert (event.direction, event.endpoint_id) == (Direction.EGRESS, node.client.endpoint_id)
    assert not forwarded(node.leave(node.client, tcp(CLIENT, REMOTE, 1, 80)))
    assert not forwarded(node.leave(node.client, tcp(CLIENT, WORLD, 1, 80)))


def test_both_ends_must_allow(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, egress=[Rule(WEB_ID, TCP, 80)])
    node.policy(WEB_SUBJECT, ingress=[])
    assert not reaches(node)
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID)])
    assert reaches(node)


LEVELS = {
    "id/proto/port": Rule(CLIENT_ID, TCP, 80),
    "ANY/proto/port": Rule(0, TCP, 80),
    "id/proto/ANY": Rule(CLIENT_ID, TCP),
    "ANY/proto/ANY": Rule(0, TCP),
    "id/ANY/ANY": Rule(CLIENT_ID),
    "ANY/ANY/ANY": Rule(),
}


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_allows_by_itself(node: Node, level: str) -> None:
    node.policy(WEB_SUBJECT, ingress=[LEVELS[level]])
    assert reaches(node)


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_denies_by_itself_whatever_allows(node: Node, level: str) -> None:
    rule = LEVELS[level]
    deny = Rule(rule.identity, rule.protocol, rule.port, deny=True, cookie=5)
    allows = [allow for name, allow in LEVELS.items() if name != level]
    node.policy(WEB_SUBJECT, ingress=[deny, *allows])
    assert not reaches(node)
    assert node.drops() == {reason.POLICY_DENY: 1}
    (event,) = node.events()
    assert (event.rule_cookie, event.reason_name) == (5, "Policy denied by denylist")


def test_the_first_level_that_allows_decides(node: Node) -> None:
    remaining = [
        Rule(rule.identity, rule.protocol, rule.port, cookie=number)
        for number, rule in enumerate(LEVELS.values(), 1)
    ]
    sport = 40000
    while remaining:
        node.policy(WEB_SUBJECT, ingress=reversed(remaining))
        sport += 1
        assert reaches(node, sport=sport)
        (event,) = node.events()
        assert event.rule_cookie == remaining.pop(0).cookie


def test_a_deny_counts_also_where_nothing_is_enforced(node: Node) -> None:
    instance = 55
    entry = Rule(CLIENT_ID, TCP, 80, deny=True).entry(instance, Direction.INGRESS)
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80, deny=True)])
    row = node.datapath.subject_get(WEB_SUBJECT)
    assert row is not None
    node.datapath.policy_put([entry])
    unenforced = replace(row, instance=instance, ingress=replace(row.ingress, enforced=False))
    node.datapath.subject_put(WEB_SUBJECT, unenforced)
    assert not reaches(node)
    assert reaches(node, 81)


@pytest.mark.parametrize("prefix", range(1, 17))
def test_a_port_prefix_covers_its_ports_and_no_other(node: Node, prefix: int) -> None:
    size = 1 << (16 - prefix)
    low = 1000 & ~(size - 1)
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, low, prefix) if low else Rule(0, TCP, 0, prefix)])
    if not low:
        # Port 0 in a Rule is "any": write the entry that is meant.
        key = PolicyKey(999, CLIENT_ID, Direction.INGRESS, TCP, 0, prefix)
        put_single(node, key)
    high = low + size - 1
    assert reaches(node, low) and reaches(node, high) and reaches(node, (low + high) // 2)
    for outside in (low - 1, high + 1):
        if 0 <= outside <= 65535:
            assert not reaches(node, outside)


def put_single(node: Node, key: PolicyKey) -> None:
    entries = [(key, PolicyValue())]
    node.datapath.policy_put(entries)
    shape = direction_shape(entries, Direction.INGRESS, enforced=True)
    node.datapath.subject_put(WEB_SUBJECT, SubjectRow(key.instance, 1, 1, shape))


def test_the_longest_port_prefix_decides(node: Node) -> None:
    rules = [Rule(CLIENT_ID, TCP, 1024 & ~((1 << (16 - n)) - 1), n, cookie=n) for n in range(6, 17)]
    node.policy(WEB_SUBJECT, ingress=rules)
    assert reaches(node, 1024)
    assert node.events()[0].rule_cookie == 16
    assert reaches(node, 1025)
    assert node.events()[0].rule_cookie == 15
    assert reaches(node, 1024 + 511)
    assert node.events()[0].rule_cookie == 7


def test_a_denied_range_within_an_allowed_one(node: Node) -> None:
    node.policy(
        WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 8080), Rule(0, TCP, 8064, 10, deny=True), Rule(CLIENT_ID)]
    )
    assert not reaches(node, 8080)
    assert not reaches(node, 8127)
    assert reaches(node, 8128)
    assert reaches(node, 8063)


@pytest.mark.parametrize(
    ("protocol", "packet"),
    [
        (UDP, udp(CLIENT, WEB, 5000, 53)),
        (SCTP, sctp(CLIENT, WEB, 5000, 53)),
        (TCP, tcp(CLIENT, WEB, 5000, 53)),
    ],
)
def test_ports_of_every_protocol_are_judged(node: Node, protocol: int, packet: bytes) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, p, 53) for p in (UDP, SCTP, TCP) if p != protocol])
    assert not forwarded(node.leave(node.client, packet))
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, protocol, 53)])
    assert forwarded(node.leave(node.client, packet))


def test_a_rule_on_ports_does_not_let_ping_through(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    assert not forwarded(node.leave(node.client, echo(CLIENT, WEB, 1)))
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, 1, 8)])
    assert forwarded(node.leave(node.client, echo(CLIENT, WEB, 2)))


def test_nothing_passes_a_subject_without_a_row(node: Node) -> None:
    node.datapath.subject_delete(WEB_SUBJECT)
    assert not reaches(node)
    assert not forwarded(node.leave(node.web, tcp(WEB, CLIENT, 1, 2)))
    assert not forwarded(node.leave(node.web, tcp(WEB, WORLD, 1, 2)))
    assert node.drops() == {reason.POLICY_NOT_READY: 3}


def test_an_instance_is_swapped_by_one_write(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    assert reaches(node)
    node.policy(WEB_SUBJECT, ingress=[Rule(OTHER_ID, TCP, 80)])
    # The entries of the instance before are still there, and count no more.
    assert len(node.datapath.policy_entries()) == 2
    assert not reaches(node, sport=40001)


def test_entries_of_another_instance_or_direction_do_not_count(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[], egress=[Rule(CLIENT_ID, TCP, 80)])
    node.policy(CLIENT_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    assert not reaches(node)


def test_an_added_allow_works_in_place(node: Node) -> None:
    node.policy(WEB_SUBJECT, ingress=[Rule(CLIENT_ID, TCP, 80)])
    assert not reaches(node, 81)
    row = node.datapath.subject_get(WEB_SUBJECT)
    assert row is not None
    node.datapath.policy_put([Rule(CLIENT_ID, TCP, 81).entry(row.instance, Direction.INGRESS)])
    assert reaches(node, 81)


def test_the_world_and_remote_pods_have_their_identities(node: Node) -> None:
    node.policy(CLIENT_SUBJECT, egress=[Rule(REMOTE_ID, TCP, 80), Rule(2, TCP, 443)])
    assert forwarded(node.leave(node.client, tcp(CLIENT, REMOTE, 1, 80)))
    assert not forwarded(node.leave(node.client, tcp(CLIENT, REMOTE, 1, 443)))
    assert forwarded(node.leave(node.client, tcp(CLIENT, WORLD, 1, 443)))
    assert not forwarded(node.leave(node.client, tcp(CLIENT, WORLD, 1, 80)))
