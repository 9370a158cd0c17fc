"""Errors that cross a service boundary, and their two translations to and from gRPC.

Domain code raises a subclass of :class:`FimbriaError`; the server turns it into a ``google.rpc.Status`` with
an ``ErrorInfo`` (reason, metadata) and, where fields are at fault, a ``BadRequest``. A client turns the RPC
error back into the same class with :func:`error_from_rpc`, so an error reads alike on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

import grpc

if TYPE_CHECKING:
    from google.rpc import status_pb2

ERROR_DOMAIN = "fimbria"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

# A status travels in trailing metadata, of which gRPC accepts 8 KiB by default; beyond that, the caller would
# learn about the size of the error and nothing about the error. Sizes are in bytes, before base64.
MESSAGE_BYTES = 1500
VIOLATIONS_BYTES = 2500
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if code != ord("%"))


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One refused field of a request: its path, what was wrong with the value and what was expected."""

    field: str
    description: str


class StartError(Exception):
    """A process cannot start or go on: the message is one line that says why and what to do."""


class FimbriaError(Exception):
    """Base of all errors a client may see.

    ``reason`` is UPPER_SNAKE and stable: programs branch on it, people search for it. ``metadata`` values are
    strings. ``retry_after`` is in seconds and means that the same call may succeed later.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: Mapping[str, object] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata: dict[str, str] = {key: str(value) for key, value in (metadata or {}).items()}
        self.violations = tuple(violations)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, reason={self.reason!r})"


class InvalidArgument(FimbriaError):
    """The request is wrong whatever the state of the system."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(FimbriaError):
    """What the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(FimbriaError):
    """What the request would create exists with other content."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(FimbriaError):
    """The system's state forbids the request; somebody has to change that state first."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(FimbriaError):
    """A pool, a quota or the disk is used up."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(FimbriaError):
    """The service cannot answer now; the same call may be sent again."""

    code = grpc.StatusCode.UNAVAILABLE


class Aborted(FimbriaError):
    """A concurrent change won; read again and retry the whole operation."""

    code = grpc.StatusCode.ABORTED


class OutOfRange(FimbriaError):
    """A revision or a position lies outside what is kept."""

    code = grpc.StatusCode.OUT_OF_RANGE


class DeadlineExceeded(FimbriaError):
    """The time given was over before the operation was; it may have taken effect."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class PermissionDenied(FimbriaError):
    """The caller may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(FimbriaError):
    """The caller has not shown who it is."""

    code = grpc.StatusCode.UNAUTHENTICATED


class Unimplemented(FimbriaError):
    """The service does not have this method, or not for this input."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Cancelled(FimbriaError):
    """The caller gave up."""

    code = grpc.StatusCode.CANCELLED


class Internal(FimbriaError):
    """A bug or a damaged store; the server's log has the same trace id."""

    code = grpc.StatusCode.INTERNAL


_BY_CODE: dict[grpc.StatusCode, type[FimbriaError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        Unavailable,
        Aborted,
        OutOfRange,
        DeadlineExceeded,
        PermissionDenied,
        Unauthenticated,
        Unimplemented,
        Cancelled,
        Internal,
    )
}


def error_class(code: grpc.StatusCode) -> type[FimbriaError]:
    """The subclass for a status code; codes without one of their own (UNKNOWN, DATA_LOSS) are Internal."""
    return _BY_CODE.get(code, Internal)


def rich_status(exc: FimbriaError) -> status_pb2.Status:
    """The ``google.rpc.Status`` of the error: ErrorInfo, and BadRequest and RetryInfo where set.

    An error too large for gRPC's metadata is cut: its message at MESSAGE_BYTES, its violations at
    VIOLATIONS_BYTES, and the metadata ``violations_left_out`` then says how many are missing.
    """
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2

    number: int = exc.code.value[0]
    status = status_pb2.Status(code=number, message=_cut(exc.message, MESSAGE_BYTES))

    def add(
        detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
    ) -> None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)

    metadata = {key: _cut(value, 256) for key, value in exc.metadata.items()}
    bad = error_details_pb2.BadRequest()
    for position, violation in enumerate(exc.violations):
        if bad.ByteSize() > VIOLATIONS_BYTES:
            metadata["violations_left_out"] = str(len(exc.violations) - position)
            break
        bad.field_violations.add(
            field=_cut(violation.field, 256), description=_cut(violation.description, 512)
        )
    add(error_details_pb2.ErrorInfo(reason=exc.reason, domain=ERROR_DOMAIN, metadata=metadata))
    if exc.violations:
        add(bad)
    if exc.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(exc.retry_after * 1e9))
        add(retry)
    return status


def _cut(text: str, size: int) -> str:
    """The text, or as much of it as fits ``size`` bytes in gRPC's percent-encoding, with an ellipsis."""
    if len(quote(text, safe=_PLAIN)) <= size:
        return text
    kept = text[:size]
    while len(quote(kept, safe=_PLAIN)) > size - 9:
        kept = kept[: len(kept) * 9 // 10]
    return kept + "…"


def error_from_status(status: status_pb2.Status) -> FimbriaError:
    """The error that a ``google.rpc.Status`` stands for; the inverse of :func:`rich_status`."""
    from google.rpc import error_details_pb2

    reason, metadata, violations, retry_after = "", {}, [], None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations = [FieldViolation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    code = next((c for c in grpc.StatusCode if c.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    return error_class(code)(
        status.message,
        reason=reason or code.name,
        metadata=metadata,
        violations=violations,
        retry_after=retry_after,
    )


def error_from_rpc(exc: grpc.RpcError, target: str = "") -> FimbriaError:
    """The :class:`FimbriaError` behind a failed call.

    A status without ErrorInfo gets a reason of its own: SERVICE_UNAVAILABLE for a connection that could not
    be made or was lost (the message names the target), else the name of the code.
    """
    code = exc.code() if isinstance(exc, grpc.aio.AioRpcError | grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (exc.details() if isinstance(exc, grpc.aio.AioRpcError | grpc.Call) else None) or ""
    told = _told(exc, code)
    if told is not None:
        return told
    where = target or str(getattr(exc, "target", "") or "")
    metadata = {"target": where} if where else {}
    if code is grpc.StatusCode.UNAVAILABLE:
        message = f"cannot reach {where or 'the service'}: {details or 'connection failed'}"
        return Unavailable(message, reason="SERVICE_UNAVAILABLE", metadata=metadata)
    return error_class(code)(details or code.name, reason=code.name, metadata=metadata)


def _told(exc: grpc.RpcError, code: grpc.StatusCode) -> FimbriaError | None:
    """The error in the call's trailing metadata, or None when there is none that can be believed."""
    from google.protobuf.message import DecodeError
    from google.rpc import status_pb2

    if not isinstance(exc, grpc.aio.AioRpcError | grpc.Call):
        return None
    trailing: Iterable[tuple[str, str | bytes]] = exc.trailing_metadata() or ()
    for key, value in trailing:
        if key != STATUS_DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
            # The two codes must agree: a proxy may have replaced the one that gRPC itself carries.
            return error_from_status(status) if status.code == code.value[0] else None
        except DecodeError:
            return None
    return None
