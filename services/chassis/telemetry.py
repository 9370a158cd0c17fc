"""Traces, metrics and exported log lines of a process.

Spans are always recorded and go where the settings say: into a file of JSON lines (the lab's store), to an
OTLP collector, or nowhere. Neither place can slow the process down: the file is written by a thread of its
own, the collector is fed from bounded queues with short deadlines, and shutting down takes two seconds at
most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Meter, MeterProvider, NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
)
from opentelemetry.util.types import AttributeValue

from services.chassis import names
from services.chassis.errors import FimbriaError
from services.chassis.settings import CommonSettings
from services.chassis.spanfile import SpanFile

if TYPE_CHECKING:
    from services.chassis.otlp import OtlpExport

SHUTDOWN_SECONDS: Final = 2.0
# Boundaries of the RPC histograms; the library's own are meant for milliseconds.
RPC_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A W3C trace context as text; both fields are empty when there is no span."""

    traceparent: str = ""
    tracestate: str = ""

    def __bool__(self) -> bool:
        return bool(self.traceparent)


class Telemetry:
    """The providers of one process; made by :func:`init_telemetry`."""

    def __init__(
        self,
        service: str,
        tracers: TracerProvider,
        meters: MeterProvider,
        span_file: SpanFile | None,
        otlp: OtlpExport | None,
    ) -> None:
        self.service = service
        self.tracer_provider = tracers
        self.meter_provider = meters
        self.tracer: Tracer = tracers.get_tracer("fimbria")
        self.meter: Meter = meters.get_meter("fimbria")
        self.client_duration = self.meter.create_histogram(
            names.RPC_CLIENT_DURATION,
            unit="s",
            description="Time from a call's start to its status.",
            explicit_bucket_boundaries_advisory=RPC_SECONDS,
        )
        self._span_file = span_file
        self._otlp = otlp

    @property
    def measures(self) -> bool:
        """Whether metrics go anywhere; without a collector, recording them is skipped."""
        return self._otlp is not None

    def log(self, event: Mapping[str, Any]) -> None:
        """Sends a finished log line to the collector too, if there is one."""
        if self._otlp is not None:
            self._otlp.log(event)

    def flush(self) -> None:
        """Writes out the spans that have ended so far to the span file."""
        if self._span_file is not None:
            self._span_file.flush()

    def shutdown(self) -> None:
        """Flushes and closes; takes no longer than SHUTDOWN_SECONDS, whatever the collector does."""
        if self._otlp is not None:
            self._otlp.shutdown(SHUTDOWN_SECONDS)
        if self._span_file is not None:
            self._span_file.close()


_current: Telemetry | None = None


def init_telemetry(service: str, settings: CommonSettings) -> Telemetry:
    """Makes the process's tracer and meter providers, and the module functions here use them from now on.

    Raises OSError when the trace file cannot be opened.
    """
    global _current
    resource = Resource(
        {"service.name": service, "service.namespace": "fimbria", "service.instance.id": settings.instance}
    )
    tracers = TracerProvider(
        sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False, span_limits=SpanLimits(max_events=64)
    )
    span_file: SpanFile | None = None
    if settings.trace_file:
        span_file = SpanFile(settings.trace_file, service)
        tracers.add_span_processor(span_file)
    otlp: OtlpExport | None = None
    meters: MeterProvider = NoOpMeterProvider()
    if settings.otlp_endpoint:
        from services.chassis.otlp import OtlpExport

        otlp = OtlpExport(settings.otlp_endpoint, resource)
        tracers.add_span_processor(otlp.spans)
        meters = otlp.meters
    _current = Telemetry(service, tracers, meters, span_file, otlp)
    return _current


def current() -> Telemetry | None:
    """The telemetry that :func:`init_telemetry` made last, or None."""
    return _current


def tracer() -> Tracer:
    """The process's tracer; before :func:`init_telemetry`, one that records nothing."""
    return _current.tracer if _current else trace.NoOpTracer()


def meter() -> Meter:
    """The process's meter; records nothing unless a collector is configured."""
    return _current.meter if _current else NoOpMeterProvider().get_meter("fimbria")


def trace_context(span: Span) -> TraceContext:
    """The W3C form of a span's context."""
    where = span.get_span_context()
    if not where.is_valid:
        return TraceContext()
    text = f"00-{where.trace_id:032x}-{where.span_id:016x}-{where.trace_flags & 0xFF:02x}"
    return TraceContext(text, where.trace_state.to_header() if where.trace_state else "")


def traceparent_of(origin: Span | str) -> str:
    """Of a span, whose text form is only made where somebody wants it; a text is one already."""
    return origin if isinstance(origin, str) else trace_context(origin).traceparent


def inject() -> TraceContext:
    """The current span's context, to be carried in a message or stored with a change."""
    return trace_context(trace.get_current_span())


def remote_context(traceparent: str, tracestate: str = "") -> Context:
    """The context that makes a remote span the parent; an empty one for malformed input, as W3C asks."""
    where = _parse_traceparent(traceparent, tracestate)
    return Context() if where is None else trace.set_span_in_context(NonRecordingSpan(where), Context())


def _parse_traceparent(traceparent: str, tracestate: str) -> SpanContext | None:
    parts = traceparent.strip().split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == "ff":
        return None
    try:
        trace_id, span_id, flags = int(parts[1], 16), int(parts[2], 16), int(parts[3], 16)
    except ValueError:
        return None
    if not trace_id or not span_id:
        return None
    state = TraceState.from_header([tracestate]) if tracestate else TraceState()
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags), trace_state=state)


@contextmanager
def span(
    name: str,
    *,
    parent: Context | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    start_time: int | None = None,
    attributes: Mapping[str, AttributeValue | None] | None = None,
    **more: AttributeValue | None,
) -> Iterator[Span]:
    """A span that is current inside the block and ends with it.

    ``parent`` defaults to the current span; ``start_time`` is in nanoseconds since the epoch. Attributes with
    dots in their names come in the mapping, others may be keywords; those that are None are left out. An
    exception marks the span as failed with the exception's reason and goes on.
    """
    given = {key: value for key, value in {**(attributes or {}), **more}.items() if value is not None}
    started = tracer().start_span(name, context=parent, kind=kind, start_time=start_time, attributes=given)
    token = otel_context.attach(trace.set_span_in_context(started))
    try:
        yield started
    except BaseException as exc:
        mark_failed(started, exc)
        raise
    finally:
        detach(token)
        started.end()


def mark_failed(span: Span, exc: BaseException) -> None:
    """Sets a span's status from an exception; giving up (cancellation) is an event, not a failure."""
    if isinstance(exc, asyncio.CancelledError | GeneratorExit):
        span.add_event("cancelled")
        return
    reason = exc.reason if isinstance(exc, FimbriaError) else type(exc).__name__
    span.set_attribute(names.ERROR_TYPE, reason)
    span.set_status(Status(StatusCode.ERROR, str(exc)))


def detach(token: Token[Context]) -> None:
    """Leaves a context that :func:`opentelemetry.context.attach` entered.

    An async generator that is closed by the garbage collector ends in another context than it began in; there
    the token is of no use and nothing has to be restored.
    """
    try:
        token.var.reset(token)
    except ValueError:
        return
