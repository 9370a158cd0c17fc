"""Declaring a node gone: its CIDRs, its entries in the ipcache and its lease on identities go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cli.errors import CliError

if TYPE_CHECKING:
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import Cluster

_LOADER_SECONDS = 2.0
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Belongings:
    """What the services keep for a node. `node` is None when it is not registered."""

    name: str
    node: ipam_pb2.Node | None = None
    owners: int = 0
    addresses: int = 0
    entries: list[str] = field(default_factory=list)
    """Prefixes that it has published."""
    lease: bool = False
    identities: int = 0

    @property
    def anything(self) -> bool:
        """Whether the services know of the node at all."""
        return self.node is not None or bool(self.entries) or self.lease

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "name": self.name,
            "registered": self.node is not None,
            "pool": self.node.pool if self.node else "",
            "pod_cidrs": list(self.node.pod_cidrs) if self.node else [],
            "cidrs": [{"cidr": each.cidr, "pool": each.pool} for each in self.node.cidrs]
            if self.node
            else [],
            "owners": self.owners,
            "addresses": self.addresses,
            "ipcache_entries": len(self.entries),
            "lease": self.lease,
            "identities": self.identities,
        }


def belongings(cluster: Cluster, name: str) -> Belongings:
    """What the services keep for the node `name`. Raises CliError when one of them does not answer."""
    from fimbria.identity.v1 import identity_pb2
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import call, pages

    node: ipam_pb2.Node | None = None
    try:
        node = call(cluster.nodes.GetNode, ipam_pb2.GetNodeRequest(name=name))
    except CliError as error:
        if error.reason != "NODE_NOT_FOUND":
            raise
    held = pages(cluster.addresses.ListAddresses, ipam_pb2.ListAddressesRequest(node=name), "addresses")
    entries = pages(
        cluster.ipcache.ListIpCacheEntries, identity_pb2.ListIpCacheEntriesRequest(node=name), "entries"
    )
    lease = _lease(cluster, name)
    return Belongings(
        name,
        node,
        len(held),
        sum(bool(item.address) + bool(item.ipv6) for item in held),
        [entry.prefix for entry in entries],
        lease is not None,
        lease or 0,
    )


def loader_answers(cluster: Cluster, name: str) -> str:
    """What the node's loader says of itself, when it answers: then the node is not gone. Empty otherwise."""
    from fimbria.loader.v1 import loader_pb2

    from cli.client import call

    if name not in cluster.targets.loaders:
        return ""
    try:
        status = call(
            cluster.datapath(name).GetStatus, loader_pb2.GetStatusRequest(), timeout=_LOADER_SECONDS
        )
    except CliError:
        return ""
    if status.node != name:
        return ""
    return f"its loader answers and serves {status.endpoints} endpoint(s)"


def forget(cluster: Cluster, name: str, *, force: bool) -> None:
    """Remove the node; then its entries and its lease. Everything may be repeated.

    Raises CliError: NODE_IN_USE when addresses are held and `force` is not set; nothing is changed then.
    """
    from fimbria.identity.v1 import identity_pb2
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import call

    # The node first: whether it may go is decided there.
    call(cluster.nodes.DeleteNode, ipam_pb2.DeleteNodeRequest(name=name, force=force), timeout=_TIMEOUT)
    withdrawal = identity_pb2.PublishRequest(node=name, replace_node=True)
    call(cluster.ipcache.Publish, withdrawal, timeout=_TIMEOUT)
    call(cluster.identities.EndUse, identity_pb2.EndUseRequest(holder=holder_of(name)))


def holder_of(node: str) -> str:
    """The name under which a node's loader reports the identities that it uses."""
    return f"node/{node}"


def _lease(cluster: Cluster, name: str) -> int | None:
    """How many identities the node has said it uses; None without a lease."""
    from fimbria.identity.v1 import identity_pb2

    from cli.client import pages

    listed = pages(cluster.identities.ListHolders, identity_pb2.ListHoldersRequest(), "holders")
    return next((item.identities for item in listed if item.name == holder_of(name)), None)
