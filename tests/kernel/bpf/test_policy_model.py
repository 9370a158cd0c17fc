"""Random policies and packets: the kernel's verdict, reason and rule against a model of a few lines."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from services.loader.bpf import drop_reasons as reason
from services.loader.bpf.layout import Direction, PolicyKey, PolicyValue, SubjectRow, direction_shape
from services.loader.bpf.testrun import TC_ACT_SHOT
from tests.kernel.bpf.node import CLIENT, CLIENT_ID, WEB, WEB_SUBJECT, Node
from tests.kernel.bpf.packets import SCTP, TCP, UDP, sctp, tcp, udp

pytestmark = pytest.mark.kernel

POLICIES = 60
PACKETS = 25
MAKERS: dict[int, Callable[[str, str, int, int], bytes]] = {TCP: tcp, UDP: udp, SCTP: sctp}


@dataclass(frozen=True)
class Verdict:
    """What should become of a packet: None is a pass; ``cookie`` 0 where no entry decided."""

    drop: int | None
    cookie: int


def model(
    entries: dict[PolicyKey, PolicyValue], enforced: bool, identity: int, protocol: int, port: int
) -> Verdict:
    """The reference's precedence, spelt out over all entries."""

    def covers(key: PolicyKey) -> bool:
        shift = 16 - key.port_prefix
        return (
            key.identity in (0, identity)
            and key.protocol in (0, protocol)
            and key.port >> shift == port >> shift
        )

    def rank(key: PolicyKey) -> tuple[bool, ...] | tuple[int, ...]:
        has_port, has_protocol, by_identity = key.port_prefix > 0, key.protocol > 0, key.identity > 0
        return (has_port, has_protocol, by_identity, key.port_prefix)

    covering = sorted((key for key in entries if covers(key)), key=rank, reverse=True)
    for key in covering:
        if entries[key].deny:
            return Verdict(reason.POLICY_DENY, entries[key].rule_cookie)
    if covering:
        return Verdict(None, entries[covering[0]].rule_cookie)
    return Verdict(reason.POLICY if enforced else None, 0)


def random_entries(source: random.Random, instance: int) -> dict[PolicyKey, PolicyValue]:
    entries = {}
    denies = source.random() < 0.5
    for cookie in range(1, source.randrange(1, 14)):
        protocol = source.choice([0, TCP, TCP, UDP, SCTP])
        prefix = source.choice([0, 0, 16, 16, source.randrange(1, 17)]) if protocol else 0
        port = source.choice([80, 81, 443, 1024, 65535, 0]) & ~(0xFFFF >> prefix) & 0xFFFF
        key = PolicyKey(
            instance,
            source.choice([0, CLIENT_ID, CLIENT_ID, 4242]),
            Direction.INGRESS,
            protocol,
            port,
            prefix,
        )
        entries[key] = PolicyValue(deny=denies and source.random() < 0.25, rule_cookie=cookie)
    return entries


def test_the_kernel_agrees_with_the_model(node: Node) -> None:
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    sport = 1024
    for instance in range(1, POLICIES + 1):
        entries = random_entries(source, instance)
        enforced = source.random() < 0.8
        node.datapath.policy_put(list(entries.items()))
        shape = direction_shape(entries.items(), Direction.INGRESS, enforced=enforced)
        node.datapath.subject_put(WEB_SUBJECT, SubjectRow(instance, instance, instance, shape))
        for _ in range(PACKETS):
            sport += 1
            protocol = source.choice(list(MAKERS))
            port = source.choice([80, 81, 82, 443, 1024, 1025, 65535, source.randrange(65536)])
            run = node.leave(node.client, MAKERS[protocol](CLIENT, WEB, sport, port))
            expected = model(entries, enforced, CLIENT_ID, protocol, port)
            context = f"seed {seed} policy {instance} protocol {protocol} port {port}: {entries}"
            assert (run.action == TC_ACT_SHOT) == (expected.drop is not None), context
            events = node.events()
            if expected.drop is None and not enforced:
                assert events == [], context
                continue
            (event,) = events
            assert event.rule_cookie == expected.cookie, context
            assert event.reason == (expected.drop or 0), context
            assert event.policy_revision == instance
