from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from services.chassis import errors
from services.chassis.errors import (
    FieldViolation,
    FimbriaError,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
    error_from_rpc,
    error_from_status,
    rich_status,
)


def rpc_error(code: grpc.StatusCode, details: str = "", trailing: object = ()) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*trailing)  # type: ignore[misc]
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)


def test_a_status_carries_reason_metadata_and_fields() -> None:
    exc = InvalidArgument(
        "cidr is not a prefix",
        reason="CIDR_INVALID",
        metadata={"pool": "default", "size": 24},
        violations=[FieldViolation("cidr", "is 'x'; expected a prefix")],
        retry_after=0.25,
    )
    status = rich_status(exc)
    assert (status.code, status.message) == (3, "cidr is not a prefix")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "CIDR_INVALID",
        "fimbria",
        {"pool": "default", "size": "24"},
    )
    back = error_from_status(status)
    assert type(back) is InvalidArgument
    assert (back.message, back.reason, back.metadata) == (exc.message, exc.reason, exc.metadata)
    assert (back.violations, back.retry_after) == (exc.violations, 0.25)


@pytest.mark.parametrize(
    "cls", [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, FimbriaError)]
)
def test_every_class_survives_the_wire(cls: type[FimbriaError]) -> None:
    if cls is FimbriaError:
        return
    assert type(error_from_status(rich_status(cls("m", reason="R")))) is cls


def test_a_status_without_details_gets_a_reason_from_its_code() -> None:
    failure = error_from_rpc(rpc_error(grpc.StatusCode.NOT_FOUND, "gone"))
    assert isinstance(failure, NotFound)
    assert (failure.message, failure.reason) == ("gone", "NOT_FOUND")


def test_an_unknown_code_is_internal() -> None:
    failure = error_from_rpc(rpc_error(grpc.StatusCode.DATA_LOSS, "lost"))
    assert isinstance(failure, Internal) and failure.reason == "DATA_LOSS"


def test_a_lost_connection_names_the_target() -> None:
    failure = error_from_rpc(
        rpc_error(grpc.StatusCode.UNAVAILABLE, "connection refused"), "unix:/run/ipam.sock"
    )
    assert isinstance(failure, Unavailable)
    assert failure.reason == "SERVICE_UNAVAILABLE"
    assert failure.message == "cannot reach unix:/run/ipam.sock: connection refused"
    assert failure.metadata == {"target": "unix:/run/ipam.sock"}


def test_details_of_another_code_are_not_believed() -> None:
    packed = status_pb2.Status(code=5, message="stale").SerializeToString()
    exc = rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "late", [("grpc-status-details-bin", packed)])
    assert error_from_rpc(exc).reason == "DEADLINE_EXCEEDED"


def test_damaged_details_are_left_aside() -> None:
    exc = rpc_error(grpc.StatusCode.NOT_FOUND, "gone", [("grpc-status-details-bin", b"\xff\xff")])
    assert error_from_rpc(exc).message == "gone"


def test_a_large_error_fits_into_metadata_and_says_what_is_missing() -> None:
    violations = [FieldViolation(f"rules[{number}]", "ü" * 100) for number in range(1000)]
    status = rich_status(InvalidArgument("€" * 9000, reason="MANIFEST_INVALID", violations=violations))
    assert len(status.SerializeToString()) < 5000
    back = error_from_status(status)
    left_out = int(back.metadata["violations_left_out"])
    assert len(back.violations) + left_out == 1000 and left_out > 0
    assert back.message.endswith("€…")
