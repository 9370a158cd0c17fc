"""Log lines on their way to an OTLP collector: the same lines as on standard error, with the same keys.

Imported only when an endpoint is configured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, get_value
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.types import AnyValue

from services.chassis import names

MAX_QUEUED_LINES: Final = 2048
# A verifier's log is on standard error in full; a collector takes 4 MiB at a time, all lines of a batch
# together.
MAX_TEXT: Final = 4096
_BATCH: Final = 256

_SEVERITIES: Final = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "exception": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
# What a record has in other places: its body, severity, time, trace, and the resource.
_ELSEWHERE: Final = {
    "event", "level", "timestamp", "service", "instance", names.LOG_TRACE_ID, names.LOG_SPAN_ID,
}  # fmt: skip
_INT64: Final = 1 << 63


class LogExport:
    """A bounded queue of lines, sent by a thread of its own. When the collector cannot follow, the oldest
    lines are dropped; nobody ever waits.
    """

    def __init__(self, endpoint: str, resource: Resource, *, insecure: bool, timeout: float) -> None:
        exporter = OTLPLogExporter(endpoint=endpoint, insecure=insecure, timeout=timeout)
        self._queue = BatchLogRecordProcessor(
            exporter, schedule_delay_millis=500, max_export_batch_size=_BATCH, max_queue_size=MAX_QUEUED_LINES
        )
        self._provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_log_record_processor(self._queue)
        self._logger = self._provider.get_logger("fimbria")

    def line(self, event: Mapping[str, Any]) -> None:
        """Queues a finished line, with the ids of the current span."""
        # What the exporters themselves have to say would come back to them for ever.
        if get_value(_SUPPRESS_INSTRUMENTATION_KEY) or str(event.get("logger", "")).startswith(
            "opentelemetry"
        ):
            return
        level = str(event.get("level", "info"))
        self._logger.emit(
            timestamp=time.time_ns(),
            severity_number=_SEVERITIES.get(level, SeverityNumber.INFO),
            severity_text=level,
            body=_text(str(event.get("event", ""))),
            attributes=attributes_of(event),
        )

    def shutdown(self) -> None:
        """Sends what is queued; may take long when the collector does not answer."""
        self._provider.shutdown()


def attributes_of(event: Mapping[str, Any]) -> dict[str, AnyValue]:
    """A line's own keys with values that OTLP has; those that are None are left out."""
    return {key: _value(value) for key, value in event.items() if value is not None and key not in _ELSEWHERE}


def _value(value: Any) -> AnyValue:
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -_INT64 <= value < _INT64:
        return int(value)
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [_text(str(item)) for item in value]
    if isinstance(value, Mapping):
        return _text(orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode())
    return _text(str(value))


def _text(text: str) -> str:
    """Bounded, and without halves of surrogates (from file names), which protobuf refuses."""
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + "…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
