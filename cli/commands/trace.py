"""`fimbria trace`: the traces that the lab's processes have collected."""

from __future__ import annotations

import time

import click

from cli import traces
from cli.commands import options
from cli.errors import BadInput, CliError, ServiceUnavailable
from cli.lab.paths import LabPaths
from cli.output import output_option, print_json, print_rows

COLUMNS = [
    ("trace_id", "TRACE"),
    ("root", "ROOT"),
    ("time", "TIME"),
    ("milliseconds", "MS"),
    ("spans", "SPANS"),
    ("processes", "PROCESSES"),
]


@click.group()
def trace() -> None:
    """Traces that the lab collected: from the command to the map writes on every node."""


def _read() -> list[traces.Trace]:
    paths = LabPaths.of(options.directory())
    if not paths.traces.is_dir():
        raise ServiceUnavailable(
            f"there is no lab in {paths.directory}", reason="NO_CLUSTER", hint="`fimbria lab up` starts one"
        )
    return traces.traces(traces.read(paths.traces))


@trace.command("list")
@click.option("--root", metavar="NAME", help="Only traces whose root span has this name, e.g. policy.apply.")
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="The newest N.")
@output_option()
@options.dir_option
def list_traces(root: str | None, last: int, output: str) -> None:
    """The newest traces."""
    found = [item for item in _read() if root is None or item.root.name == root][-last:]
    rows = [
        {
            "trace_id": item.trace_id,
            "root": item.root.name,
            "time": time.strftime("%H:%M:%S", time.localtime(item.start_ns / 1e9)),
            "start_ns": item.start_ns,
            "milliseconds": round(item.seconds * 1e3, 2),
            "spans": len(item.spans),
            "processes": item.processes(),
        }
        for item in found
    ]
    print_rows(rows, COLUMNS, output)


@trace.command()
@click.argument("which", metavar="TRACE_ID|last")
@click.option("--root", metavar="NAME", help="With `last`: the last trace whose root span has this name.")
@click.option("--attributes/--no-attributes", default=True, help="Also the spans' attributes.")
@output_option()
@options.dir_option
def show(which: str, root: str | None, attributes: bool, output: str) -> None:
    """One trace as a tree: when each span began, how long it took, where it ran (→ client, ← server)."""
    if which != "last" and root is not None:
        raise BadInput("--root goes with `last`; a trace id names the trace by itself")
    found = select(_read(), which, root)
    if output == "json":
        print_json({"trace_id": found.trace_id, "roots": [traces.document(node) for node in found.roots]})
        return
    click.echo(f"trace {found.trace_id}: {len(found.spans)} spans, {found.seconds * 1e3:.2f} ms")
    click.echo(f"{'began':>12} {'took':>12}")
    for line in traces.draw(found, attributes=attributes):
        click.echo(line)


def select(found: list[traces.Trace], which: str, root: str | None = None) -> traces.Trace:
    """The trace with an id (or the beginning of one), or the last one. CliError when there is none."""
    if which == "last":
        matching = [item for item in found if root is None or item.root.name == root]
    else:
        matching = [item for item in found if item.trace_id.startswith(which.lower())]
        if len(matching) > 1:
            raise BadInput(f"{len(matching)} traces begin with {which!r}: give more of the id")
    if not matching:
        what = f"trace {which}" if which != "last" else f"trace with root {root!r}" if root else "trace"
        raise CliError(f"there is no {what}", reason="TRACE_NOT_FOUND", hint="`fimbria trace list` shows all")
    return matching[-1]
