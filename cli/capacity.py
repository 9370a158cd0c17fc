"""What is about to run out, in words: address pools and numbers of identities."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cli.output import moment

if TYPE_CHECKING:
    from fimbria.identity.v1 import identity_pb2
    from fimbria.ipam.v1 import ipam_pb2

FULL = 0.9
SOON_SECONDS = 24 * 3600


def pool_problems(pools: Iterable[ipam_pb2.Pool]) -> list[str]:
    """Pools out of which no node gets another CIDR, and whose nodes have hardly an address left."""
    problems = []
    for pool in pools:
        for usage in pool.usage:
            taken = usage.held + usage.on_hold
            if usage.node_cidrs_used >= usage.node_cidrs_total and taken >= FULL * usage.capacity > 0:
                problems.append(
                    f"pool {pool.name}: no {usage.family} CIDR left, {taken} of {usage.capacity} addresses"
                    " taken"
                )
    return problems


def space_problems(status: identity_pb2.IdentityStatus, now: float | None = None) -> list[str]:
    """Spaces of identities that are nearly full, or are within a day at the rate at which they grow."""
    problems = []
    at = time.time() if now is None else now
    for space in status.spaces:
        size = space.last - space.first + 1
        soon = space.HasField("exhausted_time") and space.exhausted_time.seconds - at < SOON_SECONDS
        if space.taken >= FULL * size or soon:
            until = moment(space.exhausted_time.ToJsonString())
            forecast = f", until {until} at this rate" if soon else ""
            problems.append(f"{space.name}: {space.taken} of {size} identities taken{forecast}")
    return problems
