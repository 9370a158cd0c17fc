"""The errors of ipam, one function each: the reason and its metadata are part of the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from services.chassis.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from services.ipam.family import (
    FAMILIES,
    Address,
    Family,
    Network,
    comma_separated,
    family_name,
)

# The fields of pools that mask sizes stand in.
MASK_FIELDS: Final[Mapping[Family, str]] = {4: "node_mask_size", 6: "node_mask_size_ipv6"}


def invalid(field: str, description: str, *, reason: str, **metadata: str) -> InvalidArgument:
    """A request field that says something impossible; becomes a BadRequest violation as well."""
    return InvalidArgument(
        f"{field}: {description}",
        reason=reason,
        metadata={"field": field, **metadata},
        violations=(FieldViolation(field, description),),
    )


def node_not_found(node: str) -> NotFound:
    """No node of that name is registered."""
    return NotFound(
        f"node {node!r} is not registered; its loader registers it at start",
        reason="NODE_NOT_FOUND",
        metadata={"node": node},
    )


def pool_not_found(pool: str) -> NotFound:
    """No pool of that name exists."""
    return NotFound(
        f"pool {pool!r} does not exist; create it with PoolService.CreatePool",
        reason="POOL_NOT_FOUND",
        metadata={"pool": pool},
    )


def pool_exists(pool: str, cidrs: Sequence[Network], mask_sizes: Mapping[Family, int]) -> AlreadyExists:
    """A pool of that name exists with other content: `cidrs` and, of its families, `mask_sizes`."""
    masks = ", ".join(f"/{mask_sizes[family]}" for family in FAMILIES if family in mask_sizes)
    return AlreadyExists(
        f"pool {pool!r} exists with other content: {comma_separated(cidrs)}, node mask {masks}",
        reason="POOL_EXISTS",
        metadata={
            "pool": pool,
            "cidrs": comma_separated(cidrs),
            **{MASK_FIELDS[family]: str(size) for family, size in mask_sizes.items()},
        },
    )


def pool_in_use(pool: str, nodes: int, example: str) -> FailedPrecondition:
    """Nodes hold CIDRs of the pool."""
    return FailedPrecondition(
        f"pool {pool!r} is in use: {nodes} node(s) hold CIDRs of it, {example!r} for one; delete them,"
        " or wait until what they have besides their own pool is empty and goes back",
        reason="POOL_IN_USE",
        metadata={"pool": pool, "nodes": str(nodes), "node": example},
    )


def pool_exhausted(
    pool: str,
    family: Family,
    cidrs: Sequence[Network],
    mask_size: int,
    total: int,
    node: str,
    *,
    used: int,
    since_ns: int | None,
) -> ResourceExhausted:
    """A node that registers finds no CIDR; `cidrs`, `mask_size`, `total`, `used` are of one family.

    `used` counts the CIDRs that nodes hold, draining ones too; `since_ns` is when the newest of their nodes
    registered.
    """
    since = "" if since_ns is None else datetime.fromtimestamp(since_ns // 10**9, UTC).isoformat()
    remedy = f"add a CIDR (fimbria pool extend {pool} CIDR), or delete nodes that are gone for good"
    return ResourceExhausted(
        f"pool {pool!r} ({comma_separated(cidrs)}) has no {family_name(family)} /{mask_size} left for node"
        f" {node!r}: nodes hold {used}, the pool has {total}; {remedy}",
        reason="POOL_EXHAUSTED",
        metadata={
            "pool": pool,
            "family": family_name(family),
            "node": node,
            "cidrs": comma_separated(cidrs),
            MASK_FIELDS[family]: str(mask_size),
            "capacity": str(total),
            "held": str(used),
            "on_hold": "0",
            "excluded": "0",
            "since": since,
            "transient": "false",
            "help": remedy,
        },
    )


def pod_cidrs_missing(node: str) -> InvalidArgument:
    """A node registers without CIDRs though they come from outside."""
    return invalid(
        "pod_cidrs",
        "is empty; expected the node's pod CIDRs, at least one, since ipam runs in mode kubernetes",
        reason="POD_CIDRS_MISSING",
        node=node,
        mode="kubernetes",
    )


def pod_cidrs_unexpected(cidrs: Sequence[Network], mode: str) -> InvalidArgument:
    """A node brings CIDRs though they are carved from pools."""
    return invalid(
        "pod_cidrs",
        f"{comma_separated(cidrs)}; expected none, since ipam runs in mode {mode} and carves them from pools",
        reason="POD_CIDRS_UNEXPECTED",
        value=comma_separated(cidrs),
        mode=mode,
    )


def given_overlap(wanted: Network, other: Network, *, node: str, holder: str) -> FailedPrecondition:
    """A CIDR that a node brings shares addresses with one of `holder`, a node or pool in words."""
    return FailedPrecondition(
        f"pod CIDR {wanted} of node {node!r} overlaps {other} of {holder}",
        reason="CIDR_OVERLAP",
        metadata={"cidr": str(wanted), "other_cidr": str(other), "node": node, "holder": holder},
    )


def cidr_in_use(cidr: Network, node: str, addresses: int) -> FailedPrecondition:
    """A CIDR that a node no longer brings has addresses held."""
    return FailedPrecondition(
        f"pod CIDR {cidr} of node {node!r} is not among the ones given now, but {addresses} address(es) of it"
        " are still held; release them first",
        reason="CIDR_IN_USE",
        metadata={"cidr": str(cidr), "node": node, "addresses": str(addresses)},
    )


def pool_name_taken(pool: str, cidrs: Sequence[Network]) -> FailedPrecondition:
    """A pool made before its name was reserved is in the way."""
    return FailedPrecondition(
        f"pool {pool!r} ({comma_separated(cidrs)}) has the name that CIDRs from outside need; delete it",
        reason="POOL_NAME_TAKEN",
        metadata={"pool": pool, "cidrs": comma_separated(cidrs)},
    )


def pool_reserved(pool: str, field: str = "name") -> InvalidArgument:
    """The name stands for CIDRs that come from outside, in mode kubernetes."""
    return invalid(
        field,
        f"{pool!r} stands for CIDRs that are given from outside; expected another name",
        reason="POOL_NAME_RESERVED",
        value=pool,
    )


def pool_changed(pool: str, expected: int, revision: int) -> Aborted:
    """Somebody changed the pool since the caller read it."""
    return Aborted(
        f"pool {pool!r} is at revision {revision}, not {expected}; read it and try again",
        reason="POOL_CHANGED",
        metadata={"pool": pool, "expected_revision": str(expected), "revision": str(revision)},
    )


def pool_not_allowed(requested: str, node_pool: str, mode: str) -> FailedPrecondition:
    """Another pool than the node's own was asked for, and the mode knows that one only."""
    return FailedPrecondition(
        f"pool {requested!r} was asked for, but in mode {mode} a node's addresses are of its own pool,"
        f" {node_pool!r}; leave the pool out, or run ipam in mode multi-pool",
        reason="POOL_NOT_ALLOWED",
        metadata={"requested_pool": requested, "pool": node_pool, "mode": mode},
    )


