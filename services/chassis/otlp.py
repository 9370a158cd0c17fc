"""Export to an OTLP collector; imported only when an endpoint is configured, for it costs start-up time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from services.chassis.otlp_logs import LogExport

EXPORT_SECONDS: Final = 2.0
# A span takes some 3.5 KB while it waits.
MAX_QUEUED_SPANS: Final = 4096


class OtlpExport:
    """Batches of spans, metrics and log lines for one collector, sent by threads that nothing else waits
    for.
    """

    def __init__(self, endpoint: str, resource: Resource) -> None:
        insecure = not endpoint.startswith("https://")
        span_exporter = OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=EXPORT_SECONDS)
        self.spans = BatchSpanProcessor(
            span_exporter,
            max_queue_size=MAX_QUEUED_SPANS,
            schedule_delay_millis=500,
            max_export_batch_size=512,
        )
        metric_exporter = OTLPMetricExporter(endpoint=endpoint, insecure=insecure, timeout=EXPORT_SECONDS)
        self.meters = MeterProvider(
            [
                PeriodicExportingMetricReader(
                    metric_exporter, export_interval_millis=10_000, export_timeout_millis=2000
                )
            ],
            resource=resource,
            shutdown_on_exit=False,
        )

        self._logs = LogExport(endpoint, resource, insecure=insecure, timeout=EXPORT_SECONDS)

    def log(self, event: Mapping[str, Any]) -> None:
        """Queues a finished log line."""
        self._logs.line(event)

    def shutdown(self, seconds: float) -> None:
        """Sends what is queued, for at most ``seconds``; then leaves the rest unsent."""
        millis = round(seconds * 1000)
        # The libraries' shutdown may outlast the bound that it is given: it runs aside and is waited for.
        closing = [
            threading.Thread(target=work, args=arguments, name=f"otlp-{name}-shutdown", daemon=True)
            for name, work, arguments in (
                ("spans", self.spans.shutdown, ()),
                ("meters", self.meters.shutdown, (millis,)),
                ("logs", self._logs.shutdown, ()),
            )
        ]
        ends = time.monotonic() + seconds
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(max(0.0, ends - time.monotonic()))
