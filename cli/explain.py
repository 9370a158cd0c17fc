"""Asks the policy service whether a connection would be allowed, and puts the answer into plain data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fimbria.policy.v1 import policy_pb2
from fimbria.types.v1 import types_pb2

from cli.client import call

if TYPE_CHECKING:
    from cli.client import Cluster
    from cli.lab.syntax import NamedPort


def protocol_number(name: str) -> types_pb2.Protocol.ValueType:
    """The proto's value for TCP, UDP, SCTP or ICMP."""
    return types_pb2.Protocol.Value(f"PROTOCOL_{name}")


def peer(labels: Iterable[str], ports: Iterable[NamedPort] = (), *, identity: int = 0) -> policy_pb2.Peer:
    """One end: its label strings and the ports that it declares, or its identity."""
    return policy_pb2.Peer(
        labels=labels,
        identity=identity,
        named_ports=[
            types_pb2.NamedPort(name=port.name, port=port.number, protocol=protocol_number(port.protocol))
            for port in ports
        ],
    )


def explain(
    cluster: Cluster, source: policy_pb2.Peer, target: policy_pb2.Peer, protocol: str, port: int
) -> dict[str, Any]:
    """The policy service's answer: allowed, and the verdict, rule and reason at either end."""
    request = policy_pb2.ExplainRequest(to=target, protocol=protocol_number(protocol), port=port)
    # `from` is a word of Python's.
    getattr(request, "from").CopyFrom(source)
    answer = call(cluster.policies.Explain, request)
    return {
        "allowed": answer.allowed,
        "egress": verdict(answer.egress),
        "ingress": verdict(answer.ingress),
        "policy_revision": answer.revision.policy,
        "identity_revision": answer.revision.identity,
    }


def verdict(message: policy_pb2.Verdict) -> dict[str, Any]:
    """One end's verdict."""
    return {
        "allowed": message.allowed,
        "enforced": message.enforced,
        "rule": rule_text(message.rule) if message.HasField("rule") else "",
        "enforced_by": [key_text(key) for key in message.enforced_by],
        "reason": message.reason,
    }


def key_text(key: policy_pb2.PolicyKey) -> str:
    """`CiliumNetworkPolicy shop/web`."""
    return f"{key.kind} {key.namespace}/{key.name}" if key.namespace else f"{key.kind} {key.name}"


def rule_text(rule: policy_pb2.RuleRef) -> str:
    """`CiliumNetworkPolicy shop/web spec.ingress[0]`."""
    return f"{key_text(rule.policy)} {rule.path}"
