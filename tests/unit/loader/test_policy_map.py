"""Plans: they end in what was wanted, and no packet on the way gets a verdict that is neither the old nor
the new one. The policy service's own judgement says what a verdict is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.loader.bpf.layout import SHAPE_ANY_PROTOCOL, DirectionShape
from services.loader.kernel import subject_row
from services.loader.policy.entries import (
    ADMIN,
    AUDIT,
    BASELINE,
    BY_ADDRESS,
    EGRESS,
    INGRESS,
    NORMAL,
    EntryKey,
    EntryValue,
)
from services.loader.policy.plan import DirectionDefault, Plan, Realized, SubjectState, apply_delta, plan
from services.loader.policy.shape import shape_of
from services.policy import entries as service
from services.policy.rules import Direction

IDENTITIES = (0, 256, 257)
NUMBERS = (0xFF0000, 0xFF0001)
PROTOCOLS = (6, 17)
PORTS = (80, 81, 443)
ORDERS = (0, 1, 2 << 16)


class Packet(NamedTuple):
    """A packet at its subject; ``numbers`` has that of the prefix that holds the peer's address."""

    direction: int
    identity: int
    protocol: int
    port: int
    numbers: tuple[int, ...]


class Verdict(NamedTuple):
    """What becomes of a packet; ``reported``: policies in audit mode would not have let it pass."""

    allowed: bool
    reported: bool


PACKETS = [
    Packet(direction, identity, protocol, port, numbers)
    for direction in (INGRESS, EGRESS)
    for identity in (256, 258)
    for protocol in PROTOCOLS
    for port in (80, 81)
    for numbers in ((), *((number,) for number in NUMBERS))
]


@st.composite
def keys(draw: st.DrawFn) -> EntryKey:
    protocol = draw(st.sampled_from((0, *PROTOCOLS)))
    length = draw(st.sampled_from((0, 15, 16))) if protocol else 0
    port = draw(st.sampled_from(PORTS)) & (0xFFFF << (16 - length)) & 0xFFFF if length else 0
    flags = draw(st.sampled_from((0, 0, BY_ADDRESS, AUDIT, BY_ADDRESS | AUDIT)))
    return EntryKey(
        draw(st.sampled_from((INGRESS, EGRESS))),
        draw(st.sampled_from(NUMBERS if flags & BY_ADDRESS else IDENTITIES)),
        protocol,
        port,
        length,
        draw(st.sampled_from((NORMAL, NORMAL, ADMIN, BASELINE))) | flags,
    )


@st.composite
def entries(draw: st.DrawFn) -> tuple[EntryKey, EntryValue]:
    key = draw(keys())
    cookie = draw(st.integers(0, 3))
    if key.tier == NORMAL:
        return key, EntryValue(draw(st.booleans()), cookie)
    says = draw(st.sampled_from(("allow", "deny", "pass") if key.tier == ADMIN else ("allow", "deny")))
    return key, EntryValue(says == "deny", cookie, says == "pass", draw(st.sampled_from(ORDERS)))


defaults = st.builds(DirectionDefault, st.booleans(), audit_enforced=st.booleans())
states = st.builds(
    SubjectState, defaults, defaults, st.lists(entries(), max_size=8).map(dict), st.integers(1, 9)
)


