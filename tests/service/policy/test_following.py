# SPDX-License-Identifier: Apache-2.0
"""Following the policy feed of a store that another process writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.chassis import feed as feed_module
from services.chassis.db import Database
from services.chassis.feed import Feed
from services.policy.distribution import Distributor
from services.policy.groups import literal_prefixes
from services.policy.manifest import parse_manifests
from services.policy.policies import follow_policies
from services.policy.store import FEED, PolicyStore
from tests.service.policy.manifests import cidr_group, network_policy, to_cidrs
from tests.service.processes import WATCH_SECONDS

NUMBERS = {
    cidr: 0xFF0000 + index for index, cidr in enumerate(("10.0.0.0/8", "192.0.2.0/24", "192.0.2.128/25"))
}


@pytest.fixture
async def databases(tmp_path: Path) -> AsyncIterator[list[Database]]:
    """Two processes' views of one store."""
    url = f"sqlite:///{tmp_path}/policy.db"
    async with (
        await Database.open(url, "services.policy.migrations") as one,
        await Database.open(url, "services.policy.migrations") as other,
    ):
        yield [one, other]


def store_over(database: Database) -> PolicyStore:
    return PolicyStore(database, Feed(database, FEED), lambda: 1)


async def apply(store: PolicyStore, *documents: str, trace: str = "") -> int:
    manifests = parse_manifests("\n---\n".join(documents))
    numbers = {
        cidr: NUMBERS[cidr]
        for manifest in manifests
        for cidr in literal_prefixes(manifest.policy, manifest.group)
    }
    return (await store.apply(manifests, numbers, trace=trace)).revision


def simple(name: str) -> str:
    return network_policy("shop", name, {"podSelector": {}, "ingress": [{}]})


class Revisions:
    """The revisions that a distributor comes to, one after the other."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._moved = asyncio.Event()

    def note(self, revision: int) -> None:
        self.seen.append(revision)
        self._moved.set()

    async def reach(self, revision: int) -> None:
        async with asyncio.timeout(WATCH_SECONDS):
            while self.seen[-1] < revision:
                self._moved.clear()
                await self._moved.wait()


async def test_a_bundle_takes_effect_as_a_whole_wherever_batches_end(
    databases: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_AFTER", feed_module._AFTER.limit(2))
    writer = store_over(databases[0])
    revisions = Revisions()
    feed = Feed(databases[1], FEED)
    distributor = Distributor(advanced=revisions.note)
    ends = [
        await apply(writer, *(simple(f"p{n}") for n in range(5)), trace="one"),
        await apply(writer, simple("p5"), trace="two"),
        await apply(writer, *(simple(f"q{n}") for n in range(3)), trace="three"),
    ]
    refs = [
        manifest.policy.ref for manifest in parse_manifests("\n---\n".join(map(simple, ("p1", "p2", "p3"))))
    ]
    _, last = await writer.delete(refs, trace="four")
    task = asyncio.create_task(follow_policies(feed, store_over(databases[1]), distributor, keep=100))
    await revisions.reach(last)
    task.cancel()
    assert revisions.seen == [0, *ends, last]
    assert sorted(ref.name for ref in distributor.policies) == ["p0", "p4", "p5", "q0", "q1", "q2"]


async def test_who_has_missed_more_than_is_kept_starts_over(databases: list[Database]) -> None:
    writer = store_over(databases[0])
    feed = Feed(databases[1], FEED)
    store = store_over(databases[1])
    await apply(writer, simple("gone"), cidr_group("gone", "10.0.0.0/8"))
    group = cidr_group("office", "192.0.2.0/24")
    await apply(writer, to_cidrs("shop", "web", {"toCIDRSet": [{"cidrGroupRef": "office"}]}), group)
    policies, revision = await store.load()
    revisions = Revisions()
    distributor = Distributor(policies, revision, advanced=revisions.note)

    gone = [stored.ref for stored in policies if stored.ref.name == "gone"]
    await writer.delete(gone)
    last = await apply(writer, cidr_group("office", "192.0.2.128/25"), simple("new"))
    await Feed(databases[0], FEED).compact(1)
    task = asyncio.create_task(follow_policies(feed, store, distributor, keep=100))
    await revisions.reach(last)
    task.cancel()
    assert sorted(ref.name for ref in distributor.documents()) == ["new", "office", "web"]
    assert [use.cidr for use in distributor.engine.prefixes.values()] == ["192.0.2.128/25"]
    web = next(stored for ref, stored in distributor.policies.items() if ref.name == "web")
    assert web.revision < web.effective_revision <= last
    # The same as who has just started.
    fresh = Distributor(*await store.load())
    assert fresh.policies == distributor.policies
    assert fresh.groups == distributor.groups
