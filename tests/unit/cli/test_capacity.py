"""What `fimbria status` says of pools and identities that are about to run out."""

from __future__ import annotations

import pytest
from fimbria.identity.v1 import identity_pb2
from fimbria.ipam.v1 import ipam_pb2

from cli.capacity import pool_problems, space_problems

NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("used", "held", "on_hold", "told"),
    [
        (2, 440, 16, ["pool blue: no IPv4 CIDR left, 456 of 506 addresses taken"]),
        (2, 400, 16, []),
        (1, 506, 0, []),
    ],
    ids=["full", "room within CIDRs", "CIDRs left"],
)
def test_a_pool_is_told_of_when_its_nodes_cannot_grow(
    used: int, held: int, on_hold: int, told: list[str]
) -> None:
    pool = ipam_pb2.Pool(name="blue")
    pool.usage.add(
        family="IPv4", node_cidrs_total=2, node_cidrs_used=used, capacity=506, held=held, on_hold=on_hold
    )
    pool.usage.add(family="IPv6")
    assert pool_problems([pool]) == told


@pytest.mark.parametrize(
    ("taken", "hours", "told"),
    [
        (10, 0, []),
        (10, 25, []),
        (10, 23, ["cluster: 10 of 100 identities taken, until 2027-01-16T07:00:00Z at this rate"]),
        (90, 0, ["cluster: 90 of 100 identities taken"]),
    ],
)
def test_a_space_is_told_of_when_it_is_full_or_soon_will_be(taken: int, hours: int, told: list[str]) -> None:
    status = identity_pb2.IdentityStatus()
    space = status.spaces.add(name="cluster", first=1, last=100, taken=taken)
    if hours:
        space.exhausted_time.seconds = NOW + hours * 3600
    assert space_problems(status, NOW) == told
