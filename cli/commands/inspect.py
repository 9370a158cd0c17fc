"""`fimbria ip list`: whose an address is, and which pool it is from."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import click

from cli.commands import options
from cli.errors import CliError
from cli.output import moment, output_option, print_rows

if TYPE_CHECKING:
    from cli.client import Cluster


@click.group()
def ip() -> None:
    """The ipcache: whose an address is, and behind which node."""


@ip.command("list")
@click.option("--node", default="", help="Only entries that this node published.")
@click.option(
    "--on-hold",
    is_flag=True,
    help="Instead: addresses that were released a moment ago, with their last owners. Nobody gets them yet.",
)
@output_option()
@options.dir_option
def list_ips(node: str, on_hold: bool, output: str) -> None:
    """The entries of the ipcache, and the pools that their addresses are from."""
    with options.cluster() as cluster:
        if on_hold:
            rows = _on_hold(cluster, node)
            if output == "table":
                rows = [{**row, "hold_until": moment(row["hold_until"])} for row in rows]
            columns = [("address", "ADDRESS"), ("pool", "POOL"), ("node", "NODE"), ("owner", "LAST OWNER")]
            print_rows(rows, [*columns, ("hold_until", "ON HOLD UNTIL")], output)
            return
        rows = _entries(cluster, node)
        pools = _pools(cluster, node)
    for row in rows:
        row["pool"] = pools.get(row["prefix"], "")
    columns = [("prefix", "PREFIX"), ("identity", "IDENTITY"), ("owner", "OWNER"), ("node", "NODE")]
    print_rows(rows, [*columns, ("tunnel_endpoint", "TUNNEL"), ("pool", "POOL")], output)


def _entries(cluster: Cluster, node: str) -> list[dict[str, Any]]:
    from fimbria.identity.v1 import identity_pb2

    from cli.client import pages

    request = identity_pb2.ListIpCacheEntriesRequest(node=node)
    return [
        {
            "prefix": item.prefix,
            "identity": item.identity,
            "tunnel_endpoint": item.tunnel_endpoint,
            "node": item.node,
            "owner": item.owner,
            "revision": item.revision,
        }
        for item in pages(cluster.ipcache.ListIpCacheEntries, request, "entries")
    ]


def _pools(cluster: Cluster, node: str) -> dict[str, str]:
    """The pool of each address in use, by its prefix; without ipam, none. An empty `node` means all."""
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import pages

    try:
        listed = pages(cluster.addresses.ListAddresses, ipam_pb2.ListAddressesRequest(node=node), "addresses")
    except CliError as error:
        click.echo(f"warning: the addresses' pools are not known: {error.message}", err=True)
        return {}
    return {
        str(ipaddress.ip_network(address)): item.pool
        for item in listed
        for address in (item.address, item.ipv6)
        if address
    }


def _on_hold(cluster: Cluster, node: str) -> list[dict[str, Any]]:
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import pages

    request = ipam_pb2.ListAddressesRequest(node=node, on_hold=True)
    return [
        {
            "address": item.address or item.ipv6,
            "pool": item.pool,
            "node": item.node,
            "owner": item.owner,
            "hold_until": item.hold_until.ToJsonString() if item.HasField("hold_until") else None,
        }
        for item in pages(cluster.addresses.ListAddresses, request, "addresses")
    ]
