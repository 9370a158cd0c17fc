"""How a client sees an error: the FimbriaError behind a call that must fail."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc
import pytest

from services.chassis.errors import FimbriaError, error_from_rpc

E = TypeVar("E", bound=FimbriaError)


async def refused(call: Awaitable[Any], expected: type[E], reason: str) -> E:
    """The error that `call` fails with; it must be an `expected` with that reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = error_from_rpc(caught.value)
    assert isinstance(error, expected), repr(error)
    assert error.reason == reason, repr(error)
    return error
