"""`fimbria flows`: what the datapaths of all nodes report."""

from __future__ import annotations

import json
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from cli.commands import options
from cli.errors import BadInput, CliError
from cli.output import output_option, print_json, table

if TYPE_CHECKING:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import Cluster

COLUMNS = [
    ("clock", "TIME"),
    ("node", "NODE"),
    ("verdict", "VERDICT"),
    ("direction", "DIRECTION"),
    ("protocol", "PROTO"),
    ("from", "FROM"),
    ("to", "TO"),
    ("reason", "REASON"),
    ("rule", "RULE"),
]
VERDICTS = {"denied": "DROPPED", "dropped": "DROPPED", "allowed": "FORWARDED", "forwarded": "FORWARDED"}
_UNITS = {"s": 1, "m": 60, "h": 3600}


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with flows as they come.")
@click.option(
    "--last", type=click.IntRange(1, 100_000), help="The newest N (default 20; with --follow none)."
)
@click.option("--since", metavar="AGE", help="Only flows since then: 30s, 5m, 2h.")
@click.option("--verdict", type=click.Choice(sorted(VERDICTS)), help="Only flows with this verdict.")
@click.option("--from", "sources", multiple=True, metavar="END", help="Sender: NS/NAME, NS/ or an address.")
@click.option("--to", "targets", multiple=True, metavar="END", help="Receiver: NS/NAME, NS/ or an address.")
@click.option("--not-from", "not_sources", multiple=True, metavar="END", help="Not from this sender.")
@click.option("--not-to", "not_targets", multiple=True, metavar="END", help="Not to this receiver.")
@click.option("--port", "port", metavar="PORT[/PROTO]", help="Only flows to this port.")
@click.option("--node", "nodes", multiple=True, help="Only what this node reports; may be given again.")
@output_option("compact")
@options.dir_option
def flows(
    follow: bool,
    last: int | None,
    since: str | None,
    verdict: str | None,
    sources: tuple[str, ...],
    targets: tuple[str, ...],
    not_sources: tuple[str, ...],
    not_targets: tuple[str, ...],
    port: str | None,
    nodes: tuple[str, ...],
    output: str,
) -> None:
    """What the datapath let pass and dropped, with the reason and the rule that decided.

    Filters of different kinds have all to match, of filters of one kind one has to.
    """
    request = _request(follow, last, since, verdict, sources, targets, port)
    request.deny.extend(_filters(not_sources, (), None, None) + _filters((), not_targets, None, None))
    with options.cluster() as cluster:
        chosen = list(nodes) or list(cluster.targets.loaders)
        for node in chosen:
            cluster.targets.loader(node)
        if follow:
            for item in _stream(cluster, chosen, request):
                _print_one(item, output)
            return
        items = [item for item in _stream(cluster, chosen, request) if "lost" not in item]
    items = sorted(items, key=lambda item: str(item["time"]))[-(last or 20) :]
    if output == "json":
        print_json(items)
    elif output == "compact":
        for item in items:
            click.echo(_compact(item))
    else:
        for line in table([_shown(item) for item in items], COLUMNS):
            click.echo(line)


def _request(
    follow: bool,
    last: int | None,
    since: str | None,
    verdict: str | None,
    sources: tuple[str, ...],
    targets: tuple[str, ...],
    port: str | None,
) -> loader_pb2.GetFlowsRequest:
    from fimbria.loader.v1 import loader_pb2

    request = loader_pb2.GetFlowsRequest(
        allow=_filters(sources, targets, verdict, port), last=last or (0 if follow else 20), follow=follow
    )
    if since is not None:
        match = re.fullmatch(r"(\d+)([smh])", since)
        if match is None:
            raise BadInput(f"--since {since!r} is not valid: expected a number and s, m or h, for example 5m")
        request.since.FromNanoseconds(time.time_ns() - int(match[1]) * _UNITS[match[2]] * 1_000_000_000)
    return request


def _filters(
    sources: tuple[str, ...], targets: tuple[str, ...], verdict: str | None, port: str | None
) -> list[loader_pb2.FlowFilter]:
    """Every pair of a source and a target, since a flow has to match one filter as a whole."""
    from fimbria.loader.v1 import loader_pb2

    from cli.explain import protocol_number
    from cli.lab.syntax import parse_port

    if not (sources or targets or verdict or port):
        return []
    found = []
    for source in sources or ("",):
        for target in targets or ("",):
            item = loader_pb2.FlowFilter()
            if source:
                setattr(item, "source_pod" if "/" in source else "source_ip", source)
            if target:
                setattr(item, "destination_pod" if "/" in target else "destination_ip", target)
            if verdict:
                item.verdict = loader_pb2.FlowVerdict.Value(f"FLOW_VERDICT_{VERDICTS[verdict]}")
            if port:
                number, protocol = parse_port(port)
                item.destination_port = number
                if "/" in port:
                    item.protocol = protocol_number(protocol)
            found.append(item)
    return found


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
    }


def _compact(item: dict[str, Any]) -> str:
    shown = _shown(item)
    why = "; ".join(part for part in (shown["reason"], shown["rule"]) if part)
    return (
        f"{shown['clock']} {shown['node']}: {shown['from']} -> {shown['to']} {shown['protocol']} "
        f"{shown['direction']} {shown['verdict'].upper()}{f' ({why})' if why else ''}"
    )


def _print_one(item: dict[str, Any], output: str) -> None:
    if output == "json":
        click.echo(json.dumps(item, ensure_ascii=False))
    elif "lost" not in item:
        click.echo(_compact(item))
    sys.stdout.flush()
