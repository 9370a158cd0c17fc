# SPDX-License-Identifier: Apache-2.0
"""What nodes hold: policy maps made of nothing but the engine's deltas, and the prefixes in force.

It judges by itself: it looks at every entry there is, where `entries.judge` looks keys up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from services.policy.engine import SubjectChange
from services.policy.entries import EntryKey, EntryValue, SubjectPolicy, Transition
from tests.policy_model.cluster import parsed_address, parsed_network

ADMIN, NORMAL, BASELINE = 1, 0, 2
BY_ADDRESS, AUDIT = 4, 8


@dataclass(frozen=True)
class Packet:
    """What an entry can be about. `identity` is the peer's; `prefix` the number of the longest prefix in
    use by address that holds the peer's address, 0 when there is none.
    """

    direction: int
    identity: int
    prefix: int
    protocol: int
    port: int


def covers(key: EntryKey, packet: Packet) -> bool:
    if key.direction != packet.direction:
        return False
    if key.space & BY_ADDRESS:
        if not packet.prefix or key.identity != packet.prefix:
            return False
    elif key.identity not in (0, packet.identity):
        return False
    if key.protocol == 0:
        return True
    dropped = 16 - key.prefix
    return key.protocol == packet.protocol and key.port >> dropped == packet.port >> dropped


@dataclass
class PolicyMap:
    """One subject's entries and defaults, by direction."""

    entries: dict[EntryKey, EntryValue] = field(default_factory=dict)
    enforced: tuple[bool, bool] = (False, False)
    audit_enforced: tuple[bool, bool] = (False, False)

    def verdict(self, packet: Packet) -> tuple[bool, bool]:
        """(it passes, it passes and would not with the policies in audit mode)."""
        found = [(key.space, value) for key, value in self.entries.items() if covers(key, packet)]
        real = [(space, value) for space, value in found if not space & AUDIT]
        passes = _decide(real, self.enforced[packet.direction])
        would = _decide(found, self.enforced[packet.direction] or self.audit_enforced[packet.direction])
        return passes, passes and not would

    def copy(self) -> PolicyMap:
        return PolicyMap(dict(self.entries), self.enforced, self.audit_enforced)

    def take(self, change: SubjectChange) -> None:
        """Apply a delta. AssertionError when it says what is so already, or deletes what is not there."""
        touched = [key for key, _ in change.upserts] + list(change.deletes)
        assert len(set(touched)) == len(touched), f"{change.subject}: a key stands twice in its delta"
        for key, value in change.upserts:
            assert self.entries.get(key) != value, f"{change.subject}: {key} says {value} already"
            self.entries[key] = value
        for key in change.deletes:
            assert key in self.entries, f"{change.subject}: {key} is not there to be deleted"
            del self.entries[key]
        self.enforced, self.audit_enforced = change.enforced, change.audit_enforced

    def reset(self, state: SubjectPolicy) -> None:
        self.entries = dict(state.entries)
        self.enforced, self.audit_enforced = state.enforced, state.audit_enforced


def _decide(found: list[tuple[int, EntryValue]], enforced: bool) -> bool:
    admin = _first([value for space, value in found if space & 3 == ADMIN])
    if admin is not None and not admin.passes:
        return not admin.deny
    normal = [value for space, value in found if space & 3 == NORMAL]
    if any(value.deny for value in normal):
        return False
    if normal:
        return True
    if enforced:
        return False
    baseline = _first([value for space, value in found if space & 3 == BASELINE])
    return baseline is None or not baseline.deny


def _first(values: list[EntryValue]) -> EntryValue | None:
    if not values:
        return None
    return min(values, key=lambda value: (value.order, 0 if value.deny else 1 if value.passes else 2))


def intermediate(before: PolicyMap, change: SubjectChange) -> Iterator[tuple[PolicyMap, EntryKey | None]]:
    """The states on the way when the writes of a delta are made one by one, as a loader makes them: what
    comes, what goes, the defaults. With each state the key that has just been written; None: the defaults.
    """
    now = before.copy()
    for key, value in change.upserts:
        now.entries[key] = value
        yield now, key
    for key in change.deletes:
        now.entries.pop(key, None)
        yield now, key
    now.enforced, now.audit_enforced = change.enforced, change.audit_enforced
    yield now, None


def check_transition(before: PolicyMap, change: SubjectChange, packets: list[Packet]) -> None:
    """No packet meets a verdict on the way that is neither that of before nor that of after, and the
    verdicts move as the delta says. AssertionError otherwise.
    """
    if change.transition is Transition.SWAP:
        return
    after = before.copy()
    after.take(change)
    first = {packet: before.verdict(packet)[0] for packet in packets}
    last = {packet: after.verdict(packet)[0] for packet in packets}
    for packet in packets:
        moved = (first[packet], last[packet])
        legal = {
            Transition.NEUTRAL: moved[0] == moved[1],
            Transition.WIDENS: moved != (True, False),
            Transition.NARROWS: moved != (False, True),
        }[change.transition]
        assert legal, f"{change.subject}: {change.transition.name}, but {packet} goes {moved}"
    now = dict(first)
    for state, key in intermediate(before, change):
        for packet in packets:
            if key is not None and not covers(key, packet):
                continue
            passes = state.verdict(packet)[0]
            assert passes in (first[packet], last[packet]), (
                f"{change.subject}: {change.transition.name}: after {key} {packet} passes: {passes}, "
                f"before: {first[packet]}, after: {last[packet]}"
            )
            # Once it has turned it does not turn back.
            assert passes == now[packet] or passes == last[packet], (
                f"{change.subject}: {change.transition.name}: {packet} turns back at {key}"
            )
            now[packet] = passes


@dataclass
class Prefixes:
    """The prefixes in force: number and uses by their text."""

    known: dict[str, tuple[int, bool, bool]] = field(default_factory=dict)

    def number(self, address: str | None, *, by_address: bool) -> int:
        """The number of the longest of those in this use that holds the address; 0 when none does."""
        if address is None:
            return 0
        there = parsed_address(address)
        found = [
            (parsed_network(cidr).prefixlen, number)
            for cidr, (number, identity, block) in self.known.items()
            if (block if by_address else identity) and there in parsed_network(cidr)
        ]
        return max(found)[1] if found else 0