class Model:
    """The two maps, and what a packet finds there."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, EntryKey], EntryValue] = {}
        self.row: Realized | None = None

    def verdicts(self) -> list[Verdict]:
        if self.row is None:
            return [Verdict(False, False)] * len(PACKETS)
        row = subject_row(self.row)
        shapes = (row.ingress, row.egress)
        policy = service.SubjectPolicy(
            (row.ingress.enforced, row.egress.enforced),
            entries={
                service.EntryKey(
                    key.direction, key.identity, key.protocol, key.port, key.prefix_length, key.space
                ): service.EntryValue(value.deny, value.cookie, value.passes, value.order)
                for (instance, key), value in self.entries.items()
                if instance == row.instance and visible(key, shapes[key.direction])
            },
            audit_enforced=(row.ingress.audit_enforced, row.egress.audit_enforced),
        )
        found = [
            service.judge(policy, Direction(direction), identity, protocol, port, numbers)
            for direction, identity, protocol, port, numbers in PACKETS
        ]
        return [Verdict(each.allowed, each.audited is not None) for each in found]

    def apply(self, todo: Plan) -> Iterator[str]:
        """Makes one write after the other."""
        for write in writes(todo):
            self.make(write)
            yield write[0]

    def make(self, write: Write) -> None:
        """Makes one write."""
        _, key, value = write
        if isinstance(value, Realized):
            self.row = value
        elif value is None:
            assert key is not None
            del self.entries[key]
        else:
            assert key is not None
            self.entries[key] = value


Write = tuple[str, tuple[int, EntryKey] | None, EntryValue | Realized | None]


def writes(todo: Plan) -> list[Write]:
    """A plan's writes in their order."""
    instance, former = todo.target.instance, todo.retired_instance
    return [
        *((f"put {key}", (instance, key), value) for key, value in todo.puts),
        *((f"remove {key}", (instance, key), None) for key in todo.removals),
        ("row", None, todo.target),
        *((f"retire {key}", (former, key), None) for key in todo.retired),
    ]


def visible(key: EntryKey, shape: DirectionShape) -> bool:
    """Whether the datapath looks for entries of this kind."""
    bit = 1 << key.prefix_length if key.protocol else SHAPE_ANY_PROTOCOL
    if key.space:
        return bool(shape.spaces >> key.space & 1 and shape.other_shapes & bit)
    return bool((shape.identity_shapes if key.identity else shape.wildcard_shapes) & bit)


def state(*entries: tuple[EntryKey, EntryValue], enforced: bool = True) -> SubjectState:
    return SubjectState(DirectionDefault(enforced), DirectionDefault(), dict(entries), 1)


def web(identity: int, port: int = 80) -> EntryKey:
    return EntryKey(INGRESS, identity, 6, port, 16)


ALLOW, DENY = EntryValue(False, 1), EntryValue(True, 2)


def nobody_has(numbers: Collection[int]) -> Callable[[int, bool], bool]:
    """No address is held by the prefixes of these numbers."""
    return lambda identity, by_address: by_address and identity in numbers


def difference(current: Realized, target: SubjectState) -> set[EntryKey]:
    touched = set(current.entries.keys() ^ target.entries.keys())
    return touched | {key for key, value in target.entries.items() if current.entries.get(key) != value}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(states, st.booleans(), st.sets(st.sampled_from(NUMBERS))), min_size=1, max_size=4))
def test_every_plan_ends_in_the_wanted_state_and_no_packet_sees_a_mix(
    wanted: list[tuple[SubjectState, bool, set[int]]],
) -> None:
    model = Model()
    current: Realized | None = None
    epochs: list[int] = []
    for number, (target, whole, nobody) in enumerate(wanted, start=1):
        instance, epoch = number * 10, number * 100
        todo = plan(
            current,
            target,
            fresh_instance=instance,
            fresh_epoch=epoch,
            whole=whole,
            dormant=nobody_has(nobody),
        )
        if current is not None:
            quick = plan(
                current,
                target,
                fresh_instance=instance,
                fresh_epoch=epoch,
                touched=difference(current, target),
                whole=whole,
                dormant=nobody_has(nobody),
            )
            assert (quick is None) == (todo is None)
            if quick is not None and todo is not None:
                assert quick.target == todo.target
                assert (set(quick.puts), set(quick.removals)) == (set(todo.puts), set(todo.removals))
        if todo is not None:
            assert todo.target.shape == shape_of(target.entries)
        # No packet has a number that nobody has.
        there = [not nobody.intersection(packet.numbers) for packet in PACKETS]
        before = list(itertools.compress(model.verdicts(), there))
        if todo is None:
            assert current is not None
            assert current.entries == target.entries
            continue
        final = Model()
        final.row = todo.target
        final.entries = {(todo.target.instance, key): value for key, value in target.entries.items()}
        after = list(itertools.compress(final.verdicts(), there))
        seen = [before]
        for step in model.apply(todo):
            now = list(itertools.compress(model.verdicts(), there))
            for was, is_now, will in zip(before, now, after, strict=True):
                assert is_now.allowed in (was.allowed, will.allowed), step
            seen.append(now)
            if (not todo.in_place or whole) and step.startswith("put"):
                assert [each.allowed for each in now] == [each.allowed for each in before], (
                    "nothing shows before the row says so"
                )
        for turns in zip(*seen, strict=True):
            assert sum(a.allowed != b.allowed for a, b in itertools.pairwise(turns)) <= 1, (
                "a verdict turns once"
            )
        assert model.verdicts() == final.verdicts()
        assert {key: value for (_, key), value in model.entries.items()} == target.entries
        narrowed = any(was.allowed and not will.allowed for was, will in zip(before, after, strict=True))
        if narrowed:
            assert current is not None
            assert todo.target.epoch not in (current.epoch, *epochs), "established flows are judged again"
        epochs.append(todo.target.epoch)
        current = todo.target


