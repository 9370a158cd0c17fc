"""Values as the messages of the API show them."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from services.ipam.family import Address


def text(address: Address | None) -> str:
    """The address, empty when there is none."""
    return "" if address is None else str(address)


def timestamp(nanoseconds: int) -> Timestamp:
    """Unix time in nanoseconds."""
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)
