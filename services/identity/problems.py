"""The errors of identity, one function each: the reason and its metadata are part of the API."""

from __future__ import annotations

from services.chassis.errors import Aborted, FieldViolation, InvalidArgument, NotFound, ResourceExhausted


def invalid(field: str, description: str, *, reason: str, **metadata: str) -> InvalidArgument:
    """A request field that says something impossible; becomes a BadRequest violation as well."""
    return InvalidArgument(
        f"{field}: {description}",
        reason=reason,
        metadata={"field": field, **metadata},
        violations=(FieldViolation(field, description),),
    )


def filter_invalid(field: str, pattern: str, description: str) -> InvalidArgument:
    """A pattern of a label filter that means nothing; `description` goes on after the pattern."""
    return invalid(field, f"pattern {pattern!r} {description}", reason="FILTER_INVALID", pattern=pattern)


def filter_changed(expected: int, revision: int) -> Aborted:
    """Somebody else has set the filter since it was read."""
    return Aborted(
        f"expected_revision: the label filter has revision {revision}, not {expected};"
        " read it again and decide anew",
        reason="FILTER_CHANGED",
        metadata={"field": "expected_revision", "expected": str(expected), "revision": str(revision)},
    )


def identity_not_found(number: int, field: str) -> NotFound:
    """No label set has this number."""
    return NotFound(
        f"{field}: identity {number} does not exist; Resolve a label set first",
        reason="IDENTITY_NOT_FOUND",
        metadata={"identity": str(number), "field": field},
    )


def identities_exhausted(
    first: int, last: int, used: int, remedy: str, *, unused: int = 0, retry_after: float | None = None
) -> ResourceExhausted:
    """A space has too few numbers left. `unused` of them will come free when nobody has used them for long
    enough, the first in `retry_after` seconds.
    """
    capacity = last - first + 1
    what = f"no identity is left: {used} of the {capacity} numbers {first} to {last} stand for something"
    if unused:
        what += f", {unused} of which nobody uses any more: they come free soon"
    return ResourceExhausted(
        f"{what}; {remedy}",
        reason="IDENTITIES_EXHAUSTED",
        metadata={
            "first": str(first),
            "last": str(last),
            "capacity": str(capacity),
            "used": str(used),
            "unused": str(unused),
            "transient": "true" if unused else "false",
            "help": "try again: garbage collection is about to free numbers" if unused else remedy,
        },
        retry_after=retry_after if unused else None,
    )