@settings(max_examples=150, deadline=None)
@given(states, st.lists(entries(), max_size=2), st.data())
def test_a_packet_that_sees_only_some_of_the_writes_gets_no_third_verdict(
    first: SubjectState, more: list[tuple[EntryKey, EntryValue]], data: st.DataObject
) -> None:
    opening = plan(None, first, fresh_instance=1, fresh_epoch=1)
    assert opening is not None
    kept = [key for key in first.entries if data.draw(st.booleans())]
    target = SubjectState(
        first.ingress, first.egress, {key: first.entries[key] for key in kept} | dict(more), 2
    )
    todo = plan(opening.target, target, fresh_instance=2, fresh_epoch=2)
    if todo is None or not todo.in_place:
        return

    def model(*made: Write) -> list[Verdict]:
        each = Model()
        for write in (*writes(opening), *made):
            each.make(write)
        return each.verdicts()

    everything = writes(todo)
    some = [write for write in everything if data.draw(st.booleans())]
    for was, is_now, will in zip(model(), model(*some), model(*everything), strict=True):
        assert is_now.allowed in (was.allowed, will.allowed)


@given(states, states)
def test_a_delta_is_the_difference_of_two_states(old: SubjectState, new: SubjectState) -> None:
    upserts = {key: value for key, value in new.entries.items() if old.entries.get(key) != value}
    deletes = frozenset(old.entries.keys() - new.entries.keys())
    found = apply_delta(
        old, ingress=new.ingress, egress=new.egress, upserts=upserts, deletes=deletes, revision=new.revision
    )
    assert found == new


@given(states)
def test_what_is_in_the_kernel_already_is_not_written(wanted: SubjectState) -> None:
    first = plan(None, wanted, fresh_instance=1, fresh_epoch=1)
    assert first is not None
    assert plan(first.target, wanted, fresh_instance=2, fresh_epoch=2) is None


def test_an_added_allow_goes_in_place_without_a_new_epoch() -> None:
    first = plan(None, state((web(256), ALLOW)), fresh_instance=1, fresh_epoch=1)
    assert first is not None
    second = plan(first.target, state((web(256), ALLOW), (web(257), ALLOW)), fresh_instance=2, fresh_epoch=2)
    assert second is not None
    assert second.in_place
    assert second.puts == ((web(257), ALLOW),)
    assert (second.target.instance, second.target.epoch) == (1, 1)


def test_a_removed_allow_goes_in_place_with_a_new_epoch() -> None:
    first = plan(None, state((web(256), ALLOW), (web(257), ALLOW)), fresh_instance=1, fresh_epoch=1)
    assert first is not None
    second = plan(first.target, state((web(256), ALLOW)), fresh_instance=2, fresh_epoch=2)
    assert second is not None
    assert second.in_place
    assert second.removals == (web(257),)
    assert (second.target.instance, second.target.epoch) == (1, 2)


def test_a_change_both_ways_is_built_aside() -> None:
    first = plan(None, state((web(256), ALLOW)), fresh_instance=1, fresh_epoch=1)
    assert first is not None
    second = plan(first.target, state((web(257), ALLOW)), fresh_instance=2, fresh_epoch=2)
    assert second is not None
    assert not second.in_place
    assert second.target.instance == 2
    assert (second.retired_instance, second.retired) == (1, (web(256),))


def test_another_rule_for_the_same_verdict_is_written_in_place() -> None:
    first = plan(None, state((web(256), EntryValue(False, 1))), fresh_instance=1, fresh_epoch=1)
    assert first is not None
    second = plan(first.target, state((web(256), EntryValue(False, 9))), fresh_instance=2, fresh_epoch=2)
    assert second is not None
    assert second.in_place
    assert second.target.epoch == 1


