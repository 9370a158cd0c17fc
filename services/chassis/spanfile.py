"""The span store of a lab: finished spans appended to a file, one JSON object a line.

Several processes append to the same file. Each batch is one ``write`` on a descriptor opened with O_APPEND,
so lines never interleave.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any, Final

import orjson
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

FLUSH_SECONDS: Final = 0.03
MAX_BUFFERED: Final = 20_000


class SpanFile(SpanProcessor):
    """Writes finished spans within 100 ms from a thread of its own; drops the oldest when the disk cannot
    follow.

    Raises OSError when the file cannot be opened. The file is created with mode 0600.
    """

    def __init__(self, path: str, service: str) -> None:
        self._service = service
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._ended: deque[ReadableSpan] = deque(maxlen=MAX_BUFFERED)
        self._work = threading.Event()
        self._closing = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="span-file", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        return

    def on_end(self, span: ReadableSpan) -> None:
        self._ended.append(span)
        if not self._work.is_set():
            self._work.set()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.flush()
        return True

    def shutdown(self) -> None:
        self.close()

    def flush(self) -> None:
        """Writes what has ended so far."""
        with self._writing:
            lines = bytearray()
            while self._ended:
                lines += orjson.dumps(span_line(self._ended.popleft(), self._service), default=str)
                lines += b"\n"
            if lines and self._file >= 0:
                try:
                    os.write(self._file, lines)
                except OSError:
                    # A full disk costs spans, not requests.
                    return

    def close(self) -> None:
        """Writes the rest and closes the file; later spans are dropped. May be called again."""
        self._closing.set()
        self._work.set()
        self.flush()
        with self._writing:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _run(self) -> None:
        while not self._closing.is_set():
            self._work.wait()
            # Spans come in bursts: one short pause gathers a burst into one write.
            self._closing.wait(FLUSH_SECONDS)
            self._work.clear()
            self.flush()


def span_line(span: ReadableSpan, service: str) -> dict[str, Any]:
    """The JSON object of a span: ids as hex, times in nanoseconds since the epoch."""
    where = span.get_span_context()
    return {
        "trace_id": f"{where.trace_id:032x}" if where else "",
        "span_id": f"{where.span_id:016x}" if where else "",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent else "",
        "name": span.name,
        "service": service,
        "kind": span.kind.name,
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "status": span.status.status_code.name,
        "status_message": span.status.description or "",
        "attributes": dict(span.attributes or {}),
        "events": [
            {"name": event.name, "time_ns": event.timestamp, "attributes": dict(event.attributes or {})}
            for event in span.events
        ],
    }
