"""What the ipam process can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.chassis.settings import CommonSettings, setting
from services.ipam.plan import DEFAULT_MASK_SIZE_IPV6


@dataclass(frozen=True)
class IpamSettings(CommonSettings):
    """The common settings, the pool made at first start, and the history that watches can resume in."""

    listen: tuple[str, ...] = setting(
        ("127.0.0.1:4001",),
        help="Addresses to serve on, comma separated: HOST:PORT (port 0: any free one), unix:/PATH.",
    )
    database_url: str = setting(
        "sqlite:////var/lib/fimbria/ipam.db",
        help="The service's store: sqlite:////ABSOLUTE/PATH, sqlite:///RELATIVE/PATH, or "
        "postgresql://USER@HOST/DATABASE (docs/storage.md).",
    )
    ipam_default_pool_cidr: tuple[str, ...] = setting(
        (),
        help="CIDRs (IPv4, IPv6, both) of the pool `default`, made at start if it is missing; not in mode"
        " `kubernetes`. One that `fimbria pool` has changed since stays as it is. Empty: none.",
    )
    ipam_default_pool_mask_size: int = setting(
        24,
        help="Prefix length of the IPv4 CIDR that each node gets from the pool `default`.",
        minimum=8,
        maximum=30,
    )
    ipam_default_pool_mask_size_ipv6: int = setting(
        DEFAULT_MASK_SIZE_IPV6,
        help="Prefix length of the IPv6 CIDR that each node gets from the pool `default`.",
        minimum=8,
        maximum=126,
    )
    ipam_mode: Literal["kubernetes", "cluster-pool", "multi-pool"] = setting(
        "cluster-pool",
        help="Where a node's pod CIDRs come from: `kubernetes` (given from outside, with the node),"
        " `cluster-pool` (carved from the node's pool) or `multi-pool` (from the pool that a workload's"
        " attributes choose).",
    )
    ipam_hold_seconds: float = setting(
        30.0,
        help="How long nobody gets an address after its release, in seconds: flows, neighbour and ipcache"
        " entries of its last owner are over by then.",
        minimum=0.0,
        maximum=86_400.0,
    )
    ipam_cidr_idle_seconds: float = setting(
        60.0,
        help="How long a node keeps a CIDR that is empty, in seconds, before it goes back to its pool; never"
        " its first ones.",
        minimum=0.0,
        maximum=86_400.0,
    )
    feed_keep: int = setting(
        100_000, help="How many of the newest changes are kept for watches to resume from.", minimum=1
    )