def changed(
    before: SubjectState, after: SubjectState, *, whole: bool = False, judged_again: bool = False
) -> Plan:
    first = plan(None, before, fresh_instance=1, fresh_epoch=1)
    assert first is not None
    todo = plan(first.target, after, fresh_instance=2, fresh_epoch=2, whole=whole, judged_again=judged_again)
    assert todo is not None
    return todo


def admin(identity: int) -> EntryKey:
    return EntryKey(INGRESS, identity, 6, 80, 16, ADMIN)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, EntryValue(False, 1, passes=True, order=3)),
        (EntryValue(False, 1, passes=True, order=3), None),
        (EntryValue(False, 1, order=3), EntryValue(False, 1, passes=True, order=3)),
        (EntryValue(True, 1, order=3), EntryValue(True, 1, order=4)),
        (EntryValue(False, 1, order=3), EntryValue(False, 1, order=2)),
    ],
)
def test_what_may_both_widen_and_narrow_is_built_aside(
    before: EntryValue | None, after: EntryValue | None
) -> None:
    states = [state(*([] if value is None else [(admin(256), value)])) for value in (before, after)]
    todo = changed(*states)
    assert not todo.in_place
    assert (todo.target.instance, todo.target.epoch) == (2, 2)


def test_a_deny_of_the_admin_tier_goes_in_place_and_has_flows_judged_again() -> None:
    todo = changed(state(), state((admin(256), EntryValue(True, 1, order=5))))
    assert todo.in_place
    assert (todo.target.instance, todo.target.epoch) == (1, 2)


def test_what_the_service_wants_as_a_whole_is_built_aside() -> None:
    todo = changed(state(), state((web(256), ALLOW)), whole=True)
    assert not todo.in_place
    assert (todo.target.instance, todo.target.epoch) == (2, 2)


def test_entries_about_what_no_packet_has_are_written_in_place_and_judge_nothing_again() -> None:
    first = plan(None, state((web(256), ALLOW)), fresh_instance=1, fresh_epoch=1)
    assert first is not None
    entries = [(web(NUMBERS[0]), ALLOW), (web(NUMBERS[0], 81), DENY), (admin(NUMBERS[1]), DENY)]
    target = state((web(256), ALLOW), *entries)
    todo = plan(
        first.target,
        target,
        fresh_instance=2,
        fresh_epoch=2,
        dormant=lambda number, by_address: number in NUMBERS,
    )
    assert todo is not None and todo.in_place
    assert (todo.target.instance, todo.target.epoch, set(todo.puts)) == (1, 1, set(entries))
    back = plan(
        todo.target,
        state((web(256), ALLOW)),
        fresh_instance=3,
        fresh_epoch=3,
        dormant=lambda number, by_address: number in NUMBERS,
    )
    assert back is not None and back.in_place
    assert (back.target.epoch, set(back.removals)) == (1, {key for key, _ in entries})


def test_policies_in_audit_mode_are_written_in_place_and_judge_nothing_again() -> None:
    key = EntryKey(INGRESS, 256, 6, 80, 16, AUDIT)
    todo = changed(state(), state((key, DENY)), whole=True)
    assert todo.in_place
    assert (todo.target.instance, todo.target.epoch) == (1, 1)
    assert todo.puts == ((key, DENY),)
    audited = SubjectState(DirectionDefault(True, audit_enforced=True), DirectionDefault(), {}, 1)
    todo = changed(state(), audited)
    assert todo.in_place
    assert (todo.target.epoch, todo.target.audit_enforced, todo.puts) == (1, (True, False), ())


def test_flows_are_judged_again_when_that_is_asked_for() -> None:
    todo = changed(state(), state(), judged_again=True)
    assert todo.in_place
    assert (todo.target.epoch, todo.puts, todo.removals) == (2, (), ())


@pytest.mark.parametrize("port", [80, 81, 82])
def test_a_port_prefix_covers_its_range(port: int) -> None:
    assert EntryKey(INGRESS, 0, 6, 80, 15).covers(INGRESS, 300, 6, port) == (port in (80, 81))
