"""`fimbria identity|ip|node|pool list`: what the services hold."""

from __future__ import annotations

import click

from cli.commands import options
from cli.output import output_option, print_rows


@click.group()
def identity() -> None:
    """Numeric identities: one for each set of security-relevant labels."""


@identity.command("list")
@click.option("--reserved", is_flag=True, help="Also the reserved identities (host, world, …).")
@output_option()
@options.dir_option
def list_identities(reserved: bool, output: str) -> None:
    """The cluster's identities and their labels."""
    from fimbria.identity.v1 import identity_pb2

    from cli.client import pages

    with options.cluster() as cluster:
        request = identity_pb2.ListIdentitiesRequest(include_reserved=reserved)
        listed = pages(cluster.identities.ListIdentities, request, "identities")
    rows = [
        {"id": item.id, "name": item.name, "labels": list(item.labels), "revision": item.revision}
        for item in listed
    ]
    print_rows(rows, [("id", "IDENTITY"), ("name", "NAME"), ("labels", "LABELS")], output)


@click.group()
def ip() -> None:
    """The ipcache: whose an address is, and behind which node."""


@ip.command("list")
@click.option("--node", default="", help="Only entries that this node published.")
@output_option()
@options.dir_option
def list_ips(node: str, output: str) -> None:
    """The entries of the ipcache."""
    from fimbria.identity.v1 import identity_pb2

    from cli.client import pages

    with options.cluster() as cluster:
        request = identity_pb2.ListIpCacheEntriesRequest(node=node)
        listed = pages(cluster.ipcache.ListIpCacheEntries, request, "entries")
    rows = [
        {
            "prefix": item.prefix,
            "identity": item.identity,
            "tunnel_endpoint": item.tunnel_endpoint,
            "node": item.node,
            "owner": item.owner,
            "revision": item.revision,
        }
        for item in listed
    ]
    columns = [("prefix", "PREFIX"), ("identity", "IDENTITY"), ("owner", "OWNER"), ("node", "NODE")]
    print_rows(rows, [*columns, ("tunnel_endpoint", "TUNNEL")], output)


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
    rows = [
        {
            "name": item.name,
            "ipv4": item.ipv4,
            "ipv6": item.ipv6,
            "addresses": _present(item.ipv4, item.ipv6),
            "pool": item.pool,
            "pod_cidrs": list(item.pod_cidrs),
            "router_ipv4": item.router_ipv4,
            "router_ipv6": item.router_ipv6,
            "routers": _present(item.router_ipv4, item.router_ipv6),
            "revision": item.revision,
            "create_time": item.create_time.ToJsonString(),
        }
        for item in listed
    ]
    columns = [("name", "NODE"), ("addresses", "ADDRESS"), ("pool", "POOL"), ("pod_cidrs", "POD CIDRS")]
    print_rows(rows, [*columns, ("routers", "ROUTER")], output)


def _present(*addresses: str) -> list[str]:
    return [address for address in addresses if address]


@click.group()
def pool() -> None:
    """Address pools that the nodes' pod CIDRs are carved from."""


@pool.command("list")
@output_option()
@options.dir_option
def list_pools(output: str) -> None:
    """Pools, their CIDRs and how much of them is in use."""
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import pages

    with options.cluster() as cluster:
        listed = pages(cluster.pools.ListPools, ipam_pb2.ListPoolsRequest(), "pools")
    rows = [
        {
            "name": item.name,
            "cidrs": list(item.cidrs),
            "node_mask_size": item.node_mask_size,
            "node_mask_size_ipv6": item.node_mask_size_ipv6,
            "node_masks": [f"/{size}" for size in (item.node_mask_size, item.node_mask_size_ipv6) if size],
            "node_cidrs_total": item.node_cidrs_total,
            "node_cidrs_used": item.node_cidrs_used,
        }
        for item in listed
    ]
    columns = [("name", "POOL"), ("cidrs", "CIDRS"), ("node_masks", "NODE MASK")]
    print_rows(rows, [*columns, ("node_cidrs_used", "USED"), ("node_cidrs_total", "TOTAL")], output)
