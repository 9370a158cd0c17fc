"""The connections that the nodes' observers have seen lately, to ask the policy service about."""

from __future__ import annotations

import re
import time
from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fimbria.loader.v1 import loader_pb2
from fimbria.policy.v1 import policy_pb2

from cli.client import pages, shown_errors
from cli.errors import BadInput, CliError
from cli.explain import protocol_number
from cli.flow import PROTOCOLS

if TYPE_CHECKING:
    from cli.client import Cluster

_UNITS = {"s": 1, "m": 60, "h": 3600}
_WITH_PORTS = (6, 17, 132)
# Identities of people outside the cluster: their addresses say who they are.
_WORLD = (2, 9, 10)
_PREFIXES = range(0xFF0000, 0x1000000)
FLOW_SECONDS = 10.0


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
    found: dict[tuple[Any, ...], RecentConnection] = {}
    gone = without_port = 0
    nodes = list(cluster.targets.loaders)
    silent = []
    known = _known_identities(cluster, notes)
    for node in nodes:
        lost = 0
        try:
            with shown_errors():
                for item in cluster.observer(node).GetFlows(request, timeout=FLOW_SECONDS):
                    if not item.HasField("flow"):
                        lost += item.lost
                        continue
                    if not _of_policy(item.flow):
                        continue
                    if item.flow.protocol not in _WITH_PORTS:
                        without_port += 1
                    elif not _count(found, item.flow, known):
                        gone += 1
        except CliError as error:
            silent.append(node)
            notes.append(f"the flows of {node} are not known: {error.message}")
        if lost:
            notes.append(f"{lost} flows of {node} were lost")
    if not nodes:
        notes.append("no loader is known whose flows could be asked for")
    elif not found and len(silent) < len(nodes):
        notes.append(f"no node remembers a flow of the last {since} that policies decided on")
    if gone:
        notes.append(f"{gone} flows are left out: an identity of theirs is gone")
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


def _count(
    found: dict[tuple[Any, ...], RecentConnection],
    flow: loader_pb2.Flow,
    known: Container[int] | None,
) -> bool:
    """False where the connection's ends are not known any more."""
    ends = [_peer(end, known) for end in (flow.source, flow.destination)]
    if ends[0] is None or ends[1] is None:
        return False
    protocol = PROTOCOLS[flow.protocol]
    key = (
        *(peer.SerializeToString(deterministic=True) for peer in ends if peer),
        protocol,
        flow.destination.port,
    )
    held = found.get(key)
    if held is None:
        message = policy_pb2.Connection(
            to=ends[1], protocol=protocol_number(protocol), port=flow.destination.port
        )
        # `from` is a word of Python's.
        getattr(message, "from").CopyFrom(ends[0])
        held = found[key] = RecentConnection(
            message,
            {
                "from": _name(flow.source),
                "to": _name(flow.destination),
                "protocol": protocol,
                "port": flow.destination.port,
                "what": f"{flow.destination.port}/{protocol}",
                "count": 0,
            },
        )
    held.document["count"] += 1
    return True


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
