"""`fimbria flows`: what the datapaths of all nodes report."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from cli.commands import options
from cli.errors import CliError
from cli.flow_request import TYPES, VERDICTS, Wanted, request_of
from cli.output import output_option, print_json, table

if TYPE_CHECKING:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import Cluster

COLUMNS = [
    ("clock", "TIME"),
    ("node", "NODE"),
    ("type", "TYPE"),
    ("verdict", "VERDICT"),
    ("direction", "DIRECTION"),
    ("protocol", "PROTO"),
    ("from", "FROM"),
    ("to", "TO"),
    ("why", "REASON"),
    ("rule", "RULE"),
]


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with flows as they come.")
@click.option(
    "--last", type=click.IntRange(1, 100_000), help="The newest N (default 20; with --follow none)."
)
@click.option("--since", metavar="AGE", help="Only flows since then: 30s, 5m, 2h.")
@click.option(
    "--verdict",
    type=click.Choice(sorted(VERDICTS)),
    help="Only flows with this verdict; audit: those that passed although a policy denies them.",
)
@click.option(
    "--type",
    "types",
    type=click.Choice(TYPES),
    multiple=True,
    help="Only drops, verdicts of policies, or (with --follow) traces: where flows go that begin and end. "
    "May be given again. [default: drop and verdict]",
)
@click.option("--family", type=click.Choice(["4", "6"]), help="Only IPv4 or only IPv6.")
@click.option(
    "--from", "sources", multiple=True, metavar="END", help="Sender: NS/NAME, NS/, address, prefix."
)
@click.option(
    "--to", "targets", multiple=True, metavar="END", help="Receiver: NS/NAME, NS/, address, prefix."
)
@click.option("--not-from", "not_sources", multiple=True, metavar="END", help="Not from this sender.")
@click.option("--not-to", "not_targets", multiple=True, metavar="END", help="Not to this receiver.")
@click.option("--ip", "ips", multiple=True, metavar="ADDRESS", help="Either end: address or prefix.")
@click.option("--port", "port", metavar="PORT[/PROTO]", help="Only flows to this port.")
@click.option("--node", "nodes", multiple=True, help="Only what this node reports; may be given again.")
@click.option(
    "--show-bytes",
    is_flag=True,
    help="Below each flow, where in the datapath it was reported and the packet's first bytes "
    "(instead of a table; JSON has them anyway).",
)
@output_option("compact")
@options.dir_option
def flows(nodes: tuple[str, ...], show_bytes: bool, output: str, **wanted: Any) -> None:
    """What the datapath let pass and dropped, with the reason and the rule that decided.

    Filters of different kinds have all to match, of filters of one kind one has to.
    """
    request = request_of(Wanted(**wanted))
    with options.cluster() as cluster:
        chosen = list(nodes) or list(cluster.targets.loaders)
        for node in chosen:
            cluster.targets.loader(node)
        if request.follow:
            for item in _stream(cluster, chosen, request):
                _print_one(item, output, show_bytes)
            return
        items = [item for item in _stream(cluster, chosen, request) if "lost" not in item]
    items = sorted(items, key=lambda item: str(item["time"]))[-request.last :]
    if output == "json":
        print_json(items)
    elif output == "compact" or show_bytes:
        for item in items:
            _print_one(item, "compact", show_bytes)
    else:
        for line in table([_shown(item) for item in items], COLUMNS):
            click.echo(line)


def _stream(
    cluster: Cluster, nodes: list[str], request: loader_pb2.GetFlowsRequest
) -> Iterator[dict[str, Any]]:
    """The flows of all nodes as they come. The last node's failure is raised; others are warned of."""
    from cli.client import shown_errors
    from cli.flow import flow_row

    items: queue.Queue[dict[str, Any] | CliError | None] = queue.Queue()

    def read(node: str) -> None:
        try:
            with shown_errors():
                for item in cluster.observer(node).GetFlows(request, timeout=None if request.follow else 10):
                    items.put(
                        flow_row(item.flow) if item.HasField("flow") else {"lost": item.lost, "node": node}
                    )
            items.put(None)
        except CliError as error:
            items.put(error)

    for node in nodes:
        threading.Thread(target=read, args=(node,), daemon=True).start()
    open_streams = len(nodes)
    failures: list[CliError] = []
    while open_streams:
        item = items.get()
        if isinstance(item, dict):
            if "lost" in item:
                print(f"warning: {item['lost']} flows of {item['node']} were lost", file=sys.stderr)
            yield item
            continue
        open_streams -= 1
        if item is not None:
            failures.append(item)
            if len(failures) < len(nodes):
                print(f"warning: {item.message}", file=sys.stderr)
    if failures and len(failures) == len(nodes):
        raise failures[-1]


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    from cli.flow import end_text

    return {
        **item,
        "clock": item["time"].partition("T")[2].rstrip("Z")[:12],
        "from": end_text(item["source"]),
        "to": end_text(item["destination"]),
        "why": item["reason"] or " ".join(part for part in (item["point"], item["state"]) if part),
    }


def _compact(item: dict[str, Any]) -> str:
    shown = _shown(item)
    why = "; ".join(part for part in (shown["why"], shown["rule"]) if part)
    return (
        f"{shown['clock']} {shown['node']}: {shown['from']} -> {shown['to']} {shown['protocol']} "
        f"{shown['direction']} {shown['verdict'].upper()}{f' ({why})' if why else ''}"
    )


def _details(item: dict[str, Any]) -> list[str]:
    """Lines about where a packet was reported, and its first bytes."""
    packet = bytes.fromhex(item["packet"])
    cut = f", the first {len(packet)}" if len(packet) < item["length"] else ""
    lines = [
        f"    {item['location']}, policy revision {item['policy_revision']}, {item['length']} bytes{cut}"
    ]
    for offset in range(0, len(packet), 16):
        row = packet[offset : offset + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"    {offset:04x}  {row.hex(' ', -2):<39}  {text}")
    return lines


def _print_one(item: dict[str, Any], output: str, show_bytes: bool) -> None:
    if output == "json":
        click.echo(json.dumps(item, ensure_ascii=False))
    elif "lost" not in item:
        lines = [_compact(item), *(_details(item) if show_bytes else ())]
        click.echo("\n".join(lines))
    sys.stdout.flush()
