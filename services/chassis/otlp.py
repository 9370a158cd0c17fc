"""Export to an OTLP collector; imported only when an endpoint is configured, for it costs start-up time."""

from __future__ import annotations

import threading
from typing import Final

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor

EXPORT_SECONDS: Final = 2.0
MAX_QUEUED_SPANS: Final = 8192


class OtlpExport:
    """Batches of spans and metrics for one collector, sent by threads that nothing else waits for."""

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

    def shutdown(self, seconds: float) -> None:
        """Sends what is queued, for at most ``seconds``; then leaves the rest unsent."""
        millis = round(seconds * 1000)
        # Both libraries' shutdown may outlast the bound they are given: they run aside and are waited for.
        closing = [
            threading.Thread(target=self.spans.shutdown, name="otlp-spans-shutdown", daemon=True),
            threading.Thread(
                target=self.meters.shutdown, args=(millis,), name="otlp-meters-shutdown", daemon=True
            ),
        ]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(seconds / len(closing))
