"""The model's tiers, addresses and audit mode, held to cases worked out by hand."""

from __future__ import annotations

import pytest

from tests.fuzz.addresses import packed
from tests.fuzz.model.parsing import TCP, UDP
from tests.fuzz.model.policy import look_up
from tests.fuzz.model.reasons import Reason
from tests.fuzz.model.world import DirectionPolicy, Entry, Node, Other, Peer, Tier, World, is_outside

POD, NUMBER = 300, 0xFF0001
ADMIN, NORMAL, BASELINE = Tier
DENY, DEFAULT = Reason.POLICY_DENY, Reason.POLICY


def says(
    tier: Tier = NORMAL,
    what: str = "allow",
    order: int = 0,
    *,
    whom: int = POD,
    by_address: bool = False,
    tried: bool = False,
    cookie: int = 0,
    port: int = 0,
) -> Entry:
    return Entry(
        whom, TCP if port else 0, port, 16 if port else 0, what == "deny", cookie, tier, by_address, tried,
        what == "pass", order,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "enforced", "reason"),
    [
        ([says(ADMIN), says(NORMAL, "deny")], True, None),
        ([says(ADMIN, "deny"), says(NORMAL)], False, DENY),
        ([says(ADMIN, "pass"), says(NORMAL, "deny")], False, DENY),
        ([says(ADMIN, "pass")], True, DEFAULT),
        ([says(ADMIN, "pass"), says(BASELINE, "deny")], False, DENY),
        ([says(BASELINE)], True, DEFAULT),
        ([says(NORMAL), says(BASELINE, "deny")], False, None),
        ([says(BASELINE, "pass")], False, None),
        ([says(ADMIN, "deny", whom=4)], False, None),
        ([says(ADMIN, "deny", 2, port=80), says(ADMIN, "allow", 1, whom=0)], False, None),
        ([says(ADMIN, "allow", 1), says(ADMIN, "pass", 1, whom=0)], True, DEFAULT),
        ([says(ADMIN, "pass", 1), says(ADMIN, "deny", 1, whom=0)], False, DENY),
        ([says(NORMAL, port=80), says(NORMAL, "deny", whom=0)], False, DENY),
        ([says(whom=NUMBER, by_address=True)], True, None),
        ([says(whom=NUMBER)], True, DEFAULT),
        ([says(whom=0, by_address=True)], True, DEFAULT),
        ([says(), says(NORMAL, "deny", whom=NUMBER, by_address=True)], True, DENY),
        ([says(tried=True)], True, DEFAULT),
    ],
)
def test_what_tiers_decide(entries: list[Entry], enforced: bool, reason: Reason | None) -> None:
    verdict = look_up(DirectionPolicy(enforced, False, tuple(entries)), Other(POD, NUMBER), TCP, 80)
    assert verdict.reason is reason
    assert verdict.spared is None


@pytest.mark.parametrize(
    ("entries", "tries", "spared"),
    [
        ([says(NORMAL, "deny", tried=True, cookie=5)], False, (DENY, 5)),
        ([says(), says(NORMAL, "deny", tried=True, cookie=5)], False, (DENY, 5)),
        ([says(ADMIN), says(NORMAL, "deny", tried=True)], False, None),
        ([], True, (DEFAULT, 0)),
        ([says(tried=True)], True, None),
        ([says(NORMAL, "deny", tried=True, whom=4)], False, None),
        # A tried pass leaves to a rule in force what another one had kept from it.
        (
            [says(ADMIN, "allow", 2), says(ADMIN, "pass", 1, tried=True), says(NORMAL, "deny", cookie=6)],
            False,
            (DENY, 6),
        ),
    ],
)
def test_what_audit_mode_spares(entries: list[Entry], tries: bool, spared: tuple[Reason, int] | None) -> None:
    policy = DirectionPolicy(False, False, tuple(entries), tries)
    verdict = look_up(policy, Other(POD), TCP, 80)
    assert verdict.reason is None
    found = verdict.spared
    assert (found and (found.reason, found.entry.cookie if found.entry else 0)) == spared


def test_the_nodes_audit_mode_spares_what_is_denied() -> None:
    policy = DirectionPolicy(True, True, (says(NORMAL, "deny", tried=True, cookie=5),))
    verdict = look_up(policy, Other(POD), UDP, 53)
    assert verdict.reason is None
    assert verdict.spared is not None
    assert verdict.spared.reason is DEFAULT


def test_the_most_specific_of_equals_is_told_of() -> None:
    entries = (
        says(whom=0, cookie=1),
        says(whom=NUMBER, by_address=True, port=80, cookie=2),
        says(cookie=3),
        says(whom=0, port=80, cookie=4),
    )
    verdict = look_up(DirectionPolicy(True, False, entries), Other(POD, NUMBER), TCP, 80)
    assert verdict.entry is not None
    assert verdict.entry.cookie == 4


def test_the_longest_prefix_has_the_number() -> None:
    world = World(Node((), 1, 2, 3, 4, 1500))
    address = packed("10.1.2.3")
    assert world.other(POD, address) == Other(POD)
    world.put_block(packed("0.0.0.0"), 0, 9)
    world.put_block(packed("10.1.0.0"), 16, NUMBER)
    assert world.other(POD, address) == Other(POD, NUMBER)
    assert world.other(POD, packed("10.2.0.1")) == Other(POD, 9)
    assert world.other(POD, packed("fd00::1")) == Other(POD)
    world.remove_block(packed("10.1.0.0"), 16)
    assert world.other(POD, address) == Other(POD, 9)


@pytest.mark.parametrize(
    ("identity", "expected"),
    [(2, True), (9, True), (10, True), (0xFF0000, True), (0xFFFFFF, True), (0xFEFFFF, False), (1, False),
     (6, False), (0x1000000, False), (300, False)],
)  # fmt: skip
def test_who_is_outside(identity: int, expected: bool) -> None:
    assert is_outside(identity) is expected


def test_a_peer_outside_is_looked_up_like_any() -> None:
    world = World(Node((), 1, 2, 3, 4, 1500))
    world.put_peer(packed("0.0.0.0"), 0, Peer(9))
    world.put_peer(packed("198.51.100.0"), 24, Peer(NUMBER))
    assert world.peer_at(packed("198.51.100.7")).identity == NUMBER
    assert world.peer_at(packed("203.0.113.1")).identity == 9
