"""Subjects: shared, realized, retried, and gone with their last user."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.loader.interfaces import DatapathError
from services.loader.policy.entries import INGRESS, EntryKey, EntryValue
from services.loader.policy.plan import DirectionDefault, SubjectState
from services.loader.policy.subjects import Subject, SubjectKey, SubjectTable, realized_from
from tests.unit.loader.fakes import Counting, FakeKernel

WEB = EntryKey(INGRESS, 256, 6, 80, 16)
API = EntryKey(INGRESS, 257, 6, 80, 16)


class Later:
    """Calls that are due some time."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def __call__(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds > 0
        self.calls.append(call)

    def run(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def later() -> Later:
    return Later()


@pytest.fixture
def table(kernel: FakeKernel, later: Later) -> SubjectTable:
    return SubjectTable(kernel, instances=Counting(), epochs=Counting(), numbers=Counting(), later=later)


def allowing(*keys: EntryKey, revision: int = 1) -> SubjectState:
    return SubjectState(
        DirectionDefault(True),
        DirectionDefault(),
        {key: EntryValue(False, 1) for key in keys},
        revision,
    )


def realized(table: SubjectTable, *keys: EntryKey, user: int = 1) -> Subject:
    subject, _ = table.acquire(SubjectKey(300), 1, user)
    subject.want(allowing(*keys))
    table.realize(subject)
    return subject


def test_endpoints_with_the_same_identity_and_ports_share_a_subject(table: SubjectTable) -> None:
    first, new = table.acquire(SubjectKey(300), 1, user=1)
    second, again = table.acquire(SubjectKey(300), 1, user=2)
    assert (new, again) == (True, False)
    assert first is second
    assert first.users == {1, 2}


def test_a_subject_without_a_row_is_realized_entries_first(table: SubjectTable, kernel: FakeKernel) -> None:
    subject = realized(table, WEB, API)
    assert kernel.writes == ["put_policy", "put_policy", "put_subject"]
    assert subject.current
    head = kernel.rows[subject.number]
    assert kernel.entries[head.instance].keys() == {WEB, API}


def test_the_last_user_takes_the_subject_along(table: SubjectTable, kernel: FakeKernel, later: Later) -> None:
    subject = realized(table, WEB)
    table.acquire(SubjectKey(300), 1, user=2)
    assert not table.release(subject, 1)
    assert table.release(subject, 2)
    assert kernel.rows, "a packet may be on its way to it"
    later.run()
    assert not kernel.rows
    assert not kernel.entries
    assert table.get(subject.number) is None


def test_a_retired_instance_is_removed_only_after_a_while(
    table: SubjectTable, kernel: FakeKernel, later: Later
) -> None:
    subject = realized(table, WEB)
    old = kernel.rows[subject.number].instance
    subject.want(allowing(API))
    table.realize(subject)
    assert kernel.rows[subject.number].instance != old
    assert old in kernel.entries
    later.run()
    assert old not in kernel.entries


@pytest.mark.parametrize("broken", ["put_policy", "put_subject"])
def test_a_refused_write_leaves_the_old_policy_in_force_and_says_so(
    table: SubjectTable, kernel: FakeKernel, later: Later, broken: str
) -> None:
    subject = realized(table, WEB)
    before = kernel.rows[subject.number]
    subject.want(allowing(API, revision=2))
    kernel.fail = {broken}
    with pytest.raises(DatapathError):
        table.realize(subject)
    assert kernel.rows[subject.number] == before
    assert kernel.entries[before.instance].keys() == {WEB}
    assert broken in subject.error
    assert table.failed() == [subject]
    kernel.fail = set()
    table.realize(subject)
    assert subject.current
    assert table.failed() == []
    head = kernel.rows[subject.number]
    later.run()
    assert kernel.entries.keys() == {head.instance}
    assert kernel.entries[head.instance].keys() == {API}


def test_a_half_made_change_in_place_is_completed_from_what_the_kernel_holds(
    table: SubjectTable, kernel: FakeKernel
) -> None:
    subject = realized(table, WEB)
    subject.want(allowing(WEB, API, revision=2))
    kernel.fail = {"put_subject"}
    with pytest.raises(DatapathError):
        table.realize(subject)
    kernel.fail = set()
    table.realize(subject)
    head = kernel.rows[subject.number]
    assert kernel.entries[head.instance].keys() == {WEB, API}
    assert head.revision in (1, 2)


def test_after_a_restart_an_unchanged_subject_is_not_written(
    table: SubjectTable, kernel: FakeKernel, later: Later
) -> None:
    before = realized(table, WEB)
    head = kernel.rows[before.number]
    kernel.writes.clear()
    fresh = SubjectTable(
        kernel, instances=Counting(50), epochs=Counting(50), numbers=Counting(50), later=later
    )
    subject = fresh.restore(
        before.key, before.number, 1, user=1, realized=realized_from(head, kernel.entries[head.instance])
    )
    subject.want(allowing(WEB))
    assert fresh.realize(subject) is None
    assert fresh.sweep() == (0, 0)
    assert kernel.writes == []


def test_what_belongs_to_no_subject_is_swept(table: SubjectTable, kernel: FakeKernel) -> None:
    kept = realized(table, WEB)
    kernel.entries[99] = {API: EntryValue(False)}
    kernel.rows[88] = kernel.rows[kept.number]
    assert table.sweep() == (1, 1)
    assert kernel.rows.keys() == {kept.number}
    assert 99 not in kernel.entries


def test_rewriting_repairs_what_somebody_else_has_broken(table: SubjectTable, kernel: FakeKernel) -> None:
    subject = realized(table, WEB, API)
    del kernel.entries[kernel.rows[subject.number].instance][API]
    table.rewrite(subject)
    assert kernel.entries[kernel.rows[subject.number].instance].keys() == {WEB, API}
    del kernel.rows[subject.number]
    table.rewrite(subject)
    assert subject.number in kernel.rows
