"""The subscription: what is said goes into the kernel in order, and is acknowledged only when it is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from fimbria.policy.v1 import policy_pb2 as pb

from services.chassis.errors import Unavailable
from services.loader.policy.entries import (
    ADMIN,
    AUDIT,
    BASELINE,
    BY_ADDRESS,
    INGRESS,
    NORMAL,
    EntryKey,
    EntryValue,
)
from services.loader.policy.subjects import Subject, SubjectKey, SubjectTable, realized_from
from services.loader.policy.sync import PolicySync
from tests.unit.loader.fakes import Counting, FakeKernel
from tests.unit.loader.policy_service import FakePolicyService, delta, entry, progress, snapshot
from tests.unit.loader.waiting import until


@dataclass
class Setup:
    kernel: FakeKernel
    table: SubjectTable
    service: FakePolicyService
    sync: PolicySync
    changed: list[tuple[int, str]] = field(default_factory=list)

    async def subscribed(self, identity: int = 300, user: int = 1) -> Subject:
        subject = await self.sync.subscribe(SubjectKey(identity), 1, user)
        self.sync.realize(subject)
        return subject

    def entries(self, subject: Subject) -> set[EntryKey]:
        head = self.kernel.rows[subject.number]
        return set(self.kernel.entries.get(head.instance, {}))


def key(identity: int) -> EntryKey:
    return EntryKey(INGRESS, identity, 6, 80, 16)


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    kernel = FakeKernel()
    table = SubjectTable(
        kernel,
        instances=Counting(),
        epochs=Counting(),
        numbers=Counting(),
        later=asyncio.get_running_loop().call_later,
    )
    service = FakePolicyService()
    changed: list[tuple[int, str]] = []
    sync = PolicySync(
        node="node-1",
        open_stream=service.open,
        table=table,
        changed=lambda subject: changed.append((subject.number, subject.error)),
    )
    running = asyncio.create_task(sync.run())
    yield Setup(kernel, table, service, sync, changed)
    running.cancel()
    await sync.close()
    with suppress(asyncio.CancelledError):
        await running


async def test_the_first_thing_said_is_who_it_is(setup: Setup) -> None:
    (hello,) = await setup.service.hear("hello")
    assert hello.hello.node == "node-1"
    assert setup.service.heard[0] is hello


async def test_a_subscription_ends_in_the_kernel(setup: Setup) -> None:
    setup.service.answer(300, snapshot(0, entry(256)))
    subject = await setup.subscribed()
    (watch,) = await setup.service.hear("watch")
    assert (watch.watch.subject, watch.watch.identity, watch.watch.identity_revision) == (
        subject.number,
        300,
        1,
    )
    assert setup.entries(subject) == {key(256)}
    assert setup.sync.rules == {1: "CiliumNetworkPolicy shop/web spec.ingress[0]"}


async def test_a_second_endpoint_of_a_subject_asks_nobody(setup: Setup) -> None:
    setup.service.answer(300, snapshot(0, entry(256)))
    first = await setup.subscribed(user=1)
    second = await setup.subscribed(user=2)
    assert first is second
    assert len(await setup.service.hear("watch")) == 1


async def test_a_delta_is_in_force_when_it_is_acknowledged(setup: Setup) -> None:
    setup.service.answer(300, snapshot(0, entry(256)))
    subject = await setup.subscribed()
    setup.service.say(delta(subject.number, [entry(257)], [entry(256)], policy=5))
    setup.service.say(progress(5, 9))
    await setup.service.hear("ack")
    assert setup.entries(subject) == {key(257)}
    assert setup.service.acks == [(5, "")]
    assert (setup.sync.policy_revision.value, setup.sync.identity_revision.value) == (5, 9)
    assert subject.realized is not None
    assert subject.realized.revision == 5


@pytest.mark.parametrize("transition", list(pb.Transition.values()))
async def test_what_must_come_at_once_is_built_aside(
    setup: Setup, transition: pb.Transition.ValueType
) -> None:
    setup.service.answer(300, snapshot(0, entry(256)))
    subject = await setup.subscribed()
    before = setup.kernel.rows[subject.number]
    setup.service.say(delta(subject.number, [entry(257)], policy=2, transition=transition))
    setup.service.say(progress(2))
    await setup.service.hear("ack")
    whole = transition in (pb.TRANSITION_UNSPECIFIED, pb.TRANSITION_SWAP)
    assert (setup.kernel.rows[subject.number].instance != before.instance) == whole
    assert setup.entries(subject) == {key(256), key(257)}


async def test_what_failed_is_still_to_come_at_once_when_more_is_said(setup: Setup) -> None:
    setup.service.answer(300, snapshot(0, entry(256)))
    subject = await setup.subscribed()
    before = setup.kernel.rows[subject.number]
    setup.kernel.fail = {"put_subject"}
    setup.service.say(delta(subject.number, [entry(257)], policy=2, transition=pb.TRANSITION_SWAP))
    await until(lambda: bool(subject.error))
    setup.kernel.fail = set()
    setup.service.say(delta(subject.number, [entry(258)], policy=3))
    setup.service.say(progress(3))
    await until(lambda: (3, "") in setup.service.acks)
    assert setup.kernel.rows[subject.number].instance != before.instance
    assert setup.entries(subject) == {key(256), key(257), key(258)}


async def test_entries_are_told_apart_by_all_that_they_are_about(setup: Setup) -> None:
    alike = [entry(256) for _ in range(5)]
    alike[1].tier, alike[1].order, alike[1].passes = pb.TIER_ADMIN, 5, True
    alike[2].tier, alike[2].order = pb.TIER_BASELINE, 6
    alike[3].by_address = True
    alike[4].audit = True
    setup.service.answer(300, snapshot(0, *alike))
    subject = await setup.subscribed()
    assert subject.realized is not None
    spaces = {key.space: value for key, value in subject.realized.entries.items()}
    assert spaces == {
        NORMAL: EntryValue(False, 1),
        ADMIN: EntryValue(False, 1, passes=True, order=5),
        BASELINE: EntryValue(False, 1, order=6),
        BY_ADDRESS: EntryValue(False, 1),
        AUDIT: EntryValue(False, 1),
    }
    setup.service.say(delta(subject.number, deletes=alike[1:], policy=2))
    setup.service.say(progress(2))
    await setup.service.hear("ack")
    assert setup.entries(subject) == {key(256)}


async def test_a_tier_that_is_not_known_breaks_the_stream(setup: Setup) -> None:
    strange = pb.PolicyEntry(direction=pb.DIRECTION_INGRESS, identity=256)
    strange.tier = 9  # type: ignore[assignment]
    setup.service.answer(300, snapshot(0, strange))
    with pytest.raises(Unavailable, match="tier 9, expected 0 to 3"):
        await setup.sync.subscribe(SubjectKey(300), 1, 1)


async def test_a_failed_write_is_told_retried_and_then_acknowledged(setup: Setup) -> None:
    setup.service.answer(300, snapshot(0, entry(256)))
    subject = await setup.subscribed()
    setup.service.say(progress(1))
    await setup.service.hear("ack")
    setup.kernel.fail = {"put_policy"}
    setup.service.say(delta(subject.number, [entry(257)], policy=2))
    setup.service.say(progress(2))
    await setup.service.hear("ack", 2)
    told, error = setup.service.acks[1]
    assert told == 1
    assert "put_policy refused" in error
    assert setup.changed[-1][1]
    assert setup.sync.policy_revision.value == 1
    setup.kernel.fail = set()
    await setup.service.hear("ack", 3)
    assert setup.service.acks[-1] == (2, "")
    assert setup.entries(subject) == {key(256), key(257)}
    assert setup.changed[-1] == (subject.number, "")


async def test_after_a_break_everything_is_watched_anew_before_anything_is_acknowledged(setup: Setup) -> None:
    setup.service.answer(300, snapshot(0, entry(256)))
    subject = await setup.subscribed()
    setup.service.say(progress(1))
    await setup.service.hear("ack")
    setup.service.fall_silent()
    setup.service.break_stream()
    await setup.service.hear("hello", 2)
    await setup.service.hear("watch", 2)
    setup.service.say(progress(4))
    await asyncio.sleep(0.02)
    assert setup.service.acks == [(1, "")]
    assert setup.entries(subject) == {key(256)}, "what was in force stays in force"
    setup.service.say(snapshot(subject.number, entry(258), policy=4))
    await setup.service.hear("ack", 2)
    assert setup.service.acks[-1] == (4, "")
    assert setup.entries(subject) == {key(258)}


async def test_a_restored_subject_counts_as_unheard_of(setup: Setup) -> None:
    setup.service.answer(300, snapshot(0, entry(256)))
    subject = await setup.subscribed()
    head = setup.kernel.rows[subject.number]
    fresh = SubjectTable(
        setup.kernel,
        instances=Counting(50),
        epochs=Counting(50),
        numbers=Counting(50),
        later=asyncio.get_running_loop().call_later,
    )
    fresh.restore(
        SubjectKey(300), subject.number, 1, 1, realized_from(head, setup.kernel.entries[head.instance])
    )
    service = FakePolicyService()
    sync = PolicySync(node="node-1", open_stream=service.open, table=fresh, changed=lambda _: None)
    running = asyncio.create_task(sync.run())
    try:
        await service.hear("watch")
        service.say(progress(1))
        await asyncio.sleep(0.02)
        assert service.acks == []
        setup.kernel.writes.clear()
        service.say(snapshot(subject.number, entry(256)))
        await service.hear("ack")
        assert setup.kernel.writes == [], "what is in force already is not written"
    finally:
        running.cancel()


async def test_without_the_service_a_new_subject_is_refused_soon(setup: Setup) -> None:
    await setup.service.hear("hello")
    waiting = asyncio.create_task(setup.sync.subscribe(SubjectKey(300), 1, 1))
    await setup.service.hear("watch")
    setup.service.break_stream()
    with pytest.raises(Unavailable) as refused:
        await waiting
    assert refused.value.reason == "POLICY_UNAVAILABLE"
    assert list(setup.table) == []


async def test_the_last_user_ends_the_watch(setup: Setup) -> None:
    setup.service.answer(300, snapshot(0, entry(256)))
    subject = await setup.subscribed()
    setup.sync.release(subject, 1)
    (unwatch,) = await setup.service.hear("unwatch")
    assert unwatch.unwatch.subject == subject.number
    setup.service.say(delta(subject.number, [entry(257)], policy=2))
    setup.service.say(progress(2))
    await setup.service.hear("ack")
    await until(lambda: setup.kernel.rows == {})
    assert setup.kernel.entries == {}
