# SPDX-License-Identifier: Apache-2.0
"""The policies of the cluster, followed over the feed: also those that another replica has written."""

from __future__ import annotations

import asyncio

from services.chassis.errors import FimbriaError, OutOfRange
from services.chassis.feed import Feed
from services.chassis.logs import get_logger
from services.chassis.telemetry import TraceContext
from services.policy.distribution import Distributor
from services.policy.store import PolicyStore
from services.policy.stored import Gone, StoredPolicy, change_of

RETRY_SECONDS = 0.5
COMPACT_EVERY = 1000

log = get_logger(__name__)


async def follow_policies(feed: Feed, store: PolicyStore, distributor: Distributor, keep: int) -> None:
    """Hand every change to the distributor in commit order, forever; keep the newest `keep` in the feed."""
    while True:
        try:
            await _follow(feed, distributor, keep)
        except OutOfRange as error:
            log.warning("policy feed restarted", reason=error.reason, error=str(error))
            await _reload(store, distributor)
        except FimbriaError as error:
            log.warning("policy feed broke", reason=error.reason, error=str(error))
            await asyncio.sleep(RETRY_SECONDS)


async def _follow(feed: Feed, distributor: Distributor, keep: int) -> None:
    since_compaction = 0
    changes: list[StoredPolicy | Gone] = []
    trace, revision = "", distributor.revision.policy
    # A bundle takes effect as a whole, also where a batch of the feed ends within it.
    complete = True

    def hand_over() -> None:
        if changes:
            distributor.take_policies(list(changes), revision, TraceContext(trace))
            changes.clear()

    async for batch in feed.watch(revision):
        for event in batch.events:
            # What several calls wrote goes out in the trace of each.
            if complete and event.trace != trace:
                hand_over()
            trace, revision = event.trace, event.revision
            change, complete = change_of(event)
            changes.append(change)
        if complete:
            hand_over()
        since_compaction += len(batch.events)
        if since_compaction >= COMPACT_EVERY:
            since_compaction = 0
            await feed.compact(keep)


async def _reload(store: PolicyStore, distributor: Distributor) -> None:
    """Start over from what the store holds."""
    policies, revision = await store.load()
    refs = {stored.ref for stored in policies}
    gone = [Gone(ref, revision) for ref in distributor.documents() if ref not in refs]
    changes: list[StoredPolicy] = list(policies)
    distributor.take_policies([*changes, *gone], revision, TraceContext())
