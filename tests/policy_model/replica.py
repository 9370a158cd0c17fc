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


# A write of one entry; None as its value: it goes.
Write = tuple[EntryKey, EntryValue | None]


def _writes(change: SubjectChange) -> Iterator[list[Write]]:
    """The writes of a delta in orders in which a loader may make them: what comes first, and what goes."""
    comes: list[Write] = list(change.upserts)
    goes: list[Write] = [(key, None) for key in change.deletes]
    yield [*comes, *goes]
    if comes and goes:
        yield [*reversed(goes), *reversed(comes)]


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
    for writes in _writes(change):
        _check_way(before, change, writes, first, last)


def _check_way(
    before: PolicyMap,
    change: SubjectChange,
    writes: list[Write],
    first: dict[Packet, bool],
    last: dict[Packet, bool],
) -> None:
    """Write by write; the defaults, which come at the end, lead to what is afterwards."""
    state, now = before.copy(), dict(first)
    for key, value in writes:
        if value is None:
            state.entries.pop(key, None)
        else:
            state.entries[key] = value
        for packet in first:
            # A packet that has got the verdict of afterwards keeps it.
            if covers(key, packet) and (passes := state.verdict(packet)[0]) != now[packet]:
                assert passes == last[packet], (
                    f"{change.subject}: {change.transition.name}: with {key} {packet} passes: {passes}, "
                    f"before: {first[packet]}, after: {last[packet]}"
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
