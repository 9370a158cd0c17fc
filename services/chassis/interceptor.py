"""The one pass that every incoming call takes: trace, deadline, validation, errors, metrics, log line.

One interceptor does all of it, rather than a chain of five: each link of a chain costs every call, and the
order matters. The span must be current before anything can fail, and the error mapped before the span ends.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final, NoReturn, TypeVar, cast

import grpc
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.chassis import names
from services.chassis.errors import (
    STATUS_DETAILS_KEY,
    DeadlineExceeded,
    FimbriaError,
    Internal,
    Unavailable,
    rich_status,
)
from services.chassis.logs import get_logger
from services.chassis.overload import Load, Room
from services.chassis.settings import DEFAULT_MAX_CALLS, DEFAULT_MAX_WATCHES
from services.chassis.telemetry import RPC_SECONDS, Telemetry, detach, mark_failed, remote_context
from services.chassis.validation import validate

DEFAULT_DEADLINE_SECONDS: Final = 30.0
HEALTH_NOTICE_SECONDS: Final = 0.05

# Health, reflection and channelz are called all the time by things, not by people: no spans, no log lines.
INFRASTRUCTURE: Final = "/grpc."

DRAINING: Final = "DRAINING"

R = TypeVar("R")
ServicerContext = Any
Behaviour = Callable[[Any, ServicerContext], Any]

log = get_logger(__name__)


class CallDeadline:
    """When the call being served must be over, in time.monotonic() seconds; None when it is, or need not be.

    Tasks that a handler leaves behind share the object, so that they are not held to the deadline of a call
    that has ended.
    """

    __slots__ = ("at",)

    def __init__(self, at: float | None) -> None:
        self.at = at


call_deadline: ContextVar[CallDeadline | None] = ContextVar("fimbria_call_deadline", default=None)


class ServerCalls(grpc.aio.ServerInterceptor):
    """The interceptor; it also knows the running streams, so that a drain can end them."""

    def __init__(
        self,
        telemetry: Telemetry,
        *,
        max_calls: int = DEFAULT_MAX_CALLS,
        max_watches: int = DEFAULT_MAX_WATCHES,
    ) -> None:
        self._telemetry = telemetry
        self._load = Load(max_calls, max_watches, telemetry)
        self._rooms: dict[str, Room] = {}
        self._streams: set[asyncio.Task[Any]] = set()
        self._infrastructure: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._duration = telemetry.meter.create_histogram(
            names.RPC_SERVER_DURATION,
            unit="s",
            description="Time from a call's arrival to its status.",
            explicit_bucket_boundaries_advisory=RPC_SECONDS,
        )

    def drain(self) -> None:
        """Ends all running streams with UNAVAILABLE (DRAINING), which tells a watcher to resume elsewhere."""
        self._draining = True
        for task in self._streams:
            task.cancel()
        # Whoever watches the health service is told NOT_SERVING first.
        asyncio.get_running_loop().call_later(HEALTH_NOTICE_SECONDS, self._end_infrastructure)

    def _end_infrastructure(self) -> None:
        for task in self._infrastructure:
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        path = handler_call_details.method
        known = self._handlers.get(path)
        if known is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            known = self._handlers[path] = self._wrapped(handler, path)
            if not path.startswith(INFRASTRUCTURE):
                self._rooms[path] = self._load.watches if handler.response_streaming else self._load.calls
        room = self._rooms.get(path)
        if room is not None and room.full:
            # Without a span, and before the request has even been read: refusing must stay cheap.
            return _refusing(room, path)
        return known

    def _wrapped(
        self, handler: grpc.RpcMethodHandler[Any, Any], path: str
    ) -> grpc.RpcMethodHandler[Any, Any]:
        plain = path.startswith(INFRASTRUCTURE)
        if plain and not handler.response_streaming:
            return handler
        make: Callable[..., grpc.RpcMethodHandler[Any, Any]]
        if handler.request_streaming:
            make, inner = grpc.stream_unary_rpc_method_handler, cast(Behaviour, handler.stream_unary)
            if handler.response_streaming:
                make, inner = grpc.stream_stream_rpc_method_handler, cast(Behaviour, handler.stream_stream)
        else:
            make, inner = grpc.unary_unary_rpc_method_handler, cast(Behaviour, handler.unary_unary)
            if handler.response_streaming:
                make, inner = grpc.unary_stream_rpc_method_handler, cast(Behaviour, handler.unary_stream)
        if plain:
            behaviour = self._untraced(inner)
        elif handler.response_streaming:
            behaviour = self._stream(inner, path, handler.request_streaming)
        else:
            behaviour = self._unary(inner, path, handler.request_streaming)
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _unary(self, inner: Behaviour, path: str, many: bool) -> Behaviour:
        room = self._load.calls

        async def serve(request: Any, context: ServicerContext) -> Any:
            async def answer() -> Any:
                return await inner(_checked(request, many), context)

            if room.full:
                # Others came in while the request was being read.
                await _abort(context, room.refusal(path))
            left = context.time_remaining()
            seconds = DEFAULT_DEADLINE_SECONDS if left is None else left
            room.running += 1
            try:
                return await self._observed(path, context, answer, seconds)
            finally:
                room.running -= 1

        return serve

    def _stream(self, inner: Behaviour, path: str, many: bool) -> Behaviour:
        room = self._load.watches

        async def serve(request: Any, context: ServicerContext) -> None:
            async def answer() -> None:
                await self._tracked(_send_all(inner, _checked(request, many), context), self._streams)

            if room.full:
                await _abort(context, room.refusal(path))
            room.running += 1
            try:
                await self._observed(path, context, answer, context.time_remaining())
            finally:
                room.running -= 1

        return serve

    def _untraced(self, inner: Behaviour) -> Behaviour:
        async def serve(request: Any, context: ServicerContext) -> None:
            try:
                await self._tracked(_send_all(inner, request, context), self._infrastructure)
            except Unavailable as exc:
                await _abort(context, exc)

        return serve

    async def _tracked(self, sending: Awaitable[None], running: set[asyncio.Task[Any]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await sending
        except asyncio.CancelledError:
            if not self._draining:
                raise
            task.uncancel()
            raise Unavailable(
                "the service is stopping; resume the stream on another replica, or here when it is back",
                reason=DRAINING,
            ) from None
        finally:
            running.discard(task)

    async def _observed(
        self,
        path: str,
        context: ServicerContext,
        answer: Callable[[], Awaitable[R]],
        seconds: float | None,
    ) -> R:
        span = self._telemetry.tracer.start_span(
            names.rpc_span_name(path),
            context=_parent(context.invocation_metadata()),
            kind=SpanKind.SERVER,
            attributes={names.RPC_SYSTEM: names.RPC_SYSTEM_GRPC, names.RPC_METHOD: path.lstrip("/")},
        )
        token = otel_context.attach(trace.set_span_in_context(span))
        started = time.perf_counter()
        deadline = CallDeadline(None if seconds is None else time.monotonic() + seconds)
        restore = call_deadline.set(deadline)
        code = grpc.StatusCode.OK
        failure: FimbriaError
        try:
            try:
                if context.time_remaining() is None:
                    async with asyncio.timeout(seconds):
                        return await answer()
                # With a deadline from the client, gRPC itself cancels the handler.
                return await answer()
            except FimbriaError as exc:
                failure = exc
            except grpc.aio.AbortError:
                code = context.code() or grpc.StatusCode.UNKNOWN
                raise
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as exc:
                failure = self._unexpected(exc, span, deadline)
            code = failure.code
            mark_failed(span, failure)
            self._report(failure, path)
            await _abort(context, failure)
        finally:
            elapsed = time.perf_counter() - started
            deadline.at = None
            call_deadline.reset(restore)
            self._finish(span, path, code, elapsed)
            detach(token)

    def _report(self, failure: FimbriaError, path: str) -> None:
        line = {"method": path, "code": failure.code.name, "reason": failure.reason, "error": failure.message}
        if isinstance(failure, Internal):
            log.error("call failed", exc_info=failure, **line)
        elif failure.reason != DRAINING:
            log.info("call failed", **line)

    def _unexpected(self, exc: Exception, span: Span, deadline: CallDeadline) -> FimbriaError:
        if isinstance(exc, TimeoutError) and deadline.at is not None and time.monotonic() >= deadline.at:
            return DeadlineExceeded(
                f"not done within {DEFAULT_DEADLINE_SECONDS:g} s, the limit for calls without a deadline",
                reason="DEADLINE_EXCEEDED",
            )
        trace_id = f"{span.get_span_context().trace_id:032x}"
        failure = Internal(
            f"internal error; the log of {self._telemetry.service} tells more under trace {trace_id}",
            reason="INTERNAL",
            metadata={"trace_id": trace_id},
        )
        failure.__cause__ = exc
        return failure

    def _finish(self, span: Span, path: str, code: grpc.StatusCode, seconds: float) -> None:
        span.set_attribute(names.RPC_STATUS, code.name)
        if code is grpc.StatusCode.CANCELLED:
            span.add_event("cancelled")
        elif code is not grpc.StatusCode.OK:
            span.set_status(Status(StatusCode.ERROR, span_description(span, code)))
        if self._telemetry.measures:
            self._duration.record(
                seconds,
                {
                    names.RPC_SYSTEM: names.RPC_SYSTEM_GRPC,
                    names.RPC_METHOD: path.lstrip("/"),
                    names.RPC_STATUS: code.name,
                },
            )
        log.debug("call", method=path, code=code.name, milliseconds=round(seconds * 1000, 3))
        span.end()


def _refusing(room: Room, path: str) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that refuses a call of any kind; as one of streams it is called without a request read."""

    async def refuse(_: Any, context: ServicerContext) -> None:
        await _abort(context, room.refusal(path))

    return grpc.stream_unary_rpc_method_handler(cast(Behaviour, refuse))


