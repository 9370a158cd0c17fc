# SPDX-License-Identifier: Apache-2.0
"""The policies of the cluster, followed over the feed: also those that another replica has written."""

from __future__ import annotations

import asyncio
from itertools import groupby

from services.chassis.errors import FimbriaError, OutOfRange
from services.chassis.feed import Feed
from services.chassis.logs import get_logger
from services.chassis.telemetry import TraceContext
from services.policy.distribution import Distributor
from services.policy.store import PolicyStore, StoredPolicy, policy_of

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
    async for batch in feed.watch(distributor.revision.policy):
        # What one call wrote goes out as one change; what several calls wrote, each in its own trace.
        for trace, events in groupby(batch.events, key=lambda event: event.trace):
            group = list(events)
            changes = [policy_of(event) for event in group]
            distributor.take_policies(changes, group[-1].revision, TraceContext(trace))
        since_compaction += len(batch.events)
        if since_compaction >= COMPACT_EVERY:
            since_compaction = 0
            await feed.compact(keep)


async def _reload(store: PolicyStore, distributor: Distributor) -> None:
    """Start over from what the store holds."""
    policies, revision = await store.load()
    refs = {stored.ref for stored in policies}
    gone = [ref for ref in distributor.policies if ref not in refs]
    changes: list[StoredPolicy] = list(policies)
    distributor.take_policies([*changes, *gone], revision, TraceContext())
