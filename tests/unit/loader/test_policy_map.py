"""Plans: they end in what was wanted, and no packet on the way gets a verdict that is neither the old nor
the new one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.loader.policy.entries import EGRESS, INGRESS, EntryKey, EntryValue
from services.loader.policy.plan import DirectionDefault, Plan, Realized, SubjectState, apply_delta, plan
from services.loader.policy.shape import shape_of

IDENTITIES = (0, 256, 257)
PROTOCOLS = (6, 17)
PORTS = (80, 81, 443)
PACKETS = [
    (direction, identity, protocol, port)
    for direction in (INGRESS, EGRESS)
    for identity in (256, 257, 258)
    for protocol in PROTOCOLS
    for port in (80, 81, 8080)
]


@st.composite
def keys(draw: st.DrawFn) -> EntryKey:
    protocol = draw(st.sampled_from((0, *PROTOCOLS)))
    length = draw(st.sampled_from((0, 15, 16))) if protocol else 0
    port = draw(st.sampled_from(PORTS)) & (0xFFFF << (16 - length)) & 0xFFFF if length else 0
    return EntryKey(
        draw(st.sampled_from((INGRESS, EGRESS))), draw(st.sampled_from(IDENTITIES)), protocol, port, length
    )


values = st.builds(EntryValue, st.booleans(), st.integers(0, 3))
defaults = st.builds(DirectionDefault, st.booleans())
states = st.builds(
    SubjectState, defaults, defaults, st.dictionaries(keys(), values, max_size=8), st.integers(1, 9)
)


class Model:
    """The two maps, and what a packet finds there."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, EntryKey], EntryValue] = {}
        self.row: Realized | None = None

    def verdict(self, packet: tuple[int, int, int, int]) -> bool:
        if self.row is None:
            return False
        found = [
            value
            for (instance, key), value in self.entries.items()
            if instance == self.row.instance and key.covers(*packet)
        ]
        if any(value.deny for value in found):
            return False
        return bool(found) or not self.row.enforced(packet[0])

    def verdicts(self) -> list[bool]:
        return [self.verdict(packet) for packet in PACKETS]

    def apply(self, todo: Plan) -> Iterator[str]:
        """Makes one write after the other."""
        for key, value in todo.puts:
            self.entries[todo.target.instance, key] = value
            yield f"put {key}"
        for key in todo.removals:
            del self.entries[todo.target.instance, key]
            yield f"remove {key}"
        self.row = todo.target
        yield "row"
        for key in todo.retired:
            del self.entries[todo.retired_instance, key]
            yield f"retire {key}"


def state(*entries: tuple[EntryKey, EntryValue], enforced: bool = True) -> SubjectState:
    return SubjectState(DirectionDefault(enforced), DirectionDefault(), dict(entries), 1)


def web(identity: int, port: int = 80) -> EntryKey:
    return EntryKey(INGRESS, identity, 6, port, 16)


ALLOW, DENY = EntryValue(False, 1), EntryValue(True, 2)


@settings(max_examples=400, deadline=None)
@given(st.lists(states, min_size=1, max_size=5))
def test_every_plan_ends_in_the_wanted_state_and_no_packet_sees_a_mix(wanted: list[SubjectState]) -> None:
    model = Model()
    current: Realized | None = None
    epochs: list[int] = []
    for number, target in enumerate(wanted, start=1):
        instance, epoch = number * 10, number * 100
        todo = plan(current, target, fresh_instance=instance, fresh_epoch=epoch)
        if current is not None:
            touched = set(current.entries.keys() ^ target.entries.keys())
            touched |= {key for key, value in target.entries.items() if current.entries.get(key) != value}
            quick = plan(current, target, fresh_instance=instance, fresh_epoch=epoch, touched=touched)
            assert (quick is None) == (todo is None)
            if quick is not None and todo is not None:
                assert quick.target == todo.target
                assert (set(quick.puts), set(quick.removals)) == (set(todo.puts), set(todo.removals))
        if todo is not None:
            assert todo.target.shape == shape_of(target.entries)
        before = model.verdicts()
        if todo is None:
            assert current is not None
            assert current.entries == target.entries
            continue
        final = Model()
        final.row = todo.target
        final.entries = {(todo.target.instance, key): value for key, value in target.entries.items()}
        after = final.verdicts()
        seen = [before]
        for step in model.apply(todo):
            now = model.verdicts()
            for packet, was, is_now, will in zip(PACKETS, before, now, after, strict=True):
                assert is_now in (was, will), (packet, step)
            seen.append(now)
            if not todo.in_place and step != "row" and "retire" not in step:
                assert now == before, "nothing shows before the row says so"
        for turns in zip(*seen, strict=True):
            assert sum(a != b for a, b in itertools.pairwise(turns)) <= 1, "a verdict turns once"
        assert model.verdicts() == after
        assert {key: value for (_, key), value in model.entries.items()} == target.entries
        narrowed = any(was and not will for was, will in zip(before, after, strict=True))
        if narrowed:
            assert current is not None
            assert todo.target.epoch not in (current.epoch, *epochs), "established flows are judged again"
        epochs.append(todo.target.epoch)
        current = todo.target


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


@pytest.mark.parametrize("port", [80, 81, 82])
def test_a_port_prefix_covers_its_range(port: int) -> None:
    assert EntryKey(INGRESS, 0, 6, 80, 15).covers(INGRESS, 300, 6, port) == (port in (80, 81))
