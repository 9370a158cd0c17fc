"""Ends of a connection to explain: pods, label sets, reserved identities, numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fimbria.loader.v1 import loader_pb2
from fimbria.policy.v1 import policy_pb2

from cli.client import pages
from cli.errors import BadInput, CliError
from cli.explain import peer
from cli.lab.syntax import parse_pod

if TYPE_CHECKING:
    from cli.client import Cluster

RESERVED = ("host", "world", "unmanaged", "health", "init", "remote-node", "kube-apiserver", "ingress")


def parse_peer(cluster: Cluster, text: str, field: str) -> policy_pb2.Peer:
    """The end that `text` stands for. BadInput for what is none, CliError for a pod that no loader knows."""
    if text.startswith("@"):
        if text[1:] not in RESERVED:
            raise BadInput(f"{field} {text!r} is not valid: expected one of @{', @'.join(RESERVED)}")
        return peer([f"reserved:{text[1:]}"])
    if text.isdigit():
        return peer([], identity=int(text))
    if "=" in text or ":" in text:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return peer([part if ":" in part.partition("=")[0] else f"k8s:{part}" for part in parts])
    return _pod(cluster, text, field)


def _pod(cluster: Cluster, text: str, field: str) -> policy_pb2.Peer:
    ref = parse_pod(text, field)
    unreachable: CliError | None = None
    for node in cluster.targets.loaders:
        try:
            listed = pages(
                cluster.endpoints(node).ListEndpoints, loader_pb2.ListEndpointsRequest(), "endpoints"
            )
        except CliError as error:
            unreachable = error
            continue
        for endpoint in listed:
            if (endpoint.pod_namespace, endpoint.pod_name) == (ref.namespace, ref.name):
                return policy_pb2.Peer(labels=endpoint.labels, named_ports=endpoint.named_ports)
    raise unreachable or CliError(
        f"no node has a pod {ref}",
        reason="POD_NOT_FOUND",
        hint="an end may also be labels: app=web,tier=front",
    )
