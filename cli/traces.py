"""Reads the lab's span store and puts spans together to trees."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StoredSpan:
    """A finished span."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    kind: str
    start_ns: int
    end_ns: int
    status: str
    attributes: dict[str, Any]
    process: str = ""
    """The lab's name of the process: a service, a node, or the command line."""

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


@dataclass
class Node:
    """A span with those that it caused, in order of their start."""

    span: StoredSpan
    children: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[StoredSpan]:
        """This span and all below it."""
        yield self.span
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Trace:
    """All spans of one trace. It has several roots when a parent is not (or not yet) stored."""

    trace_id: str
    roots: list[Node]

    @property
    def spans(self) -> list[StoredSpan]:
        return [span for root in self.roots for span in root.walk()]

    @property
    def root(self) -> StoredSpan:
        """The span that began it: the one without a parent, else the earliest."""
        own = [node.span for node in self.roots if not node.span.parent_id]
        return (own or [node.span for node in self.roots])[0]

    @property
    def start_ns(self) -> int:
        return min(span.start_ns for span in self.spans)

    @property
    def seconds(self) -> float:
        """From the first start to the last end."""
        return (max(span.end_ns for span in self.spans) - self.start_ns) / 1e9

    def processes(self) -> list[str]:
        """Processes that took part, in order of their first span."""
        return list(
            dict.fromkeys(
                span.process or span.service for span in sorted(self.spans, key=lambda span: span.start_ns)
            )
        )


def read(directory: Path) -> list[StoredSpan]:
    """Every span in the store's files; a line that is being written is passed over."""
    spans = []
    for path in sorted(directory.glob("*.jsonl")):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if span := _parse(line, path.stem):
                    spans.append(span)
    return spans


def _parse(line: str, process: str) -> StoredSpan | None:
    try:
        told = json.loads(line)
        return StoredSpan(
            trace_id=told["trace_id"],
            span_id=told["span_id"],
            parent_id=told["parent_id"],
            name=told["name"],
            service=told["service"],
            kind=told["kind"],
            start_ns=int(told["start_ns"]),
            end_ns=int(told["end_ns"]),
            status=told["status"],
            attributes=dict(told["attributes"]),
            process=process,
        )
    except (ValueError, KeyError, TypeError):
        return None


def traces(spans: Iterable[StoredSpan]) -> list[Trace]:
    """The spans as traces, in order of their start."""
    by_trace: dict[str, list[StoredSpan]] = {}
    for span in spans:
        by_trace.setdefault(span.trace_id, []).append(span)
    found = [_tree(trace_id, members) for trace_id, members in by_trace.items()]
    return sorted(found, key=lambda trace: trace.start_ns)


def _tree(trace_id: str, spans: list[StoredSpan]) -> Trace:
    nodes = {span.span_id: Node(span) for span in sorted(spans, key=lambda span: span.start_ns)}
    roots: list[Node] = []
    for node in nodes.values():
        parent = nodes.get(node.span.parent_id)
        # Parents start before their children, but clocks of two processes may differ by microseconds.
        (parent.children if parent is not None and parent is not node else roots).append(node)
    return Trace(trace_id, roots)


def draw(trace: Trace, *, attributes: bool = True) -> list[str]:
    """The trace as a tree: offset from its start, duration, name, service, attributes."""
    lines: list[str] = []
    for root in trace.roots:
        _draw(root, "", "", trace.start_ns, lines, attributes)
    return lines


# What every RPC span says of itself adds nothing to its name.
_COMMONPLACE = {"rpc.system.name", "rpc.system", "rpc.method", "rpc.service", "server.address"}


def _draw(node: Node, first: str, rest: str, start_ns: int, lines: list[str], attributes: bool) -> None:
    span = node.span
    offset = (span.start_ns - start_ns) / 1e6
    shown = {key: value for key, value in span.attributes.items() if key not in _COMMONPLACE}
    if shown.get("rpc.response.status_code") in ("OK", 0, "0"):
        del shown["rpc.response.status_code"]
    facts = " ".join(f"{key}={_short(value)}" for key, value in shown.items()) if attributes else ""
    kind = {"CLIENT": "→", "SERVER": "←"}.get(span.kind, " ")
    failed = " FAILED" if span.status == "ERROR" else ""
    times = f"{offset:9.2f} ms {span.seconds * 1e3:9.2f} ms"
    label = f"{first}{span.name}"
    lines.append(f"{times}  {label:<44} {kind} {span.process or span.service:<9}{failed} {facts}".rstrip())
    for index, child in enumerate(node.children):
        last = index == len(node.children) - 1
        _draw(
            child,
            rest + ("└─ " if last else "├─ "),
            rest + ("   " if last else "│  "),
            start_ns,
            lines,
            attributes,
        )


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def document(node: Node) -> dict[str, Any]:
    """A span and those below it as JSON."""
    span = node.span
    return {
        "name": span.name,
        "service": span.service,
        "process": span.process,
        "kind": span.kind,
        "span_id": span.span_id,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "status": span.status,
        "attributes": span.attributes,
        "children": [document(child) for child in node.children],
    }
