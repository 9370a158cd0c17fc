"""`fimbria pool …`: the address pools that the nodes' pod CIDRs are carved from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli import pool_edit
from cli.commands import options
from cli.errors import BadInput, CliError
from cli.output import cell, counted, output_option, print_json, print_rows, table

if TYPE_CHECKING:
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import Cluster

_CIDRS = click.argument("cidrs", nargs=-1, required=True, metavar="CIDR...")
_RANGES = click.argument("ranges", nargs=-1, required=True, metavar="CIDR|ADDRESS|FIRST-LAST...")
_NAME = click.argument("name", metavar="NAME")
_PODS = click.option(
    "--pods", metavar="SELECTOR", help="Pods with these labels get addresses of the pool: app=web,!canary"
)
_NAMESPACES = click.option(
    "--namespaces", metavar="SELECTOR", help="Pods of namespaces with these labels do: team in (a,b)"
)


@click.group()
def pool() -> None:
    """Address pools that the nodes' pod CIDRs are carved from."""


@pool.command("list")
@output_option()
@options.dir_option
def list_pools(output: str) -> None:
    """Pools, their CIDRs and how much of them is in use.

    USED of TOTAL counts CIDRs for nodes; HELD, ON HOLD and FREE count addresses in the CIDRs that nodes have,
    IPv4 before IPv6.
    """
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import pages

    with options.cluster() as cluster:
        listed = pages(cluster.pools.ListPools, ipam_pb2.ListPoolsRequest(), "pools")
        rows = [pool_edit.row(_with_usage(cluster, item)) for item in listed]
    if output == "json":
        print_json(rows)
        return
    for row in rows:
        for key in ("held", "on_hold", "free"):
            row[key] = "/".join(str(each[key]) for each in row["usage"])
        row["draining"] = [each["cidr"] for each in row["draining"]]
    columns = [
        ("name", "POOL"),
        ("cidrs", "CIDRS"),
        ("node_masks", "NODE MASK"),
        ("node_cidrs_used", "USED"),
        ("node_cidrs_total", "TOTAL"),
        ("held", "HELD"),
        ("on_hold", "ON HOLD"),
        ("free", "FREE"),
        ("draining", "DRAINING"),
    ]
    print_rows(rows, columns, output)


def _with_usage(cluster: Cluster, item: ipam_pb2.Pool) -> ipam_pb2.Pool:
    """The pool with its usage, which lists leave out; as listed when it is gone by now."""
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import call

    try:
        return call(cluster.pools.GetPool, ipam_pb2.GetPoolRequest(name=item.name))
    except CliError as error:
        if error.reason != "POOL_NOT_FOUND":
            raise
        return item


@pool.command()
@_NAME
@output_option()
@options.dir_option
def get(name: str, output: str) -> None:
    """One pool: CIDRs, whom it is for, how full it is, what is on its way out."""
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import call

    with options.cluster() as cluster:
        found = call(cluster.pools.GetPool, ipam_pb2.GetPoolRequest(name=name))
    _print(found, output)


@pool.command()
@_NAME
@_CIDRS
@click.option(
    "--node-mask",
    type=int,
    default=0,
    metavar="BITS",
    help="Prefix length of a node's IPv4 CIDR, 24 for example.",
)
@click.option(
    "--node-mask-ipv6",
    type=int,
    default=0,
    metavar="BITS",
    help="Prefix length of a node's IPv6 CIDR (default 112).",
)
@click.option(
    "--exclude",
    "ranges",
    multiple=True,
    metavar="RANGE",
    help="A CIDR, an address or FIRST-LAST that nobody gets; may be given again.",
)
@_PODS
@_NAMESPACES
@output_option()
@options.dir_option
def create(
    name: str,
    cidrs: tuple[str, ...],
    node_mask: int,
    node_mask_ipv6: int,
    ranges: tuple[str, ...],
    pods: str | None,
    namespaces: str | None,
    output: str,
) -> None:
    """Make a pool of CIDRs, out of which nodes get parts of a fixed size."""
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import call
    from cli.selectors import parse_selector

    for option, size in (("--node-mask", node_mask), ("--node-mask-ipv6", node_mask_ipv6)):
        if not 0 <= size <= 128:
            raise BadInput(f"{option} {size} is not valid: expected a prefix length")
    request = ipam_pb2.CreatePoolRequest(
        name=name, cidrs=cidrs, node_mask_size=node_mask, node_mask_size_ipv6=node_mask_ipv6, excluded=ranges
    )
    if pods is not None:
        request.pod_selector.CopyFrom(parse_selector(pods, "--pods"))
    if namespaces is not None:
        request.namespace_selector.CopyFrom(parse_selector(namespaces, "--namespaces"))
    with options.cluster() as cluster:
        made = call(cluster.pools.CreatePool, request)
    _print(made, output)


