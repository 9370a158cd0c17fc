"""Structured log lines on standard error, with the trace they belong to and without secrets; a collector gets
the same ones.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import orjson
import structlog
from opentelemetry import trace

from services.chassis import names, telemetry
from services.chassis.settings import CommonSettings

_URL_PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):[^/@\s]+@")
_SECRET_KEYS: Final = ("password", "secret", "token", "authorization", "private_key")
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}

Event = MutableMapping[str, Any]


def configure_logging(service: str, settings: CommonSettings) -> None:
    """Sends the process's log lines, those of libraries included, to standard error."""
    level = _LEVELS[settings.log_level]
    renderer: Any
    if settings.log_format == "json":
        renderer = structlog.processors.JSONRenderer(serializer=_dumps)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())

    def identify(_: Any, __: str, event: Event) -> Event:
        # structlog keeps the argument name ``logger`` to itself; the standard library's lines have the key.
        if "logger_name" in event:
            event["logger"] = event.pop("logger_name")
        event["service"] = service
        event["instance"] = settings.instance
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        identify,
        add_trace,
        structlog.processors.format_exc_info,
        mask_secrets,
        export,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_StandardError,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up when something is wrong; their debug output is not this process's log.
    root.setLevel(logging.WARNING)
    logging.getLogger("services").setLevel(level)
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)


class _StandardError:
    """Writes finished lines. Whoever reads them may go away; that must not fail a request."""

    def __init__(self, *_: Any) -> None:
        return

    def msg(self, line: str) -> None:
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            return

    debug = info = warning = error = critical = exception = log = msg


def get_logger(name: str) -> Any:
    """A structlog logger: ``log.info("endpoint ready", endpoint_id=7)``."""
    return structlog.get_logger(logger_name=name)


def add_trace(_: Any, __: str, event: Event) -> Event:
    """Adds trace_id and span_id of the current span."""
    where = trace.get_current_span().get_span_context()
    if where.is_valid:
        event[names.LOG_TRACE_ID] = f"{where.trace_id:032x}"
        event[names.LOG_SPAN_ID] = f"{where.span_id:016x}"
    return event


def mask_secrets(_: Any, __: str, event: Event) -> Event:
    """Replaces passwords in URLs, and the values of keys that name a secret, by ``***``."""
    for key, value in event.items():
        if any(secret in key for secret in _SECRET_KEYS) and key != "page_token":
            event[key] = "***"
        elif isinstance(value, str) and "://" in value:
            event[key] = _URL_PASSWORD.sub(r"\1:***@", value)
    return event


def export(_: Any, __: str, event: Event) -> Event:
    """Gives the line to the collector, if there is one; never waits and never fails."""
    current = telemetry.current()
    if current is not None:
        current.log(event)
    return event


def _dumps(event: Any, **_: Any) -> str:
    try:
        return orjson.dumps(event, default=str).decode()
    except TypeError:
        # An integer of more than 64 bits, half a surrogate in a file's name: no reason to fail a request.
        return json.dumps(event, default=str)
