"""The connections that the nodes have seen lately, to ask the policy service about.

Observers remember flows where a policy was asked. Those of pods that no policy selects are not among them;
what of these is open still stands in the nodes' connection tracking.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fimbria.loader.v1 import loader_pb2
from fimbria.policy.v1 import policy_pb2

from cli.client import call, pages, shown_errors
from cli.errors import BadInput, CliError
from cli.protocols import PROTOCOLS, protocol_number

if TYPE_CHECKING:
    from cli.client import Cluster

_UNITS = {"s": 1, "m": 60, "h": 3600}
_WITH_PORTS = (6, 17, 132)
# Identities of people outside the cluster: their addresses say who they are.
_WORLD = (2, 9, 10)
_PREFIXES = range(0xFF0000, 0x1000000)
FLOW_SECONDS = 10.0
MOST_TRACKED = 10_000


@dataclass
class RecentConnection:
    """A connection that was seen, as often as `document` says."""

    message: policy_pb2.Connection
    document: dict[str, Any]


@dataclass
class Flows:
    """The connections of the last `since`, the most frequent first, and what has to be said of them."""

    since: str
    connections: list[RecentConnection]
    notes: list[str]


def recent(cluster: Cluster, since: str) -> Flows:
    """Ask every node. A node that cannot tell is a note, not an error."""
    request = loader_pb2.GetFlowsRequest(
        allow=[
            loader_pb2.FlowFilter(type=loader_pb2.FLOW_TYPE_VERDICT),
            loader_pb2.FlowFilter(type=loader_pb2.FLOW_TYPE_DROP),
        ]
    )
    request.since.FromNanoseconds(time.time_ns() - parse_age(since) * 1_000_000_000)
    notes: list[str] = []
    seen = _Seen(_known_identities(cluster, notes), _owners(cluster), _node_addresses(cluster, notes))
    nodes = list(cluster.targets.loaders)
    silent = 0
    for node in nodes:
        lost = 0
        try:
            with shown_errors():
                for item in cluster.observer(node).GetFlows(request, timeout=FLOW_SECONDS):
                    if item.HasField("flow"):
                        seen.flow(item.flow)
                    else:
                        lost += item.lost
        except CliError as error:
            silent += 1
            notes.append(f"the flows of {node} are not known: {error.message}")
            continue
        if lost:
            notes.append(f"{lost} flows of {node} were lost")
        try:
            tracked = loader_pb2.ListConnectionsRequest(limit=MOST_TRACKED)
            for connection in call(cluster.datapath(node).ListConnections, tracked).connections:
                seen.tracked(connection)
        except CliError as error:
            notes.append(f"the open connections of {node} are not known: {error.message}")
    found, gone, without_port = seen.found, seen.gone, seen.without_port
    if not nodes:
        notes.append("no loader is known whose flows could be asked for")
    elif not any(item.document["count"] for item in found.values()) and silent < len(nodes):
        notes.append(
            f"no node remembers a flow of the last {since}: where no policy selects a pod, none is reported, "
            "and only what is open now is known"
        )
    if gone:
        notes.append(f"{gone} flows are left out: their ends are not known any more")
    if without_port:
        notes.append(f"{without_port} flows without ports (ICMP and others) are left out")
    ordered = sorted(found.values(), key=lambda item: -int(item.document["count"]))
    return Flows(since, ordered, notes)


def parse_age(text: str) -> int:
    """`5m` -> seconds."""
    match = re.fullmatch(r"([1-9]\d*)([smh])", text)
    if match is None:
        raise BadInput(f"--flows {text!r} is not valid: expected a number and s, m or h, for example 5m")
    return int(match[1]) * _UNITS[match[2]]


def _known_identities(cluster: Cluster, notes: list[str]) -> Container[int] | None:
    """Every identity there is; None when the identity service cannot say."""
    from fimbria.identity.v1 import identity_pb2

    request = identity_pb2.ListIdentitiesRequest(include_reserved=True)
    try:
        return {item.id for item in pages(cluster.identities.ListIdentities, request, "identities")}
    except CliError as error:
        notes.append(f"it is not known which identities are still there: {error.message}")
        return None


def _of_policy(flow: loader_pb2.Flow) -> bool:
    """Whether policies decided on it: packets are dropped for other reasons too."""
    dropped = flow.verdict == loader_pb2.FLOW_VERDICT_DROPPED
    return not dropped or flow.reason.startswith("Policy denied")


def _node_addresses(cluster: Cluster, notes: list[str]) -> set[str]:
    from fimbria.ipam.v1 import ipam_pb2

    try:
        nodes = pages(cluster.nodes.ListNodes, ipam_pb2.ListNodesRequest(), "nodes")
    except CliError as error:
        notes.append(f"it is not known which addresses are nodes: {error.message}")
        return set()
    return {
        address
        for node in nodes
        for address in (node.ipv4, node.ipv6, node.router_ipv4, node.router_ipv6)
        if address
    }


def _owners(cluster: Cluster) -> dict[str, loader_pb2.Endpoint]:
    """The pods by their addresses."""
    found = {}
    for node in cluster.targets.loaders:
        request = loader_pb2.ListEndpointsRequest()
        with contextlib.suppress(CliError):
            for endpoint in pages(cluster.endpoints(node).ListEndpoints, request, "endpoints"):
                found.update({address: endpoint for address in (endpoint.ipv4, endpoint.ipv6) if address})
    return found


class _Seen:
    """What has been seen, each connection once."""

    def __init__(
        self,
        identities: Container[int] | None,
        owners: Mapping[str, loader_pb2.Endpoint],
        nodes: Container[str],
    ) -> None:
        self._identities = identities
        self._nodes = nodes
        self._owners = owners
        self.found: dict[tuple[str, str, str, int], RecentConnection] = {}
        # How many are left out: of ends that are not known, and of protocols without ports.
        self.gone = self.without_port = 0

    def flow(self, flow: loader_pb2.Flow) -> None:
        if not _of_policy(flow):
            return
        if flow.protocol not in _WITH_PORTS:
            self.without_port += 1
            return
        ends = _peer(flow.source, self._identities), _peer(flow.destination, self._identities)
        if ends[0] is None or ends[1] is None:
            self.gone += 1
            return
        names = _name(flow.source), _name(flow.destination)
        held = self._add(ends[0], ends[1], names, flow.protocol, flow.destination.port)
        held.document["count"] += 1

    def tracked(self, connection: loader_pb2.Connection) -> None:
        """One between pods, or of a pod and somebody outside; what nodes do themselves is left out."""
        if connection.protocol not in _WITH_PORTS or connection.closing:
            return
        owners = [self._owners.get(address) for address in (connection.source, connection.destination)]
        if (
            owners == [None, None]
            or connection.source in self._nodes
            or connection.destination in self._nodes
        ):
            return
        ends, names = [], []
        for owner, address in zip(owners, (connection.source, connection.destination), strict=True):
            if owner is not None:
                ends.append(policy_pb2.Peer(labels=sorted(owner.labels), address=address))
                names.append(f"{owner.pod_namespace}/{owner.pod_name}")
            else:
                ends.append(policy_pb2.Peer(address=address))
                names.append(address)
        held = self._add(
            ends[0], ends[1], (names[0], names[1]), connection.protocol, connection.destination_port
        )
        held.document["open"] = True

    def _add(
        self,
        source: policy_pb2.Peer,
        target: policy_pb2.Peer,
        names: tuple[str, str],
        protocol: int,
        port: int,
    ) -> RecentConnection:
        name = PROTOCOLS[protocol]
        key = source.address or names[0], target.address or names[1], name, port
        held = self.found.get(key)
        if held is None:
            message = policy_pb2.Connection(to=target, protocol=protocol_number(name), port=port)
            # `from` is a word of Python's.
            getattr(message, "from").CopyFrom(source)
            told = {"from": names[0], "to": names[1], "protocol": name, "port": port}
            held = self.found[key] = RecentConnection(
                message, {**told, "what": f"{port}/{name}", "count": 0, "open": False}
            )
        return held


def _peer(end: loader_pb2.FlowEnd, known: Container[int] | None) -> policy_pb2.Peer | None:
    if end.identity in _WORLD or end.identity in _PREFIXES:
        return policy_pb2.Peer(address=end.ip) if end.ip else None
    if end.labels:
        return policy_pb2.Peer(labels=sorted(end.labels), address=end.ip)
    if not end.identity or (known is not None and end.identity not in known):
        return None
    return policy_pb2.Peer(identity=end.identity, address=end.ip)


def _name(end: loader_pb2.FlowEnd) -> str:
    return end.pod or (f"{end.ip} (identity {end.identity})" if end.ip else f"identity {end.identity}")