@pool.command()
@_NAME
@_CIDRS
@output_option()
@options.dir_option
def extend(name: str, cidrs: tuple[str, ...], output: str) -> None:
    """Add CIDRs to a pool, or put those that drain back into service. Under use, at once."""
    _change(name, pool_edit.extend(cidrs), output)


@pool.command()
@_NAME
@_CIDRS
@output_option()
@options.dir_option
def drain(name: str, cidrs: tuple[str, ...], output: str) -> None:
    """Take CIDRs out of service: nothing more is given of them, and they go when they are empty.

    What is held stays with its pods. `fimbria pool get` shows what is left; `fimbria pool extend` undoes it.
    """
    _change(name, pool_edit.drain(cidrs), output)


@pool.command()
@_NAME
@_RANGES
@output_option()
@options.dir_option
def exclude(name: str, ranges: tuple[str, ...], output: str) -> None:
    """Let nobody have these addresses. Who has one already keeps it."""
    _change(name, pool_edit.exclude(ranges), output)


@pool.command()
@_NAME
@_RANGES
@output_option()
@options.dir_option
def include(name: str, ranges: tuple[str, ...], output: str) -> None:
    """Undo exclusions, named as `fimbria pool get` shows them."""
    _change(name, pool_edit.include(ranges), output)


@pool.command("select")
@_NAME
@_PODS
@_NAMESPACES
@click.option("--no-pods", is_flag=True, help="No selector of pods any more.")
@click.option("--no-namespaces", is_flag=True, help="No selector of namespaces any more.")
@output_option()
@options.dir_option
def select_pods(
    name: str,
    pods: str | None,
    namespaces: str | None,
    no_pods: bool,
    no_namespaces: bool,
    output: str,
) -> None:
    """Say which pods get addresses of a pool (mode multi-pool), as `kubectl -l` selects."""
    from cli.selectors import parse_selector

    if pods is None and namespaces is None and not no_pods and not no_namespaces:
        raise BadInput(
            "nothing was asked for", hint="give --pods, --namespaces, --no-pods or --no-namespaces"
        )
    if (pods is not None and no_pods) or (namespaces is not None and no_namespaces):
        raise BadInput("a selector cannot be set and removed at once")
    edit = pool_edit.select(
        None if pods is None else parse_selector(pods, "--pods"),
        None if namespaces is None else parse_selector(namespaces, "--namespaces"),
        no_pods=no_pods,
        no_namespaces=no_namespaces,
    )
    _change(name, edit, output)


@pool.command()
@_NAME
@output_option()
@options.dir_option
def delete(name: str, output: str) -> None:
    """Remove a pool of which no node holds a CIDR."""
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import call

    with options.cluster() as cluster:
        try:
            call(cluster.pools.DeletePool, ipam_pb2.DeletePoolRequest(name=name))
        except CliError as error:
            if error.reason == "POOL_IN_USE":
                error.hint = "CIDRs go back when their pods are gone; a node's own pool stays its own"
            raise
    if output == "json":
        print_json({"name": name, "deleted": True})
    else:
        click.echo(f"pool {name} is gone")


def _change(name: str, edit: pool_edit.Edit, output: str) -> None:
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import call

    with options.cluster() as cluster:
        changed = pool_edit.update(cluster, name, edit)
        if not changed.usage:
            changed = call(cluster.pools.GetPool, ipam_pb2.GetPoolRequest(name=name))
    _print(changed, output)


def _print(found: ipam_pb2.Pool, output: str) -> None:
    row = pool_edit.row(found)
    if output == "json":
        print_json(row)
        return
    for line in text_lines(row):
        click.echo(line)


def text_lines(row: dict[str, Any]) -> list[str]:
    """A pool for people."""
    facts = {
        "pool": row["name"],
        "cidrs": row["cidrs"],
        "node mask": row["node_masks"],
        "for pods": row["pod_selector"],
        "for namespaces": row["namespace_selector"],
        "excluded": row["excluded"],
        "draining": [
            f"{each['cidr']} ({counted(each['node_cidrs'], 'node CIDR')} and"
            f" {counted(each['addresses'], 'address', 'addresses')} left)"
            for each in row["draining"]
        ],
    }
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {cell(value)}" for name, value in facts.items()]
    columns = [
        ("family", "FAMILY"),
        ("node_cidrs_used", "NODE CIDRS"),
        ("node_cidrs_total", "OF"),
        ("capacity", "ADDRESSES"),
        ("held", "HELD"),
        ("on_hold", "ON HOLD"),
        ("free", "FREE"),
        ("excluded", "EXCLUDED"),
    ]
    return [*lines, "", *table(row["usage"], columns)] if row["usage"] else lines
