"""Flows as plain data, and the ways to ask the loaders for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fimbria.loader.v1 import loader_pb2

from cli.client import shown_errors
from cli.protocols import PROTOCOLS, protocol_number

if TYPE_CHECKING:
    from cli.client import Cluster

VERDICTS = {
    loader_pb2.FLOW_VERDICT_FORWARDED: "forwarded",
    loader_pb2.FLOW_VERDICT_DROPPED: "dropped",
    loader_pb2.FLOW_VERDICT_AUDIT: "audit",
}


def flow_row(flow: loader_pb2.Flow) -> dict[str, Any]:
    """A flow as JSON."""
    return {
        "time": flow.time.ToJsonString(),
        "node": flow.node,
        "type": _word(loader_pb2.FlowType.Name, "FLOW_TYPE", flow.type),
        "verdict": VERDICTS.get(flow.verdict, "unknown"),
        "reason": flow.reason,
        "reason_code": flow.reason_code,
        "direction": flow.direction,
        "family": flow.family,
        "protocol": PROTOCOLS.get(flow.protocol, str(flow.protocol)),
        "source": _end(flow.source),
        "destination": _end(flow.destination),
        "rule": flow.rule,
        "rule_cookie": flow.rule_cookie,
        "policy_revision": flow.policy_revision,
        "tcp_flags": flow.tcp_flags,
        "endpoint_id": flow.endpoint_id,
        "location": flow.location,
        "point": _word(loader_pb2.TracePoint.Name, "TRACE_POINT", flow.trace_point),
        "state": _word(loader_pb2.FlowState.Name, "FLOW_STATE", flow.state),
        "length": flow.length,
        "packet": flow.packet.hex(),
    }


def _word(name: Callable[[Any], str], prefix: str, number: int) -> str:
    """`to-endpoint` for TRACE_POINT_TO_ENDPOINT; nothing for what is not given."""
    try:
        word = name(number).removeprefix(f"{prefix}_") if number else ""
    except ValueError:
        # A loader newer than this program.
        word = f"{number}"
    return word.lower().replace("_", "-")


def _end(end: loader_pb2.FlowEnd) -> dict[str, Any]:
    return {
        "ip": end.ip,
        "port": end.port,
        "identity": end.identity,
        "pod": end.pod,
        "labels": list(end.labels),
    }


def end_text(end: dict[str, Any]) -> str:
    """`shop/client (10.244.1.7:41004)`, or what is known of it."""
    if not end["ip"]:
        return f"unknown (identity {end['identity']})"
    ip = f"[{end['ip']}]" if end["port"] and ":" in end["ip"] else end["ip"]
    where = f"{ip}:{end['port']}" if end["port"] else ip
    return f"{end['pod']} ({where})" if end["pod"] else f"{where} (identity {end['identity']})"


def connection_flows(
    cluster: Cluster, node: str, target_ip: str, port: int, protocol: str, source_port: int
) -> list[dict[str, Any]]:
    """What a node saw of one connection's packets towards its target; CliError if it cannot tell."""
    request = loader_pb2.GetFlowsRequest(
        allow=[
            loader_pb2.FlowFilter(
                destination_ip=target_ip, destination_port=port, protocol=protocol_number(protocol)
            )
        ]
    )
    found = []
    with shown_errors():
        for item in cluster.observer(node).GetFlows(request, timeout=5):
            if item.HasField("flow") and item.flow.source.port == source_port:
                found.append(flow_row(item.flow))
    return found
