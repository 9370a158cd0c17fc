"""The policy of one direction: every entry looked at, none preferred by how it would be found."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fuzz.model.reasons import Reason
from tests.fuzz.model.world import DirectionPolicy, Entry, Other, Tier


@dataclass(frozen=True, slots=True)
class Ruling:
    """Why a packet may not pass, None if it may; and the entry that decided, None if none did."""

    reason: Reason | None = None
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of a packet.

    ``reason``: why it may not pass, None if it may. ``spared``: the denial that only audit mode, of the node
    or of a policy, keeps from the packet. ``is_told``: admitting a flow is worth a report.
    """

    reason: Reason | None
    entry: Entry | None
    spared: Ruling | None
    is_told: bool


def look_up(policy: DirectionPolicy, other: Other, protocol: int, port: int) -> Verdict:
    """What a policy says of the other end. ``port`` is the responder's (of an echo the request's type)."""
    covering = [entry for entry in policy.entries if entry.covers(other, protocol, port)]
    ruling = _rule([entry for entry in covering if not entry.tried], enforced=policy.enforced)
    decided_by_rank = ruling.entry is not None and ruling.entry.tier is not Tier.NORMAL
    spared = None
    if ruling.reason is not None and policy.audit:
        spared = ruling
    elif ruling.reason is None:
        trial = _rule(covering, enforced=policy.enforced or policy.tries_to_enforce)
        spared = trial if trial.reason is not None else None
    return Verdict(
        None if spared is not None else ruling.reason,
        ruling.entry,
        spared,
        policy.enforced or decided_by_rank,
    )


def _rule(covering: list[Entry], *, enforced: bool) -> Ruling:
    """What the entries that cover a packet decide together."""
    for tier in Tier:
        first = min((entry for entry in covering if entry.tier is tier), key=_rank, default=None)
        if first is not None and not first.passes:
            return Ruling(Reason.POLICY_DENY if first.deny else None, first)
        if tier is Tier.NORMAL and enforced:
            return Ruling(Reason.POLICY)
    return Ruling()


def _rank(entry: Entry) -> tuple[int, ...]:
    """Smaller comes first. What begins the tuple decides; the rest only says whom a report names."""
    action = 0 if entry.deny else 1 if entry.passes else 2
    # Ports, the longest prefix first, one identity's before anybody's; then protocols, then anything.
    level = (not entry.protocol) + (not entry.prefix)
    return (
        entry.order,
        action,
        entry.tried,
        entry.by_address,
        level,
        not entry.identity,
        -entry.prefix,
    )
