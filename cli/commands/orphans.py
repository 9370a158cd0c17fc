"""`fimbria orphans`: what on the nodes belongs to nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.commands import options
from cli.commands.nodes import Nodes, node_option
from cli.output import output_option, print_rows

if TYPE_CHECKING:
    from cli.client import Cluster

_SECONDS = 60.0


@click.command()
@click.option("--remove", is_flag=True, help="Remove what is found. Without this it is only shown.")
@node_option
@output_option()
@options.dir_option
def orphans(remove: bool, nodes: tuple[str, ...], output: str) -> None:
    """Devices, rows, policies, pins, routes and addresses that belong to no endpoint and no program."""
    with options.cluster() as cluster:
        chosen = Nodes(cluster, nodes)
        rows = [
            row for _, found in chosen.each(lambda node: _collect(cluster, node, remove)) for row in found
        ]
    columns = [("node", "NODE"), ("kind", "KIND"), ("name", "NAME"), ("detail", "DETAIL")]
    if remove:
        columns += [("removed", "REMOVED"), ("error", "ERROR")]
    print_rows(rows, columns, output)
    chosen.exit()
    if any(row["error"] for row in rows):
        click.get_current_context().exit(1)


def _collect(cluster: Cluster, node: str, remove: bool) -> list[dict[str, Any]]:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import call

    request = loader_pb2.CollectOrphansRequest(dry_run=not remove)
    answer = call(cluster.datapath(node).CollectOrphans, request, timeout=_SECONDS)
    if answer.skipped:
        click.echo(f"warning: {node}: {answer.skipped}", err=True)
    return [
        {
            "node": node,
            "kind": item.kind,
            "name": item.name,
            "detail": item.detail,
            "removed": item.removed,
            "error": item.error,
        }
        for item in answer.orphans
    ]
