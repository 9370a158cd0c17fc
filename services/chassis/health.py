"""The health service of a process (grpc.health.v1), with a name for each thing that can be ready by itself.

The library's own servicer forgets a name's other watchers as soon as one of them goes away, and lets its
state change from coroutines only; this one does neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """Names and whether they serve. To be used from the event loop's thread."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._changed: dict[str, set[asyncio.Event]] = {}
        self._stopping = False

    def set(self, name: str, serving: bool) -> None:
        """Tells who asks and who watches; after :meth:`stop` nothing changes any more."""
        if self._stopping or self._serving.get(name) is serving:
            return
        self._serving[name] = serving
        for event in self._changed.get(name, ()):
            event.set()

    @property
    def watched(self) -> bool:
        """Whether anybody is told of changes."""
        return bool(self._changed)

    def stop(self) -> None:
        """Nothing serves from now on."""
        for name in list(self._serving):
            self.set(name, False)
        self._stopping = True

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no health is told of {request.service!r}")
        return _Status(status=self._status(request.service))

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        changed = asyncio.Event()
        watchers = self._changed.setdefault(request.service, set())
        watchers.add(changed)
        try:
            told = None
            while True:
                changed.clear()
                status = self._status(request.service)
                if status != told:
                    told = status
                    yield _Status(status=status)
                await changed.wait()
        finally:
            watchers.discard(changed)
            if not watchers:
                self._changed.pop(request.service, None)

    def _status(self, name: str) -> int:
        serving = self._serving.get(name)
        if serving is None:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if serving else _Status.NOT_SERVING
