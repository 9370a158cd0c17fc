"""What a pool that somebody asks for is: its masks held against its CIDRs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from services.ipam.cidr import check_node_mask
from services.ipam.family import FAMILIES, Family, Network, family_name, of_family
from services.ipam.model import Pool
from services.ipam.problems import MASK_FIELDS, invalid

# The prefix length of a node's IPv6 CIDR where nobody said another: room for 65534 pods.
DEFAULT_MASK_SIZE_IPV6: Final = 112


def plan_pool(
    name: str,
    cidrs: Sequence[Network],
    node_mask_size: int,
    node_mask_size_ipv6: int,
    fields: Mapping[Family, str] = MASK_FIELDS,
) -> Pool:
    """The pool `name` of `cidrs`, of which nodes get networks of the two mask sizes.

    A mask size of 0 says nothing: right for a family without CIDRs, DEFAULT_MASK_SIZE_IPV6 for IPv6. Raises
    InvalidArgument (MASK_SIZE_INVALID) naming the one of `fields` that the mask size came in.
    """
    if of_family(cidrs, 6):
        node_mask_size_ipv6 = node_mask_size_ipv6 or DEFAULT_MASK_SIZE_IPV6
    pool = Pool(name, tuple(cidrs), node_mask_size, node_mask_size_ipv6)
    for family in FAMILIES:
        _check_masks(pool, family, fields[family])
    return pool


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
