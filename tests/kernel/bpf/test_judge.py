"""Random policies of every tier: the kernel's verdict against the policy engine's definition of it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from services.loader.bpf import drop_reasons as reason
from services.loader.bpf import layout
from services.loader.bpf.layout import PolicyKey, PolicyValue, SubjectRow, direction_shape, pack_lpm_key
from services.loader.bpf.maps import Map
from services.loader.bpf.native import lib
from services.loader.bpf.testrun import TC_ACT_SHOT
from services.policy.entries import (
    BY_ADDRESS,
    PORT_BITS,
    SPACES,
    TIER_MASK,
    EntryKey,
    EntryValue,
    Judgement,
    SubjectPolicy,
    judge,
)
from services.policy.rules import Direction, Tier
from tests.kernel.bpf.node import CLIENT, CLIENT6, CLIENT_ID, WEB, WEB6, WEB_SUBJECT, Node
from tests.kernel.bpf.packets import SCTP, TCP, UDP, sctp, tcp, udp
from tests.kernel.bpf.packets6 import tcp6, udp6

pytestmark = pytest.mark.kernel

POLICIES, PACKETS = 80, 25
MAKERS: dict[int, Callable[[str, str, int, int], bytes]] = {TCP: tcp, UDP: udp, SCTP: sctp}
MAKERS6: dict[int, Callable[[str, str, int, int], bytes]] = {TCP: tcp6, UDP: udp6}
NUMBER, OTHER_NUMBER = 0xFF0001, 0xFF0002
_PREFIXES = (("10.244.1.8/29", "fd00:244:1::/64"), ("10.0.0.0/8", "::/0"))


def test_the_numbers_are_the_engines() -> None:
    assert (layout.SPACE_BY_ADDRESS, layout.TIER_MASK) == (BY_ADDRESS, TIER_MASK)
    for space in SPACES:
        assert PolicyKey.unpack(PolicyKey(1, 2, 0, 0, space=space).pack()).space == space
    for space in {*range(16)} - {*SPACES}:
        with pytest.raises(ValueError, match=f"space is {space}"):
            PolicyKey(1, 2, 0, 0, space=space)


@pytest.mark.parametrize("prefixes", [(NUMBER,), ()], ids=["numbered", "unnumbered"])
def test_the_kernel_judges_as_the_engine(node: Node, prefixes: tuple[int, ...]) -> None:
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    if prefixes:
        with _maps(node) as blocks:
            # The longer one counts.
            for numbers, number in zip(_PREFIXES, (NUMBER, OTHER_NUMBER), strict=True):
                for bpf_map, prefix in zip(blocks, numbers, strict=True):
                    bpf_map.put(pack_lpm_key(*layout.split_prefix(prefix)), number.to_bytes(4, "little"))
    sport = 1024
    for instance in range(1, POLICIES + 1):
        policy = _policy(source)
        _put(node, instance, policy)
        for _ in range(PACKETS):
            sport += 1
            ends, makers = source.choice((((CLIENT, WEB), MAKERS), ((CLIENT6, WEB6), MAKERS6)))
            protocol = source.choice(list(makers))
            port = source.choice([80, 81, 82, 443, 1024, 1025, 65535, source.randrange(65536)])
            run = node.leave(node.client, makers[protocol](*ends, sport, port))
            expected = judge(policy, Direction.INGRESS, CLIENT_ID, protocol, port, prefixes)
            context = f"seed {seed} policy {instance} protocol {protocol} port {port}: {policy} {expected}"
            assert (run.action != TC_ACT_SHOT) == expected.allowed, context
            said = [(event.verdict, event.reason, event.rule_cookie) for event in node.events()]
            assert said == [*_reports(policy, expected)], context


def _reports(policy: SubjectPolicy, judgement: Judgement) -> Iterator[tuple[str, int, int]]:
    """Verdict, reason and rule of what is told of a new flow."""
    key = judgement.key
    if not judgement.allowed:
        yield ("deny", *_decided_by(judgement))
    elif judgement.audited is not None:
        yield ("audit", *_decided_by(judgement.audited))
    elif policy.enforced[Direction.INGRESS] or (key is not None and key.space & TIER_MASK != Tier.NORMAL):
        yield "allow", 0, judgement.value.cookie if judgement.value is not None else 0


def _decided_by(denial: Judgement) -> tuple[int, int]:
    if denial.value is None:
        return reason.POLICY, 0
    return reason.POLICY_DENY, denial.value.cookie


def _policy(source: random.Random) -> SubjectPolicy:
    entries: dict[EntryKey, EntryValue] = {}
    spaces = source.sample(SPACES, source.randrange(1, len(SPACES) + 1))
    for cookie in range(1, source.randrange(2, 20)):
        space = source.choice(spaces)
        protocol = source.choice([0, TCP, TCP, UDP, SCTP])
        prefix = source.choice([0, 0, 16, 16, source.randrange(1, 17)]) if protocol else 0
        port = source.choice([80, 81, 443, 1024, 65535, 0]) & ~(0xFFFF >> prefix) & 0xFFFF
        whose = (NUMBER, OTHER_NUMBER) if space & BY_ADDRESS else (0, CLIENT_ID, CLIENT_ID, 4242)
        key = EntryKey(Direction.INGRESS, source.choice(whose), protocol, port, prefix, space)
        if space & TIER_MASK == Tier.NORMAL:
            entries[key] = EntryValue(source.random() < 0.25, cookie)
            continue
        deny, passes = source.choice(((False, False), (True, False), (False, True)))
        entries[key] = EntryValue(deny, cookie, passes, source.choice((0, 1, 2, 1000 << PORT_BITS | 3)))
    return SubjectPolicy(
        enforced=(source.random() < 0.5, False),
        entries=entries,
        audit_enforced=(source.random() < 0.3, False),
    )


def _put(node: Node, instance: int, policy: SubjectPolicy) -> None:
    entries = [
        (
            PolicyKey(instance, key.identity, key.direction, key.protocol, key.port, key.prefix, key.space),
            PolicyValue(value.deny, value.cookie, passes=value.passes, order=value.order),
        )
        for key, value in policy.entries.items()
    ]
    node.datapath.policy_put(entries)
    shape = direction_shape(
        entries,
        layout.Direction.INGRESS,
        enforced=policy.enforced[Direction.INGRESS],
        audit_enforced=policy.audit_enforced[Direction.INGRESS],
    )
    node.datapath.subject_put(WEB_SUBJECT, SubjectRow(instance, instance, instance, shape))


@contextmanager
def _maps(node: Node) -> Iterator[tuple[Map, Map]]:
    found = []
    for name in ("block4", "block6"):
        fd = lib.bpf_obj_get(os.path.join(node.datapath.pins.maps, name).encode())
        assert fd >= 0, name
        found.append(Map(name, fd))
    yield found[0], found[1]
    for bpf_map in found:
        bpf_map.close()
