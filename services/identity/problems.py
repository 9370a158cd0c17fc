"""The errors of identity, one function each: the reason and its metadata are part of the API."""

from __future__ import annotations

from services.chassis.errors import FieldViolation, InvalidArgument, NotFound, ResourceExhausted


def invalid(field: str, description: str, *, reason: str, **metadata: str) -> InvalidArgument:
    """A request field that says something impossible; becomes a BadRequest violation as well."""
    return InvalidArgument(
        f"{field}: {description}",
        reason=reason,
        metadata={"field": field, **metadata},
        violations=(FieldViolation(field, description),),
    )


def identity_not_found(number: int, field: str) -> NotFound:
    """No label set has this number."""
    return NotFound(
        f"{field}: identity {number} does not exist; Resolve a label set first",
        reason="IDENTITY_NOT_FOUND",
        metadata={"identity": str(number), "field": field},
    )


def identities_exhausted(first: int, last: int, remedy: str) -> ResourceExhausted:
    """Every number of a space stands for something."""
    return ResourceExhausted(
        f"no identity is left: all of {first} to {last} are in use; {remedy}",
        reason="IDENTITIES_EXHAUSTED",
        metadata={"first": str(first), "last": str(last), "capacity": str(last - first + 1)},
    )
