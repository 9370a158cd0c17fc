# SPDX-License-Identifier: Apache-2.0
"""The errors that clients of the policy service see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.chassis.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from services.policy.manifest import ManifestError
from services.policy.rules import PolicyRef

# The document of a violation that is about a policy message: its path says which one.
DEFINITION = -1


def manifests_refused(error: ManifestError, done: str = "nothing was applied") -> InvalidArgument:
    """One field violation per problem. Where there are several documents the path starts with which one it
    is.
    """
    several = len({violation.document for violation in error.violations} - {DEFINITION}) > 1
    violations = [
        FieldViolation(
            f"documents[{v.document}].{v.field}"
            if v.document != DEFINITION and (several or v.document)
            else v.field,
            f"{v.subject}: {v.description}" if v.subject else v.description,
        )
        for v in error.violations
    ]
    listed = "; ".join(f"{v.field}: {v.description}" for v in violations[:3])
    more = f"; and {len(violations) - 3} more" if len(violations) > 3 else ""
    reason = "POLICY_UNSUPPORTED" if error.unsupported_only else "POLICY_INVALID"
    return InvalidArgument(
        f"{done}: {listed}{more}",
        reason=reason,
        metadata={"field": violations[0].field},
        violations=violations,
    )


def policy_not_found(ref: PolicyRef) -> NotFound:
    return NotFound(
        f"there is no {ref}",
        reason="POLICY_NOT_FOUND",
        metadata={"kind": ref.kind, "namespace": ref.namespace, "name": ref.name},
    )


def identity_not_found(number: int, field: str) -> NotFound:
    return NotFound(
        f"there is no identity {number}",
        reason="IDENTITY_NOT_FOUND",
        metadata={"identity": str(number), "field": field},
    )


def identities_unknown() -> Unavailable:
    return Unavailable(
        "identities are not known yet: the identity service has not been reached since this service started",
        reason="IDENTITIES_UNKNOWN",
        retry_after=1.0,
    )


def field_invalid(field: str, value: object, expected: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field} is {value!r}; expected {expected}",
        reason="REQUEST_INVALID",
        metadata={"field": field},
        violations=[FieldViolation(field, f"got {value!r}, expected {expected}")],
    )


def nodes_behind(revision: int, behind: Mapping[str, tuple[int, str]]) -> DeadlineExceeded:
    """`behind`: node -> (acknowledged revision, error of the node or empty)."""
    listed = ", ".join(
        f"{name} is at {at}" + (f" ({error})" if error else "") for name, (at, error) in behind.items()
    )
    return DeadlineExceeded(
        f"policy revision {revision} is not enforced everywhere yet: {listed}",
        reason="NODES_BEHIND",
        metadata={
            "revision": str(revision),
            "nodes": ",".join(f"{name}={at}" for name, (at, _) in behind.items()),
        },
    )


def node_subscribed(node: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"node {node} is subscribed; stop its loader first",
        reason="NODE_SUBSCRIBED",
        metadata={"node": node},
    )


def subscription_replaced(node: str) -> Aborted:
    return Aborted(
        f"node {node} has subscribed again on another stream",
        reason="SUBSCRIPTION_REPLACED",
        metadata={"node": node},
    )


def subscriber_too_slow(node: str, waiting: int) -> Aborted:
    return Aborted(
        f"node {node} has left {waiting} messages unread; subscribe again to start from snapshots",
        reason="SUBSCRIBER_TOO_SLOW",
        metadata={"node": node},
    )


def prefixes_unresolved(prefixes: Sequence[str], why: str) -> Unavailable:
    """`why`: what came of the call."""
    more = f" and {len(prefixes) - 3} more" if len(prefixes) > 3 else ""
    return Unavailable(
        f"nothing was applied: {', '.join(prefixes[:3])}{more} have no number yet, and the identity service "
        f"cannot give one: {why}",
        reason="PREFIXES_UNRESOLVED",
        metadata={"prefixes": ",".join(prefixes[:100])},
        retry_after=1.0,
    )
