"""The policy of one direction: every entry looked at, none preferred by how it would be found."""

from __future__ import annotations

from tests.fuzz.model.reasons import Reason
from tests.fuzz.model.world import HOST, DirectionPolicy, Policy


def verdict(
    policy: Policy | None, *, ingress: bool, identity: int, protocol: int, port: int
) -> Reason | None:
    """Why a packet may not pass, or None. ``port`` is the responder's (of an echo the request's type)."""
    if ingress and identity == HOST:
        return None
    if policy is None:
        return None if identity == HOST else Reason.POLICY_NOT_READY
    direction = policy.ingress if ingress else policy.egress
    reason = _searched(direction, identity, protocol, port)
    return None if direction.audit else reason


def _searched(direction: DirectionPolicy, identity: int, protocol: int, port: int) -> Reason | None:
    covering = [entry for entry in direction.entries if entry.covers(identity, protocol, port)]
    if any(entry.deny for entry in covering):
        return Reason.POLICY_DENY
    if covering or not direction.enforced:
        return None
    return Reason.POLICY
