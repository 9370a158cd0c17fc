"""Spans of the CLI itself, in the lab's span store.

The command is the root of what it causes. The OpenTelemetry SDK takes longer to import than most commands
take to run, and all that is needed here is a few lines in the store's format and a `traceparent` header.
Without a store (a cluster that is not a lab) nothing is written, and the context is still passed on.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SERVICE = "cli"


@dataclass
class Span:
    """A span that has begun; attributes may be added until it ends."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    start_ns: int
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def traceparent(self) -> str:
        """The W3C header that names this span as the parent."""
        return f"00-{self.trace_id}-{self.span_id}-01"


_current: ContextVar[Span | None] = ContextVar("fimbria_cli_span", default=None)
_store: ContextVar[Path | None] = ContextVar("fimbria_cli_store", default=None)


def use_store(path: Path | None) -> None:
    """Write the spans that end from now on to `path`; None writes none."""
    _store.set(path)


def current() -> Span | None:
    """The span around the caller."""
    return _current.get()


@contextlib.contextmanager
def span(name: str, *, kind: str = "INTERNAL", **attributes: Any) -> Iterator[Span]:
    """A span around the block, child of the one around it; an exception marks it as failed."""
    parent = _current.get()
    own = Span(
        name,
        parent.trace_id if parent else secrets.token_hex(16),
        secrets.token_hex(8),
        parent.span_id if parent else "",
        kind,
        time.time_ns(),
        dict(attributes),
    )
    token = _current.set(own)
    status = "OK"
    try:
        yield own
    except BaseException:
        status = "ERROR"
        raise
    finally:
        _current.reset(token)
        _write(own, status)


def _write(finished: Span, status: str) -> None:
    store = _store.get()
    if store is None or not store.parent.is_dir():
        return
    line = {
        "trace_id": finished.trace_id,
        "span_id": finished.span_id,
        "parent_id": finished.parent_id,
        "name": finished.name,
        "service": SERVICE,
        "kind": finished.kind,
        "start_ns": finished.start_ns,
        "end_ns": time.time_ns(),
        "status": status,
        "attributes": finished.attributes,
        "events": [],
    }
    # One write on a descriptor in append mode: lines of commands that run at once do not mix.
    descriptor = os.open(store, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)
