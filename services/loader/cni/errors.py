"""CNI errors: the specification's codes, Fimbria's own, and the way there from a service's error."""

from __future__ import annotations

from enum import IntEnum

import orjson

from services.chassis.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FimbriaError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)

SUPPORTED_VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT_VERSION = SUPPORTED_VERSIONS[-1]

INTERFACE_NAME_TAKEN = "INTERFACE_NAME_TAKEN"
NETNS_INVALID = "NETNS_INVALID"
NETNS_GONE = "NETNS_GONE"


class CniCode(IntEnum):
    """Codes of a CNI error: below 100 the specification's, from 100 Fimbria's."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODE_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    INTERNAL = 100
    FAILED_PRECONDITION = 101
    NOT_FOUND = 102
    ALREADY_EXISTS = 103
    PERMISSION_DENIED = 104
    CHECK_FAILED = 105
    EXHAUSTED = 106


class CniError(Exception):
    """A call that ends in a CNI error: ``msg`` is one line for people, ``details`` says what was expected."""

    def __init__(self, code: CniCode, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details

    def render(self, version: str) -> bytes:
        """The error JSON of the specification; an unsupported ``version`` is answered in the current one."""
        known = version if version in SUPPORTED_VERSIONS else CURRENT_VERSION
        return orjson.dumps(
            {"cniVersion": known, "code": int(self.code), "msg": self.msg, "details": self.details}
        )


# Reasons that say more than their gRPC code does.
_BY_REASON = {
    INTERFACE_NAME_TAKEN: CniCode.INVALID_ENVIRONMENT,
    NETNS_INVALID: CniCode.INVALID_ENVIRONMENT,
    NETNS_GONE: CniCode.UNKNOWN_CONTAINER,
}

_BY_CLASS: tuple[tuple[type[FimbriaError], CniCode], ...] = (
    (Unavailable, CniCode.TRY_AGAIN_LATER),
    (DeadlineExceeded, CniCode.TRY_AGAIN_LATER),
    (Aborted, CniCode.TRY_AGAIN_LATER),
    (Cancelled, CniCode.TRY_AGAIN_LATER),
    # Overload, and addresses that are on hold: what is final has a reason of its own.
    (ResourceExhausted, CniCode.TRY_AGAIN_LATER),
    (InvalidArgument, CniCode.INVALID_CONFIG),
    (NotFound, CniCode.NOT_FOUND),
    (AlreadyExists, CniCode.ALREADY_EXISTS),
    (FailedPrecondition, CniCode.FAILED_PRECONDITION),
    (PermissionDenied, CniCode.PERMISSION_DENIED),
)


# Exhausted until somebody does something about it, unless the error says that it passes.
_FINAL = frozenset({"POOL_EXHAUSTED", "CIDR_EXHAUSTED", "IDENTITIES_EXHAUSTED", "ENDPOINTS_EXHAUSTED"})


def retryable(exc: FimbriaError) -> bool:
    """Whether the same call may succeed later without anyone changing it."""
    return _code(exc) is CniCode.TRY_AGAIN_LATER


def cni_error(exc: FimbriaError, command: str) -> CniError:
    """The CNI error that stands for a service's error in a call of ``command`` (ADD, DEL, CHECK)."""
    code = _code(exc)
    if code is CniCode.NOT_FOUND and command == "CHECK":
        code = CniCode.UNKNOWN_CONTAINER
    facts = {key: value for key, value in exc.metadata.items() if key != "help"}
    parts = [exc.reason, *(f"{key}={value}" for key, value in sorted(facts.items()))]
    parts += [f"{violation.field}: {violation.description}" for violation in exc.violations]
    if "help" in exc.metadata:
        parts.append(exc.metadata["help"])
    return CniError(code, exc.message, "; ".join(parts))


def _code(exc: FimbriaError) -> CniCode:
    if exc.reason in _BY_REASON:
        return _BY_REASON[exc.reason]
    if isinstance(exc, ResourceExhausted) and _is_final(exc):
        return CniCode.EXHAUSTED
    return next((code for cls, code in _BY_CLASS if isinstance(exc, cls)), CniCode.INTERNAL)


def _is_final(exc: ResourceExhausted) -> bool:
    told = exc.metadata.get("transient")
    if told in ("true", "false"):
        return told == "false"
    return exc.retry_after is None and exc.reason in _FINAL
