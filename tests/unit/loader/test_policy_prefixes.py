"""Prefixes of policies: they begin when the entries about them are in force, end at once, and stand behind
whatever else is said of an address.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import pytest
from fimbria.identity.v1 import identity_pb2
from fimbria.policy.v1 import policy_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from services.loader.ipcache.identity_labels import IdentityLabels
from services.loader.ipcache.sync import IpcacheSync
from services.loader.ipcache.table import Changes, Meaning
from services.loader.policy.prefix_table import Prefix, PrefixTable
from services.loader.policy.prefixes import PolicyPrefixes
from services.loader.policy.subjects import Subject, SubjectKey, SubjectTable, realized_from
from services.loader.policy.sync import PolicySync
from services.loader.streams.watermark import Watermark
from tests.unit.loader.fakes import Counting, FakeKernel, FakeServices
from tests.unit.loader.policy_service import (
    FakePolicyService,
    delta,
    entry,
    prefix,
    prefixes,
    progress,
    snapshot,
)
from tests.unit.loader.waiting import until

N1, N2 = 0xFF0000, 0xFF0001
TEN, SITE = "10.0.0.0/8", "2001:db8::/32"


async def no_feed(revision: int) -> AsyncIterator[identity_pb2.WatchIpCacheResponse]:
    await asyncio.Event().wait()
    yield identity_pb2.WatchIpCacheResponse()


@dataclass
class Loader:
    """What of a loader there is to prefixes, over a kernel that outlives it."""

    kernel: FakeKernel
    service: FakePolicyService
    table: SubjectTable
    ipcache: IpcacheSync
    prefixes: PolicyPrefixes
    sync: PolicySync
    running: asyncio.Task[None] | None = None

    @classmethod
    def over(cls, kernel: FakeKernel) -> Loader:
        start = max([0, *(max(row.instance, row.epoch) for row in kernel.rows.values())]) + 1
        table = SubjectTable(
            kernel,
            instances=Counting(start),
            epochs=Counting(start),
            numbers=Counting(max(kernel.rows, default=0) + 1),
            later=asyncio.get_running_loop().call_later,
        )
        reached = Watermark()
        ipcache = IpcacheSync(node="node-1", kernel=kernel, open_stream=no_feed, identity_revision=reached)
        found = PolicyPrefixes(kernel, ipcache)
        service = FakePolicyService()
        sync = PolicySync(
            node="node-1",
            open_stream=service.open,
            table=table,
            changed=lambda _: None,
            prefixes=found,
            identity_revision=reached,
        )
        return cls(kernel, service, table, ipcache, found, sync)

    def start(self) -> None:
        self.running = asyncio.create_task(self.sync.run())

    async def stop(self) -> None:
        if self.running is not None:
            self.running.cancel()
            with suppress(asyncio.CancelledError):
                await self.running
        await self.sync.close()
        await self.ipcache.close()

    async def told(self, policy: int) -> None:
        """Has everything acknowledged that was said so far."""
        self.service.say(progress(policy))
        await until(lambda: (policy, "") in self.service.acks)

    async def subscribed(self, identity: int = 300, *entries: pb.PolicyEntry) -> Subject:
        self.service.answer(identity, snapshot(0, *entries))
        subject = await self.sync.subscribe(SubjectKey(identity), 1, identity)
        self.sync.realize(subject)
        return subject

    @property
    def numbers(self) -> dict[str, int]:
        """What is in the ipcache."""
        return {prefix: meaning.identity for prefix, meaning in self.kernel.addresses.items()}


@pytest.fixture
async def loader() -> AsyncIterator[Loader]:
    made = Loader.over(FakeKernel())
    made.start()
    await made.service.hear("hello")
    yield made
    await made.stop()


BOTH = [
    prefix(TEN, N1, by_identity=True),
    prefix(SITE, N2, by_identity=True, by_address=True),
]


async def test_prefixes_go_where_they_are_used(loader: Loader) -> None:
    loader.service.say(prefixes(BOTH, whole=True))
    await loader.told(1)
    assert loader.numbers == {TEN: N1, SITE: N2}
    assert loader.kernel.blocks == {SITE: N2}


async def test_a_prefix_waits_for_a_subject_that_was_not_heard_of(loader: Loader) -> None:
    loader.service.say(prefixes(whole=True))
    subject = await loader.subscribed()
    await loader.told(1)
    loader.service.fall_silent()
    loader.service.break_stream()
    await loader.service.hear("watch", 2)
    loader.service.say(prefixes(BOTH, whole=True))
    loader.service.say(progress(2))
    await until(lambda: loader.prefixes.waiting == 2)
    assert loader.numbers == loader.kernel.blocks == {}
    assert (2, "") not in loader.service.acks
    loader.service.say(snapshot(subject.number, entry(N1), policy=2))
    await until(lambda: (2, "") in loader.service.acks)
    assert loader.numbers == {TEN: N1, SITE: N2}


async def test_a_prefix_waits_for_a_subject_that_failed(loader: Loader) -> None:
    loader.service.say(prefixes(whole=True))
    subject = await loader.subscribed()
    await loader.told(1)
    loader.kernel.fail = {"put_policy"}
    loader.service.say(delta(subject.number, [entry(N1)], policy=2))
    loader.service.say(prefixes(BOTH))
    loader.service.say(progress(2))
    (_, failed) = await loader.service.hear("ack", 2)
    assert list(failed.ack.failed_subjects) == [subject.number]
    assert "put_policy refused" in failed.ack.error
    assert loader.numbers == loader.kernel.blocks == {}
    loader.kernel.fail = set()
    await until(lambda: (2, "") in loader.service.acks)
    assert loader.numbers == {TEN: N1, SITE: N2}


async def test_entries_about_a_prefix_are_written_in_place_while_it_is_not_in_force(
    loader: Loader,
) -> None:
    loader.service.say(prefixes(whole=True))
    subject = await loader.subscribed(300, entry(256))
    await loader.told(1)
    before = loader.kernel.rows[subject.number]
    both = [entry(N1), entry(N1, 81, deny=True)]

    def same_place() -> bool:
        row = loader.kernel.rows[subject.number]
        return (row.instance, row.epoch) == (before.instance, before.epoch)

    loader.service.say(delta(subject.number, both, policy=2))
    loader.service.say(prefixes([prefix(TEN, N1, by_identity=True)]))
    await loader.told(2)
    assert same_place()
    loader.service.say(delta(subject.number, [entry(N1, deny=True), entry(N1, 81)], policy=3))
    await loader.told(3)
    assert not same_place(), "in force it makes a difference"
    before = loader.kernel.rows[subject.number]
    loader.service.say(prefixes(deletes=[TEN]))
    loader.service.say(delta(subject.number, deletes=both, policy=4))
    await loader.told(4)
    assert same_place()


async def test_a_prefix_that_could_not_be_ended_is_not_taken_for_dormant(loader: Loader) -> None:
    loader.service.say(prefixes(BOTH, whole=True))
    await loader.told(1)
    dormant = loader.prefixes.dormant
    assert not dormant(N1, False) and dormant(N1, True) and dormant(N2 + 1, False)
    assert not dormant(300, False)
    loader.kernel.fail = {"write_ipcache"}
    loader.service.say(prefixes(deletes=[TEN]))
    await until(lambda: bool(loader.prefixes.problem))
    assert not dormant(N1, False)
    loader.kernel.fail = set()
    await loader.told(2)
    assert dormant(N1, False)


async def test_a_prefix_ends_before_what_is_said_next(loader: Loader) -> None:
    loader.service.say(prefixes(BOTH, whole=True))
    subject = await loader.subscribed(300, entry(N1), entry(N2))
    await loader.told(1)
    loader.kernel.writes.clear()
    loader.service.say(prefixes(deletes=[TEN, SITE]))
    loader.service.say(delta(subject.number, deletes=[entry(N1), entry(N2)], policy=2))
    await loader.told(2)
    assert loader.numbers == loader.kernel.blocks == {}
    assert loader.kernel.writes[:2] == ["write_prefixes", "write_ipcache"]
    assert "delete_policy" in loader.kernel.writes[2:]


async def test_one_use_of_a_prefix_ends_while_the_other_goes_on(loader: Loader) -> None:
    loader.service.say(prefixes([prefix(TEN, N1, by_identity=True, by_address=True)], whole=True))
    await loader.told(1)
    loader.service.say(prefixes([prefix(TEN, N1, by_address=True)]))
    await loader.told(2)
    assert (loader.numbers, loader.kernel.blocks) == ({}, {TEN: N1})


@pytest.mark.parametrize("refused", ["write_prefixes", "write_ipcache"])
async def test_nothing_is_acknowledged_before_the_prefixes_are_in_the_kernel(
    loader: Loader, refused: str
) -> None:
    loader.service.say(prefixes(whole=True))
    await loader.told(1)
    loader.kernel.fail = {refused}
    loader.service.say(prefixes(BOTH))
    loader.service.say(progress(2))
    (_, failed) = await loader.service.hear("ack", 2)
    assert failed.ack.revision.policy == 1
    assert failed.ack.error.startswith("prefixes: ")
    assert refused in failed.ack.error
    loader.kernel.fail = set()
    await until(lambda: (2, "") in loader.service.acks)
    assert loader.numbers == {TEN: N1, SITE: N2}
    assert loader.kernel.blocks == {SITE: N2}


async def test_flows_are_judged_again_where_another_prefix_may_hold_an_address(loader: Loader) -> None:
    loader.service.say(prefixes(whole=True))
    by_address = await loader.subscribed(300, entry(N2, by_address=True))
    other = await loader.subscribed(301, entry(N1))
    await loader.told(1)
    before = {subject.number: loader.kernel.rows[subject.number].epoch for subject in (by_address, other)}
    loader.service.say(prefixes(BOTH))
    await loader.told(2)
    assert loader.kernel.rows[by_address.number].epoch > before[by_address.number]
    assert loader.kernel.rows[other.number].epoch == before[other.number]
    assert loader.kernel.writes[-1] == "put_subject" or "write_prefixes" in loader.kernel.writes
    order = [each for each in loader.kernel.writes if each in ("write_prefixes", "put_subject")]
    assert order[-2:] == ["write_prefixes", "put_subject"]


async def test_a_pod_keeps_its_identity_when_a_policy_names_its_address(loader: Loader) -> None:
    loader.ipcache.put_local(["10.1.1.1"], 300, 0)
    loader.service.say(prefixes([prefix("10.1.1.1/32", N1, by_identity=True, by_address=True)], whole=True))
    await loader.told(1)
    assert loader.numbers == {"10.1.1.1/32": 300}
    assert loader.kernel.blocks == {"10.1.1.1/32": N1}
    loader.ipcache.remove_local(["10.1.1.1"])
    assert loader.numbers == {"10.1.1.1/32": N1}
    loader.ipcache.set_nodes({"10.1.1.1/32": Meaning(6)}, complete=True)
    assert loader.numbers == {"10.1.1.1/32": 6}


async def test_a_service_that_names_no_prefixes_changes_nothing_but_leftovers(loader: Loader) -> None:
    await loader.stop()
    kernel = FakeKernel()
    kernel.addresses = {TEN: Meaning(N1), "10.244.1.7/32": Meaning(300)}
    kernel.blocks = {TEN: N1}
    again = Loader.over(kernel)
    again.start()
    await again.service.hear("hello")
    await again.told(1)
    assert again.numbers == {"10.244.1.7/32": 300}
    assert kernel.blocks == {}
    await again.stop()


async def test_a_start_writes_what_differs_and_only_once_all_prefixes_are_known(loader: Loader) -> None:
    loader.service.say(prefixes(BOTH, whole=True))
    subject = await loader.subscribed(300, entry(N1))
    await loader.told(1)
    await loader.stop()
    loader.kernel.writes.clear()
    again = Loader.over(loader.kernel)
    head = loader.kernel.rows[subject.number]
    realized = realized_from(head, loader.kernel.entries[head.instance])
    again.table.restore(SubjectKey(300), subject.number, 1, 1, realized)
    again.ipcache.set_nodes({}, complete=True)
    assert again.numbers == {TEN: N1, SITE: N2}, "it is not known yet what is a leftover"
    again.start()
    await again.service.hear("watch")
    fresh = prefix("192.0.2.0/24", 0xFF0002, by_identity=True, by_address=True)
    again.service.say(prefixes([BOTH[0], fresh], whole=True))
    await until(lambda: again.kernel.blocks == {})
    assert again.numbers == {TEN: N1}, "what is new waits, what was there does not go away for it"
    again.service.say(snapshot(subject.number, entry(N1)))
    await again.told(1)
    assert again.numbers == {TEN: N1, "192.0.2.0/24": 0xFF0002}
    assert again.kernel.blocks == {"192.0.2.0/24": 0xFF0002}
    assert loader.kernel.writes == ["write_prefixes", "write_ipcache"] * 2
    await again.stop()


async def test_a_start_that_finds_everything_right_writes_nothing(loader: Loader) -> None:
    loader.service.say(prefixes(BOTH, whole=True))
    await loader.told(1)
    await loader.stop()
    loader.kernel.writes.clear()
    again = Loader.over(loader.kernel)
    again.start()
    await again.service.hear("hello")
    again.service.say(prefixes(BOTH, whole=True))
    await again.told(1)
    assert loader.kernel.writes == []
    await again.stop()


async def test_what_somebody_else_changed_is_found_and_put_right(loader: Loader) -> None:
    loader.service.say(prefixes(BOTH, whole=True))
    subject = await loader.subscribed(300, entry(N2, by_address=True))
    await loader.told(1)
    assert await loader.sync.verify_prefixes() == 0
    epoch = loader.kernel.rows[subject.number].epoch
    loader.kernel.blocks = {"192.0.2.0/24": 7}
    assert await loader.sync.verify_prefixes() == 2
    assert loader.kernel.blocks == {SITE: N2}
    assert loader.kernel.rows[subject.number].epoch > epoch


async def test_what_is_left_out_of_a_prefix_is_there_as_long_as_that_is(loader: Loader) -> None:
    orders: list[list[str]] = []
    write_prefixes, write_ipcache = loader.kernel.write_prefixes, loader.kernel.write_ipcache

    def prefixes_written(puts: Mapping[str, int], deletes: Iterable[str]) -> None:
        deleted = list(deletes)
        orders.append([*deleted, *puts])
        write_prefixes(puts, deleted)

    def ipcache_written(changes: Changes) -> None:
        orders.append([*changes.deletes, *changes.puts])
        write_ipcache(changes)

    loader.kernel.write_prefixes = prefixes_written  # type: ignore[method-assign]
    loader.kernel.write_ipcache = ipcache_written  # type: ignore[method-assign]
    nested = [f"10.0.0.0/{length}" for length in (8, 9, 16, 20, 24)]
    named = [
        prefix(cidr, N1 + number, by_identity=True, by_address=True) for number, cidr in enumerate(nested)
    ]
    loader.service.say(prefixes(named, whole=True))
    await loader.told(1)
    assert orders == [nested[::-1]] * 2
    loader.service.say(prefixes(deletes=nested))
    await loader.told(2)
    assert orders[2:] == [nested] * 2


async def test_nonsense_breaks_the_stream_and_says_why(loader: Loader) -> None:
    loader.service.say(prefixes([prefix("10.0.0.1/8", N1, by_identity=True)], whole=True))
    await until(lambda: "10.0.0.1/8" in loader.sync.state.error)
    assert loader.numbers == {}


async def test_flows_name_prefixes_by_their_labels(loader: Loader) -> None:
    labels = IdentityLabels(FakeServices(), loader.prefixes.labels)
    loader.service.say(prefixes(BOTH, whole=True))
    await loader.told(1)
    assert labels.get(N1) == (f"cidr:{TEN}", "reserved:world", "reserved:world-ipv4")
    assert labels.get(N2) == (f"cidr:{SITE}", "reserved:world", "reserved:world-ipv6")
    assert labels.get(300) == ()
    await labels.close()


CIDRS = ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24")
named = st.dictionaries(st.sampled_from(CIDRS), st.tuples(st.booleans(), st.booleans()))
steps = st.tuples(named, st.sets(st.sampled_from(CIDRS)), st.booleans(), st.booleans())


@given(st.dictionaries(st.sampled_from(CIDRS), st.just(N1)), st.lists(steps, max_size=6))
def test_after_a_release_exactly_what_was_named_is_in_force(
    left: dict[str, int], told: list[tuple[dict[str, tuple[bool, bool]], set[str], bool, bool]]
) -> None:
    table = PrefixTable(left, left)
    wanted: dict[str, Prefix] = {}
    # By use: what is in force.
    force: tuple[dict[str, int], dict[str, int]] = (dict(left), dict(left))
    complete = False
    for names, deletes, whole, release in told:
        whole = whole or not complete
        complete = True
        upserts = [Prefix(cidr, N1 + CIDRS.index(cidr), *uses) for cidr, uses in names.items()]
        if whole:
            wanted = {}
        wanted = {cidr: each for cidr, each in wanted.items() if cidr not in deletes}
        wanted |= {each.cidr: each for each in upserts}
        changes = table.update(upserts, deletes, whole=whole)
        for use, change in zip(force, (changes.by_identity, changes.by_address), strict=True):
            assert all(number is None and cidr in use for cidr, number in change.items())
            for cidr in change:
                del use[cidr]
        if release:
            changes = table.release()
            for use, change in zip(force, (changes.by_identity, changes.by_address), strict=True):
                use.update({cidr: number for cidr, number in change.items() if number is not None})
            assert table.waiting == 0
        identities = {each.cidr: each.number for each in wanted.values() if each.by_identity}
        addresses = {each.cidr: each.number for each in wanted.values() if each.by_address}
        if table.waiting == 0:
            assert force == (identities, addresses)
        assert force[0].keys() <= identities.keys() and force[1].keys() <= addresses.keys()
        for each in wanted.values():
            assert table.cidr(each.number) == each.cidr
        for number in range(N1, N1 + len(CIDRS)):
            for by_address in (False, True):
                there = number in force[by_address].values()
                assert table.in_force(number, by_address=by_address) == there
