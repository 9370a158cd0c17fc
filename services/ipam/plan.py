"""What a pool that somebody asks for is: its masks held against its CIDRs, its change against what it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.ipam.cidr import MOST_BITS_APART, check_node_mask
from services.ipam.exclusions import Span, check_within
from services.ipam.family import FAMILIES, Family, Network, family_name, family_of, of_family
from services.ipam.model import DrainingCidr, LabelSelector, Pool
from services.ipam.problems import MASK_FIELDS, invalid

# The prefix length of a node's IPv6 CIDR where nobody said another: room for 65534 pods.
DEFAULT_MASK_SIZE_IPV6: Final = 112


@dataclass(frozen=True, slots=True)
class PoolContent:
    """What a pool can be changed to: all of it but its name and mask sizes."""

    cidrs: tuple[Network, ...]
    excluded: tuple[Span, ...] = ()
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None


def plan_pool(
    name: str,
    cidrs: Sequence[Network],
    node_mask_size: int,
    node_mask_size_ipv6: int,
    fields: Mapping[Family, str] = MASK_FIELDS,
    *,
    excluded: Sequence[Span] = (),
    pod_selector: LabelSelector | None = None,
    namespace_selector: LabelSelector | None = None,
) -> Pool:
    """The pool `name` of `cidrs`, of which nodes get networks of the two mask sizes.

    A mask size of 0 says nothing: right for a family without CIDRs, DEFAULT_MASK_SIZE_IPV6 for IPv6. Raises
    InvalidArgument: MASK_SIZE_INVALID naming the one of `fields` that the mask size came in,
    EXCLUSION_OUTSIDE.
    """
    if of_family(cidrs, 6):
        node_mask_size_ipv6 = node_mask_size_ipv6 or DEFAULT_MASK_SIZE_IPV6
    pool = Pool(
        name,
        tuple(cidrs),
        node_mask_size,
        node_mask_size_ipv6,
        excluded=tuple(excluded),
        pod_selector=pod_selector,
        namespace_selector=namespace_selector,
    )
    for family in FAMILIES:
        _check_masks(pool, family, fields[family])
    check_within(pool.excluded, pool.cidrs, "excluded")
    return pool


def plan_update(pool: Pool, content: PoolContent) -> Pool:
    """The pool once it consists of `content`: equal to `pool` when nothing changes, else a revision on.

    CIDRs that `content` leaves out join those that drain, and those of them that it names are in service
    again. Raises InvalidArgument: MASK_SIZE_INVALID for a CIDR that does not fit the pool's mask sizes,
    EXCLUSION_OUTSIDE.
    """
    for at, cidr in enumerate(content.cidrs):
        _check_fits(pool, cidr, f"cidrs[{at}]")
    draining = (
        *(one for one in pool.draining if one.network not in content.cidrs),
        *(DrainingCidr(cidr) for cidr in pool.cidrs if cidr not in content.cidrs),
    )
    # What was excluded before may stay though its CIDR is gone.
    new = [span for span in content.excluded if span not in pool.excluded]
    check_within(new, (*content.cidrs, *(one.network for one in draining)), "excluded")
    planned = replace(
        pool,
        cidrs=content.cidrs,
        excluded=content.excluded,
        pod_selector=content.pod_selector,
        namespace_selector=content.namespace_selector,
        draining=draining,
    )
    return pool if planned == pool else replace(planned, revision=pool.revision + 1)


def _check_masks(pool: Pool, family: Family, field: str) -> None:
    mask_size = pool.mask_size(family)
    if mask_size and family not in pool.families:
        raise invalid(
            field,
            f"{mask_size} is for {family_name(family)}, of which the pool has no CIDR; expected 0",
            reason="MASK_SIZE_INVALID",
            value=str(mask_size),
        )
    for cidr in of_family(pool.cidrs, family):
        check_node_mask(cidr, mask_size, field)


def _check_fits(pool: Pool, cidr: Network, field: str) -> None:
    family = family_of(cidr)
    mask_size = pool.mask_size(family)
    if not mask_size:
        raise invalid(
            field,
            f"{cidr} is {family_name(family)}, for which pool {pool.name!r} was made without a mask size, and"
            " mask sizes are fixed; expected a CIDR of the other family, or make another pool",
            reason="MASK_SIZE_INVALID",
            value=str(cidr),
        )
    shortest = max(0, mask_size - MOST_BITS_APART)
    if not shortest <= cidr.prefixlen <= mask_size:
        raise invalid(
            field,
            f"{cidr} cannot be cut into the pool's node CIDRs of /{mask_size}; expected a prefix length of"
            f" {shortest} to {mask_size}",
            reason="MASK_SIZE_INVALID",
            value=str(cidr),
            mask_size=str(mask_size),
        )