def pool_ambiguous(namespace: str, name: str, pools: Sequence[str]) -> FailedPrecondition:
    """The selectors of several pools select one workload."""
    workload = f"{namespace}/{name}"
    return FailedPrecondition(
        f"the selectors of pools {', '.join(map(repr, pools))} all select {workload!r}; expected one:"
        " narrow the selectors, or name the pool in the annotation fimbria.io/ip-pool",
        reason="POOL_AMBIGUOUS",
        metadata={"workload": workload, "pools": ", ".join(pools)},
    )


def cidr_overlap(wanted: object, other: object, pool: str, other_pool: str) -> FailedPrecondition:
    """A CIDR of a new pool shares addresses with another one."""
    return FailedPrecondition(
        f"CIDR {wanted} of pool {pool!r} overlaps {other} of pool {other_pool!r}",
        reason="CIDR_OVERLAP",
        metadata={"cidr": str(wanted), "other_cidr": str(other), "pool": pool, "other_pool": other_pool},
    )


def node_pool_conflict(node: str, pool: str, wanted: str) -> FailedPrecondition:
    """The node is registered with another pool."""
    return FailedPrecondition(
        f"node {node!r} is registered with pool {pool!r}, not {wanted!r}; delete the node to move it",
        reason="NODE_POOL_CONFLICT",
        metadata={"node": node, "pool": pool, "requested_pool": wanted},
    )


def node_address_in_use(address: Address, holder: str, node: str) -> FailedPrecondition:
    """Another node is registered with the underlay address."""
    return FailedPrecondition(
        f"underlay address {address} belongs to node {holder!r}; node {node!r} cannot have it as well",
        reason="ADDRESS_IN_USE",
        metadata={"address": str(address), "node": holder, "requested_by": node},
    )


def node_in_use(node: str, addresses: int) -> FailedPrecondition:
    """Addresses are held on the node."""
    return FailedPrecondition(
        f"node {node!r} still holds {addresses} address(es); release them, or set force",
        reason="NODE_IN_USE",
        metadata={"node": node, "addresses": str(addresses)},
    )
