# SPDX-License-Identifier: Apache-2.0
"""A thousand updates in a row leave the process as big as it was."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path

import pytest

from services.chassis import feed as feed_module
from services.chassis.db import Database
from services.chassis.feed import Feed
from services.policy.convert import subscribe_message
from services.policy.distribution import Distributor, Subscription, Watch
from services.policy.engine import Subject
from services.policy.groups import literal_prefixes
from services.policy.manifest import parse_manifests
from services.policy.policies import follow_policies
from services.policy.selector import Labels
from services.policy.store import FEED, PolicyStore
from tests.service.policy.manifests import cidr_group, ip_block, to_cidrs
from tests.service.processes import WATCH_SECONDS

UPDATES = 1000
TOGETHER = 8
# The interpreter's own free lists take some; a policy kept once an update would take 5 MB.
MOST_BYTES = 200 * 1024
IDENTITIES = {
    300: Labels(["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"]),
    301: Labels(["k8s:app=client", "k8s:io.kubernetes.pod.namespace=shop"]),
    2: Labels(["reserved:world"]),
}


def document(number: int) -> str:
    """What the update with this number applies: prefixes, groups and lines come and go."""
    change = number % 7
    items = (
        to_cidrs("shop", f"p{change}", {"toCIDR": [f"10.{number % 50}.0.0/16"]}),
        to_cidrs("shop", "grouped", {"toCIDRSet": [{"cidrGroupRef": "group"}]}, app="client"),
        cidr_group("group", f"192.0.{change}.0/24", "198.18.0.0/15"),
        ip_block("shop", "block", f"10.{change}.0.0/16", f"10.{change}.7.0/24"),
    )
    return "\n" * change + items[number % 4]


async def test_a_thousand_updates_do_not_grow_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The newest events are kept, up to a number that this many updates would not reach.
    monkeypatch.setattr(feed_module, "TAIL_EVENTS", 8)
    numbers: dict[str, int] = {}
    url = f"sqlite:///{tmp_path}/policy.db"
    async with await Database.open(url, "services.policy.migrations") as database:
        feed = Feed(database, FEED)
        store = PolicyStore(database, feed, lambda: 0)
        distributor = Distributor()
        distributor.take_all_identities(IDENTITIES, 1)
        subscription = distributor.subscribe("node-1")
        distributor.watch(subscription, Watch(1, Subject(300)))
        following = asyncio.create_task(follow_policies(feed, store, distributor, keep=100))

        async def update(number: int) -> int:
            manifests = parse_manifests(document(number))
            for manifest in manifests:
                for cidr in literal_prefixes(manifest.policy, manifest.group):
                    numbers.setdefault(cidr, 0xFF0000 + len(numbers))
            revision = (await store.apply(manifests, numbers)).revision
            if number % 5 == 0:
                refs = [manifest.policy.ref for manifest in manifests]
                revision = (await store.delete(refs))[1]
            return revision

        async def updates(first: int, last: int) -> int:
            """A few at a time, which then share a write to the disk; returns how many messages followed."""
            read = 0
            for start in range(first, last, TOGETHER):
                revisions = await asyncio.gather(*map(update, range(start, start + TOGETHER)))
                read += await read_until(subscription, max(revisions))
            gc.collect()
            return read

        await updates(0, 200)
        tracemalloc.start()
        await updates(200, 400)
        before, _ = tracemalloc.get_traced_memory()
        messages = await updates(400, 400 + UPDATES)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        following.cancel()
    assert messages > UPDATES / TOGETHER
    assert after - before < MOST_BYTES


async def read_until(subscription: Subscription, revision: int) -> int:
    """Take the stream's messages, as a node would, up to a policy revision; returns how many they were."""
    read = 0
    async with asyncio.timeout(WATCH_SECONDS):
        while True:
            message = await subscription.next()
            assert message is not None
            read += 1
            rendered = subscribe_message(message)
            if rendered.WhichOneof("message") == "progress" and message.revision.policy >= revision:
                return read