def span_description(span: Span, code: grpc.StatusCode) -> str:
    """What a failed call's span says: the error's text where one is known, else the code."""
    status = getattr(span, "status", None)
    return str(getattr(status, "description", None) or code.name)


async def _send_all(inner: Behaviour, request: Any, context: ServicerContext) -> None:
    """Sends what a streaming handler yields, and closes the generator in this task whatever happens."""
    if not inspect.isasyncgenfunction(inner):
        await inner(request, context)
        return
    messages = inner(request, context)
    try:
        async for message in messages:
            await context.write(message)
    finally:
        await messages.aclose()


def _checked(request: Any, many: bool) -> Any:
    """The request, or the stream of requests, after validation."""
    if many:
        return _checked_each(request)
    validate(request)
    return request


async def _checked_each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        validate(request)
        yield request


def _parent(metadata: Iterable[tuple[str, str | bytes]] | None) -> Context:
    found = {key: value for key, value in metadata or () if key in (names.TRACEPARENT, names.TRACESTATE)}
    traceparent, tracestate = found.get(names.TRACEPARENT, ""), found.get(names.TRACESTATE, "")
    if not isinstance(traceparent, str) or not isinstance(tracestate, str):
        return Context()
    return remote_context(traceparent, tracestate)


async def _abort(context: ServicerContext, failure: FimbriaError) -> NoReturn:
    status = rich_status(failure)
    trailing = ((STATUS_DETAILS_KEY, status.SerializeToString()),)
    await context.abort(failure.code, status.message, trailing)
    raise AssertionError("abort returned")
