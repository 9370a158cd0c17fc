"""A collector on a real socket: what processes send by OTLP, kept for a test to look at; and the ways in
which a collector can be of no use.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.patience import patient

T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """A finished span; ids as hex, ``parent_id`` empty for a root, times in nanoseconds."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    start_ns: int
    end_ns: int
    failed: bool


@dataclass(frozen=True)
class Line:
    """A log line; ids are empty outside of spans."""

    service: str
    body: str
    severity: str
    attributes: dict[str, Any]
    trace_id: str
    span_id: str


@dataclass(frozen=True)
class Point:
    """The last that was told of a metric with these attributes; of a histogram ``value`` is the sum."""

    attributes: dict[str, Any]
    value: float
    count: int = 0
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A metric as it was told last."""

    service: str
    name: str
    kind: str
    unit: str
    points: list[Point]


@dataclass
class Received:
    """What has come so far."""

    spans: list[Span] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    metrics: dict[tuple[str, str], Metric] = field(default_factory=dict)
    resources: set[tuple[str, str]] = field(default_factory=set)

    def named(self, name: str) -> list[Span]:
        """Spans of a name."""
        return [span for span in self.spans if span.name == name]

    def trace(self, trace_id: str) -> list[Span]:
        """Spans of a trace."""
        return [span for span in self.spans if span.trace_id == trace_id]

    def points(self, metric: str, **attributes: Any) -> list[Point]:
        """What every process told last of a metric, as far as it has the attributes."""
        return [
            point
            for (_, name), told in self.metrics.items()
            if name == metric
            for point in told.points
            if attributes.items() <= point.attributes.items()
        ]


class Collector:
    """Takes traces, metrics and logs at ``endpoint``. ``refusal`` makes it answer with that error instead,
    and ``hold`` not at all until it is set.
    """

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.received = Received()
        self.refusal: grpc.StatusCode | None = None
        self.hold: threading.Event | None = None
        self.calls = 0
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(8))
        for add in (
            trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
            metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server,
            logs_service_pb2_grpc.add_LogsServiceServicer_to_server,
        ):
            add(self, self._server)  # type: ignore[no-untyped-call]
        port = self._server.add_insecure_port(address)
        self.endpoint = address if address.startswith("unix:") else f"http://127.0.0.1:{port}"
        self._server.start()

    def close(self) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.stop(None).wait()

    def wait(self, found: Callable[[Received], T], seconds: float = 30.0) -> T:
        """What ``found`` finds in what has come, once that is something."""
        deadline = time.monotonic() + patient(seconds)
        while True:
            with self._lock:
                result = found(self.received)
            if result:
                return result
            assert time.monotonic() < deadline, f"it did not come; {self._summary()}"
            time.sleep(0.02)

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._lock:
            self.calls += 1
        if self.hold is not None:
            self.hold.wait()
        if self.refusal is not None:
            context.abort(self.refusal, "told to refuse")
        with self._lock:
            if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
                self._take_spans(request)
                return trace_service_pb2.ExportTraceServiceResponse()
            if isinstance(request, logs_service_pb2.ExportLogsServiceRequest):
                self._take_lines(request)
                return logs_service_pb2.ExportLogsServiceResponse()
            self._take_metrics(request)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    def _take_spans(self, request: Any) -> None:
        for group in request.resource_spans:
            service = self._resource(group.resource)
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.received.spans.append(
                        Span(
                            service,
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            _attributes(span.attributes),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            span.status.code == 2,
                        )
                    )

    def _take_lines(self, request: Any) -> None:
        for group in request.resource_logs:
            service = self._resource(group.resource)
            for scope in group.scope_logs:
                for line in scope.log_records:
                    self.received.lines.append(
                        Line(
                            service,
                            line.body.string_value,
                            line.severity_text,
                            _attributes(line.attributes),
                            line.trace_id.hex(),
                            line.span_id.hex(),
                        )
                    )

    def _take_metrics(self, request: Any) -> None:
        for group in request.resource_metrics:
            service = self._resource(group.resource)
            for scope in group.scope_metrics:
                for metric in scope.metrics:
                    kind = metric.WhichOneof("data")
                    points = [_point(kind, each) for each in getattr(metric, kind).data_points]
                    told = Metric(service, metric.name, kind, metric.unit, points)
                    self.received.metrics[service, metric.name] = told

    def _resource(self, resource: Any) -> str:
        found = _attributes(resource.attributes)
        self.received.resources |= {(key, str(value)) for key, value in found.items()}
        return str(found.get("service.instance.id") or found.get("service.name"))

    def _summary(self) -> str:
        came = self.received
        return (
            f"spans {sorted({span.name for span in came.spans})}, "
            f"metrics {sorted({name for _, name in came.metrics})}, {len(came.lines)} lines"
        )


@contextmanager
def collecting(address: str = "127.0.0.1:0") -> Iterator[Collector]:
    """A collector for the length of the block."""
    made = Collector(address)
    try:
        yield made
    finally:
        made.close()


USELESS = (
    "refuses",
    "is absent",
    "accepts and says nothing",
    "never answers",
    "answers errors",
    "is overloaded",
)


@contextmanager
def useless(kind: str) -> Iterator[str]:
    """The endpoint of a collector that is of no use, in one of the ways of USELESS."""
    if kind in ("never answers", "answers errors", "is overloaded"):
        with collecting() as collector:
            if kind == "never answers":
                collector.hold = threading.Event()
            elif kind == "answers errors":
                collector.refusal = grpc.StatusCode.INTERNAL
            else:
                collector.refusal = grpc.StatusCode.UNAVAILABLE
            yield collector.endpoint
        return
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        where = bound.getsockname()
        fillers = []
        if kind == "accepts and says nothing":
            bound.listen(64)
        elif kind == "is absent":
            # A queue of connections that is full answers no SYN, as an address that nobody has.
            bound.listen(0)
            fillers = [_connecting(where) for _ in range(4)]
        try:
            yield f"http://127.0.0.1:{where[1]}"
        finally:
            for filler in fillers:
                filler.close()


def _connecting(where: tuple[str, int]) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    made.connect_ex(where)
    return made


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _plain(pair.value) for pair in pairs}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def _point(kind: str, point: Any) -> Point:
    attributes = _attributes(point.attributes)
    if kind == "histogram":
        return Point(attributes, point.sum, point.count, tuple(point.explicit_bounds))
    return Point(attributes, getattr(point, point.WhichOneof("value")))
