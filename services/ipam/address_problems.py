"""The errors of allocations and releases: the reason and its metadata are part of the API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from services.chassis.errors import Aborted, AlreadyExists, FailedPrecondition, ResourceExhausted
from services.ipam.family import Address, Family, Network, comma_separated, family_name, family_of, of_family
from services.ipam.model import Mode

# The least that a caller is told to wait, so that one who comes a moment early does not come in a loop.
LEAST_RETRY_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Fullness:
    """How full the CIDRs of one pool and family are that a node may allocate from.

    `capacity` counts what pods may have there, without the `excluded` ones; `since_ns` is when the last of
    the `held` was taken, `releases_ns` when each of those on hold was released, earliest first, in Unix ns.
    """

    node: str
    pool: str
    family: Family
    cidrs: Sequence[Network]
    capacity: int
    excluded: int
    held: int
    since_ns: int
    releases_ns: Sequence[int]
    hold_ns: int
    now_ns: int

    def free_at(self, count: int) -> int:
        """When `count` of those on hold are free."""
        return min(self.releases_ns[count - 1], self.now_ns) + self.hold_ns

    def metadata(self, transient: bool, help_text: str) -> dict[str, str]:
        """What the API promises with every reason of exhaustion."""
        return {
            "pool": self.pool,
            "family": family_name(self.family),
            "node": self.node,
            "cidrs": comma_separated(self.cidrs),
            "capacity": str(self.capacity),
            "held": str(self.held),
            "on_hold": str(len(self.releases_ns)),
            "excluded": str(self.excluded),
            "since": rfc3339(self.since_ns) if self.since_ns else "",
            "transient": "true" if transient else "false",
            "help": help_text,
        }

    def __str__(self) -> str:
        family = family_name(self.family)
        if not self.cidrs:
            return f"node {self.node!r} has no {family} CIDR of pool {self.pool!r} to allocate from"
        parts = [f"{self.held} of {self.capacity} held"]
        if self.releases_ns:
            parts.append(f"{len(self.releases_ns)} on hold")
        if self.excluded:
            parts.append(f"{self.excluded} excluded")
        if self.since_ns:
            parts.append(f"the last one taken at {rfc3339(self.since_ns)}")
        return (
            f"node {self.node!r} has no free {family} address of pool {self.pool!r}:"
            f" {comma_separated(self.cidrs)}: {', '.join(parts)}"
        )


def exhausted(fullness: Fullness, mode: Mode, missing: int) -> ResourceExhausted:
    """`missing` addresses more are wanted than the node has, and its pool has no CIDR left for it."""
    pool = fullness.pool
    if 0 < missing <= len(fullness.releases_ns):
        return _on_hold(fullness, missing, mode)
    if mode == "kubernetes":
        reason = "CIDR_EXHAUSTED"
        what = "in mode kubernetes the node has no other CIDRs"
        remedy = "give the node another pod CIDR (the loader's setting pod_cidr)"
    else:
        reason = "POOL_EXHAUSTED"
        what = f"pool {pool!r} has no CIDR left for it"
        remedy = f"add a CIDR to the pool: fimbria pool extend {pool} CIDR"
    advice = f"{remedy}; or look for leaked addresses: fimbria ipam check"
    return ResourceExhausted(
        f"{fullness}; {what}; {advice}", reason=reason, metadata=fullness.metadata(False, advice)
    )


def _on_hold(fullness: Fullness, missing: int, mode: Mode) -> ResourceExhausted:
    free_at = fullness.free_at(missing)
    advice = f"wait until {rfc3339(free_at)}, when enough are off hold"
    if mode != "kubernetes":
        advice += f"; or add a CIDR to the pool: fimbria pool extend {fullness.pool} CIDR"
    return ResourceExhausted(
        f"{fullness}; {advice}",
        reason="ADDRESSES_ON_HOLD",
        metadata={**fullness.metadata(True, advice), "free_at": rfc3339(free_at)},
        retry_after=_retry_after(free_at, fullness.now_ns),
    )


def address_on_hold(address: Address, owner: str, released_ns: int, fullness: Fullness) -> ResourceExhausted:
    """The address asked for was released a moment ago, by `owner`."""
    free_at = min(released_ns, fullness.now_ns) + fullness.hold_ns
    advice = f"wait until {rfc3339(free_at)}, or ask for another address"
    return ResourceExhausted(
        f"{address} is on hold until {rfc3339(free_at)} after {owner!r} released it; {advice}",
        reason="ADDRESS_ON_HOLD",
        metadata={
            **fullness.metadata(True, advice),
            "address": str(address),
            "owner": owner,
            "free_at": rfc3339(free_at),
        },
        retry_after=_retry_after(free_at, fullness.now_ns),
    )


def address_not_on_node(
    address: Address, node: str, cidrs: Sequence[Network], pool: str = ""
) -> FailedPrecondition:
    """The address asked for is not one that pods of the node, which holds `cidrs` of `pool`, may have."""
    family = family_of(address)
    usable = of_family(cidrs, family)
    if usable:
        reserved = "network, router and broadcast address" if family == 4 else "network and router address"
        expected = f"expected an address of {comma_separated(usable)} other than the {reserved}"
    else:
        of_pool = f" of pool {pool!r}" if pool else ""
        held = f", only {comma_separated(cidrs)}" if cidrs else ""
        expected = f"the node has no {family_name(family)} CIDR{of_pool}{held}"
    return FailedPrecondition(
        f"{address} cannot be given to a pod of node {node!r}; {expected}",
        reason="ADDRESS_NOT_ON_NODE",
        metadata={"address": str(address), "node": node, "cidr": comma_separated(usable or cidrs)},
    )


def address_excluded(address: Address, node: str, pool: str, excluded: str) -> FailedPrecondition:
    """The pool says that nobody gets the address asked for."""
    return FailedPrecondition(
        f"{address} is excluded from pool {pool!r} by {excluded}; ask for another address",
        reason="ADDRESS_EXCLUDED",
        metadata={"address": str(address), "node": node, "pool": pool, "excluded": excluded},
    )


def address_draining(address: Address, node: str, pool: str, cidr: Network) -> FailedPrecondition:
    """The address asked for is in a CIDR that is on its way out."""
    return FailedPrecondition(
        f"{address} is in {cidr}, which is being drained from pool {pool!r}; ask for another address",
        reason="ADDRESS_DRAINING",
        metadata={"address": str(address), "node": node, "pool": pool, "cidr": str(cidr)},
    )


def address_in_use(address: Address, holder: str, node: str) -> AlreadyExists:
    """The address asked for has another owner."""
    return AlreadyExists(
        f"{address} is held by {holder!r} on node {node!r}",
        reason="ADDRESS_IN_USE",
        metadata={"address": str(address), "owner": holder, "node": node},
    )


def owner_holds_another(owner: str, node: str, held: Address, wanted: Address) -> AlreadyExists:
    """The owner asked for an address but has something else."""
    return AlreadyExists(
        f"{owner!r} holds {held} on node {node!r}; release it before asking for {wanted}",
        reason="OWNER_HOLDS_ANOTHER",
        metadata={"owner": owner, "node": node, "address": str(held), "requested_address": str(wanted)},
    )


def pool_family_mismatch(
    node: str, pool: str, node_families: Sequence[Family], pool_families: Sequence[Family]
) -> FailedPrecondition:
    """The node and the pool have no family in common."""
    has = ", ".join(map(family_name, node_families)) or "none"
    of_pool = ", ".join(map(family_name, pool_families)) or "none"
    return FailedPrecondition(
        f"pool {pool!r} has {of_pool} and node {node!r} has {has}; expected a family that both have",
        reason="POOL_FAMILY_MISMATCH",
        metadata={"pool": pool, "node": node, "pool_families": of_pool, "node_families": has},
    )


def allocation_changed(
    owner: str, node: str, expected_ns: int, present_ns: int, addresses: Sequence[Address]
) -> Aborted:
    """What the owner holds is not the allocation that is to be released."""
    held = ", ".join(map(str, addresses))
    return Aborted(
        f"{owner!r} holds {held} on node {node!r} since {rfc3339(present_ns)}, not the allocation of"
        f" {rfc3339(expected_ns)}, which is left alone",
        reason="ALLOCATION_CHANGED",
        metadata={
            "owner": owner,
            "node": node,
            "addresses": held,
            "create_time": rfc3339(present_ns),
            "if_create_time": rfc3339(expected_ns),
        },
    )


def rfc3339(nanoseconds: int) -> str:
    """Unix time in nanoseconds as "2026-01-02T03:04:05.678Z"."""
    try:
        moment = datetime.fromtimestamp(nanoseconds // 1_000_000 / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{nanoseconds} ns"
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _retry_after(free_at: int, now_ns: int) -> float:
    return max(LEAST_RETRY_SECONDS, (free_at - now_ns) / 1e9)
