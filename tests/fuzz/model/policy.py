"""The policy of one direction: every entry looked at, none preferred by how it would be found."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fuzz.model.reasons import Reason
from tests.fuzz.model.world import DirectionPolicy, Entry


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of a packet.

    ``reason``: why it may not pass, None if it may. In audit mode it does all the same. ``entry`` is the one
    that decided, None if it was the lack of one.
    """

    reason: Reason | None
    entry: Entry | None
    is_audited: bool
    is_enforced: bool


def look_up(policy: DirectionPolicy, identity: int, protocol: int, port: int) -> Verdict:
    """What a policy says of the other end. ``port`` is the responder's (of an echo the request's type)."""
    covering = sorted((e for e in policy.entries if e.covers(identity, protocol, port)), key=_rank)
    denying = [entry for entry in covering if entry.deny]
    reason, entry = None, None
    if denying:
        reason, entry = Reason.POLICY_DENY, denying[0]
    elif covering:
        entry = covering[0]
    elif policy.enforced:
        reason = Reason.POLICY
    return Verdict(reason, entry, policy.audit, policy.enforced)


def _rank(entry: Entry) -> tuple[int, bool, int]:
    """Smaller is more specific."""
    # Ports, the longest prefix first, one identity's before anybody's; then protocols, then anything.
    return (not entry.protocol) + (not entry.prefix), not entry.identity, -entry.prefix
