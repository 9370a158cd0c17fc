"""Ends of a connection to explain: pods, label sets, addresses, reserved identities, numbers."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fimbria.loader.v1 import loader_pb2
from fimbria.policy.v1 import policy_pb2

from cli.client import pages
from cli.errors import BadInput, CliError
from cli.explain import peer
from cli.lab.syntax import parse_pod

if TYPE_CHECKING:
    from cli.client import Cluster

RESERVED = (
    "host",
    "world",
    "unmanaged",
    "health",
    "init",
    "remote-node",
    "kube-apiserver",
    "ingress",
)


@dataclass(frozen=True)
class _Known:
    """An end, with the addresses that it has and the node that it is on, as far as there are any."""

    peer: policy_pb2.Peer
    addresses: tuple[str, ...] = ()
    node: str = ""
    is_node: bool = False

    def at(self, family: int) -> policy_pb2.Peer:
        """With its address of the family; rules that select by address need it."""
        for address in self.addresses:
            if ipaddress.ip_address(address).version == family:
                self.peer.address = address
        return self.peer


def parse_peers(
    cluster: Cluster, source: str, target: str, family: int | None = None
) -> tuple[policy_pb2.Peer, policy_pb2.Peer]:
    """Both ends of a connection. `family` is 4 or 6, of which pods use their addresses; None is that of an
    end that is an address, else 4. BadInput for what is no end, CliError for a pod that no loader knows.
    """
    ends = [_parse(cluster, text, name) for text, name in ((source, "FROM"), (target, "TO"))]
    given = {address.version for address in map(_address, (source, target)) if address is not None}
    if len(given | ({family} - {None})) > 1:
        raise BadInput(f"FROM {source!r} and TO {target!r} are not of one family")
    chosen = family or next(iter(given), 4)
    peers = [end.at(chosen) for end in ends]
    for end, other in (ends, ends[::-1]):
        if end.is_node and end.node and end.node != other.node:
            # A node is the host to its own pods, and a remote node to those of others.
            end.peer.labels[:] = ["reserved:remote-node"]
    return peers[0], peers[1]


def _parse(cluster: Cluster, text: str, field: str) -> _Known:
    name = text.removeprefix("@")
    if text.startswith("@") or text in RESERVED:
        if name not in RESERVED:
            raise BadInput(f"{field} {text!r} is not valid: expected one of @{', @'.join(RESERVED)}")
        return _Known(peer([f"reserved:{name}"]))
    if text.isdigit():
        return _Known(peer([], identity=int(text)))
    address = _address(text)
    if address is not None:
        return _at(cluster, str(address))
    if "=" in text or ":" in text:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return _Known(peer([part if ":" in part.partition("=")[0] else f"k8s:{part}" for part in parts]))
    return _pod(cluster, text, field)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _at(cluster: Cluster, address: str) -> _Known:
    """Whoever has an address: a pod, a node, or somebody outside the cluster."""
    for endpoint in _endpoints(cluster)[0]:
        if address in (endpoint.ipv4, endpoint.ipv6):
            return _endpoint(endpoint)
    from fimbria.ipam.v1 import ipam_pb2

    try:
        nodes = pages(cluster.nodes.ListNodes, ipam_pb2.ListNodesRequest(), "nodes")
    except CliError:
        nodes = []
    for node in nodes:
        if address in (node.ipv4, node.ipv6):
            return _Known(peer(["reserved:host"]), (address,), node.name, is_node=True)
    return _Known(policy_pb2.Peer(address=address))


def _pod(cluster: Cluster, text: str, field: str) -> _Known:
    ref = parse_pod(text, field)
    endpoints, unreachable = _endpoints(cluster)
    for endpoint in endpoints:
        if (endpoint.pod_namespace, endpoint.pod_name) == (ref.namespace, ref.name):
            return _endpoint(endpoint)
    raise unreachable or CliError(
        f"no node has a pod {ref}",
        reason="POD_NOT_FOUND",
        hint="an end may also be labels (app=web,tier=front), an address, or world",
    )


def _endpoint(endpoint: loader_pb2.Endpoint) -> _Known:
    addresses = tuple(address for address in (endpoint.ipv4, endpoint.ipv6) if address)
    found = policy_pb2.Peer(labels=endpoint.labels, named_ports=endpoint.named_ports)
    return _Known(found, addresses, endpoint.node)


def _endpoints(cluster: Cluster) -> tuple[list[loader_pb2.Endpoint], CliError | None]:
    """The pods of all nodes that answer, and the last node's failure to do so."""
    found: list[loader_pb2.Endpoint] = []
    unreachable: CliError | None = None
    for node in cluster.targets.loaders:
        request = loader_pb2.ListEndpointsRequest()
        try:
            found += pages(cluster.endpoints(node).ListEndpoints, request, "endpoints")
        except CliError as error:
            unreachable = error
    return found, unreachable
