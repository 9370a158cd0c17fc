"""The pool that the settings describe: made where it is missing, never changed."""

from __future__ import annotations

from services.chassis.errors import AlreadyExists
from services.chassis.logs import get_logger
from services.ipam import problems
from services.ipam.cidr import parse_cidr
from services.ipam.family import FAMILIES, comma_separated, of_family
from services.ipam.model import DEFAULT_POOL, Pool
from services.ipam.plan import plan_pool
from services.ipam.pool_store import PoolStore
from services.ipam.settings import IpamSettings

log = get_logger(__name__)


async def ensure_default_pool(pools: PoolStore, settings: IpamSettings) -> None:
    """Makes the pool `default` that the settings describe, unless there is one.

    One of other CIDRs is left as it is, and a log line names both, when it was changed through the API: pools
    are managed there. Else it is from an earlier start with other settings, and raises AlreadyExists
    (POOL_EXISTS), as other mask sizes always do: going on would ignore what the operator asked for.
    """
    if not settings.ipam_default_pool_cidr:
        return
    wanted = plan_default_pool(settings)
    if settings.ipam_mode == "kubernetes":
        log.warning(
            "no pool is made: node CIDRs are given from outside",
            mode=settings.ipam_mode,
            cidrs=comma_separated(wanted.cidrs),
        )
        return
    try:
        await pools.create(wanted)
    except AlreadyExists:
        compare(await pools.get(DEFAULT_POOL), wanted)


def plan_default_pool(settings: IpamSettings) -> Pool:
    """The pool that the settings describe. Raises InvalidArgument naming the setting at fault."""
    cidrs = [parse_cidr(text, "FIMBRIA_IPAM_DEFAULT_POOL_CIDR") for text in settings.ipam_default_pool_cidr]
    return plan_pool(
        DEFAULT_POOL,
        cidrs,
        # The settings' defaults are there also for a family that nobody asked for.
        settings.ipam_default_pool_mask_size if of_family(cidrs, 4) else 0,
        settings.ipam_default_pool_mask_size_ipv6 if of_family(cidrs, 6) else 0,
        fields={
            4: "FIMBRIA_IPAM_DEFAULT_POOL_MASK_SIZE",
            6: "FIMBRIA_IPAM_DEFAULT_POOL_MASK_SIZE_IPV6",
        },
    )


def compare(present: Pool, wanted: Pool) -> None:
    """Accepts `present` in the place of `wanted`, or raises AlreadyExists; see `ensure_default_pool`."""
    masks = {family: size for family in FAMILIES if (size := present.mask_size(family))}
    other_masks = any(wanted.mask_size(family) not in (0, size) for family, size in masks.items())
    if frozenset(present.cidrs) == frozenset(wanted.cidrs) and not other_masks:
        return
    if other_masks or present.revision == 1:
        raise problems.pool_exists(present.name, present.cidrs, masks)
    log.warning(
        "the default pool is not the one of the settings; it was changed through the API and stays",
        setting="FIMBRIA_IPAM_DEFAULT_POOL_CIDR",
        cidrs=comma_separated(present.cidrs),
        draining=comma_separated(one.network for one in present.draining),
        settings=comma_separated(wanted.cidrs),
    )
