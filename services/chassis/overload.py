"""How much a server takes on at once; what comes beyond that is refused at once, with the time to come back.

A call that waits costs memory and makes everybody behind it later; a refusal costs next to nothing, and tells
the caller to try another replica or to come back. Calls of health, reflection and channelz are never refused:
who wants to know whether an overloaded process lives must get an answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import grpc
from opentelemetry.metrics import CallbackOptions, Observation

from services.chassis import names
from services.chassis.errors import FimbriaError, ResourceExhausted, error_from_rpc
from services.chassis.logs import get_logger
from services.chassis.telemetry import Telemetry

OVERLOADED: Final = "OVERLOADED"
# When who was refused may come back, in seconds: spread, lest all come back together.
RETRY_SECONDS: Final = (0.2, 0.8)
LOG_SECONDS: Final = 1.0

R = TypeVar("R")
log = get_logger(__name__)


class Room:
    """Room for calls of one kind: how many may run at once, and how many do. Belongs to one event loop."""

    __slots__ = ("_refused", "_told", "_unsaid", "kind", "limit", "running")

    def __init__(self, kind: str, limit: int, telemetry: Telemetry) -> None:
        self.kind = kind
        self.limit = limit
        self.running = 0
        self._told = 0.0
        self._unsaid = 0
        self._refused = telemetry.meter.create_counter(
            names.CALLS_REFUSED, description="Calls refused because too many were running."
        )

    @property
    def full(self) -> bool:
        return self.running >= self.limit

    def refusal(self, path: str) -> ResourceExhausted:
        """What a call that finds no room is told; counted, and logged once a second at most."""
        self._refused.add(1, {names.RPC_METHOD: path.lstrip("/"), names.KIND: self.kind})
        self._unsaid += 1
        now = time.monotonic()
        if now - self._told >= LOG_SECONDS:
            log.warning("overloaded", kind=self.kind, limit=self.limit, refused=self._unsaid, method=path)
            self._told, self._unsaid = now, 0
        low, high = RETRY_SECONDS
        return ResourceExhausted(
            f"{self.limit} {self.kind} are running, as many as may run at once; try again in a moment,"
            " or at another replica",
            reason=OVERLOADED,
            metadata={"limit": self.limit, "kind": self.kind, "transient": "true"},
            retry_after=low + random.random() * (high - low),
        )


class Load:
    """A server's room for unary calls and for streams."""

    def __init__(self, max_calls: int, max_watches: int, telemetry: Telemetry) -> None:
        self.calls = Room("calls", max_calls, telemetry)
        self.watches = Room("watches", max_watches, telemetry)
        telemetry.meter.create_observable_gauge(
            names.CALLS_RUNNING, callbacks=[self._observed], description="Calls that are being served."
        )

    def _observed(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(room.running, {names.KIND: room.kind}) for room in (self.calls, self.watches)]


async def when_there_is_room(call: Callable[[], Awaitable[R]], *, seconds: float, target: str = "") -> R:
    """What ``call()`` gives, made again when it is refused with OVERLOADED, for ``seconds`` in all.

    Between two tries it waits as long as the refusal says. Any other failure, and the last refusal, is raised
    as the FimbriaError that it carries.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return await call()
        except grpc.RpcError as error:
            failure: FimbriaError = error_from_rpc(error, target)
        pause = failure.retry_after or RETRY_SECONDS[0]
        if failure.reason != OVERLOADED or time.monotonic() + pause >= end:
            raise failure
        await asyncio.sleep(pause)
