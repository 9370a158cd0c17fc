"""`fimbria node list|get|delete`: the cluster's nodes, and what is kept for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.commands import options
from cli.errors import BadInput, CliError
from cli.output import cell, counted, output_option, print_json, print_rows

if TYPE_CHECKING:
    from fimbria.ipam.v1 import ipam_pb2

    from cli.node_gone import Belongings


@click.group()
def node() -> None:
    """The cluster's nodes."""


@node.command("list")
@output_option()
@options.dir_option
def list_nodes(output: str) -> None:
    """Nodes, their underlay addresses and pod CIDRs."""
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import pages

    with options.cluster() as cluster:
        listed = pages(cluster.nodes.ListNodes, ipam_pb2.ListNodesRequest(), "nodes")
    columns = [("name", "NODE"), ("addresses", "ADDRESS"), ("pool", "POOL"), ("pod_cidrs", "POD CIDRS")]
    print_rows([node_row(item) for item in listed], [*columns, ("routers", "ROUTER")], output)


def node_row(item: ipam_pb2.Node) -> dict[str, Any]:
    """A node as JSON."""
    return {
        "name": item.name,
        "ipv4": item.ipv4,
        "ipv6": item.ipv6,
        "addresses": _present(item.ipv4, item.ipv6),
        "pool": item.pool,
        "pod_cidrs": list(item.pod_cidrs),
        "cidrs": [{"cidr": each.cidr, "pool": each.pool, "draining": each.draining} for each in item.cidrs],
        "router_ipv4": item.router_ipv4,
        "router_ipv6": item.router_ipv6,
        "routers": _present(item.router_ipv4, item.router_ipv6),
        "revision": item.revision,
        "create_time": item.create_time.ToJsonString(),
    }


def _present(*addresses: str) -> list[str]:
    return [address for address in addresses if address]


@node.command()
@click.argument("name", metavar="NAME")
@output_option()
@options.dir_option
def get(name: str, output: str) -> None:
    """One node: its CIDRs with their pools, and what the services keep for it."""
    from cli import node_gone

    with options.cluster() as cluster:
        kept = node_gone.belongings(cluster, name)
    if kept.node is None:
        raise BadInput(
            f"node {name!r} is not registered",
            reason="NODE_NOT_FOUND",
            hint="`fimbria node list` shows all",
        )
    row = node_row(kept.node) | {
        "owners": kept.owners,
        "addresses_held": kept.addresses,
        "ipcache_entries": len(kept.entries),
        "lease": kept.lease,
        "identities": kept.identities,
    }
    if output == "json":
        print_json(row)
        return
    cidrs = row.pop("cidrs")
    for key in ("ipv4", "ipv6", "router_ipv4", "router_ipv6", "pod_cidrs"):
        row.pop(key)
    row["cidrs"] = [
        f"{each['cidr']} ({each['pool']}{', draining' if each['draining'] else ''})" for each in cidrs
    ]
    width = max(map(len, row))
    for key, value in row.items():
        click.echo(f"{key.replace('_', ' '):<{width}}  {cell(value)}")


@node.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--force",
    "--gone",
    "force",
    is_flag=True,
    help="Also when addresses are held on it, or its loader answers: the node is gone for good.",
)
@output_option()
@options.dir_option
def delete(name: str, force: bool, output: str) -> None:
    """Declare a node gone: only this frees what it has.

    Its addresses and CIDRs go back to their pools, what it has published is withdrawn, and it uses no
    identities any more. May be repeated. A node that comes back registers anew with the next start of its
    loader, with other CIDRs.
    """
    from cli import node_gone

    with options.cluster() as cluster:
        kept = node_gone.belongings(cluster, name)
        if not force:
            _ask(kept, node_gone.loader_answers(cluster, name))
        node_gone.forget(cluster, name, force=force)
    told = {**kept.document(), "deleted": kept.anything}
    if output == "json":
        print_json(told)
    elif not kept.anything:
        click.echo(f"node {name} is not known to any service: nothing to free")
    else:
        cidrs = [f"{each['cidr']} ({each['pool']})" for each in told["cidrs"]]
        click.echo(
            f"node {name} is gone; freed: {cell(cidrs)},"
            f" {counted(kept.addresses, 'address', 'addresses')} of {counted(kept.owners, 'owner')},"
            f" {counted(len(kept.entries), 'ipcache entry', 'ipcache entries')},"
            f" the use of {counted(kept.identities, 'identity', 'identities')}"
        )


def _ask(kept: Belongings, alive: str) -> None:
    """Raises CliError when the node does not look gone."""
    reasons = [f"it holds {counted(kept.addresses, 'address', 'addresses')}"] if kept.addresses else []
    reasons += [alive] if alive else []
    if reasons:
        raise CliError(
            f"node {kept.name!r} is not deleted: {', and '.join(reasons)}",
            reason="NODE_IN_USE",
            hint=f"when it is gone for good: `fimbria node delete {kept.name} --gone`; pods that still run"
            " on it would lose their addresses to others",
        )
