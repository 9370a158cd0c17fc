"""Asks the policy service whether a connection would be allowed, and puts the answer into plain data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fimbria.policy.v1 import policy_pb2
from fimbria.types.v1 import types_pb2

from cli.client import call
from cli.protocols import PROTOCOLS, protocol_number

if TYPE_CHECKING:
    from cli.client import Cluster
    from cli.lab.syntax import NamedPort


ACTIONS = {1: "allow", 2: "deny", 3: "pass"}
TIERS = {1: "admin", 2: "normal", 3: "baseline"}


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
        "remedies": list(answer.remedies),
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
        "entry": entry(message.entry) if message.HasField("entry") else None,
        "contributing": [rule(item) for item in message.contributing],
        "audited": message.audited,
        "audit_rule": rule_text(message.audit_rule) if message.HasField("audit_rule") else "",
        "audited_by": [key_text(key) for key in message.audited_by],
    }


def rule(message: policy_pb2.RuleRef) -> dict[str, Any]:
    """A rule, and where it stands."""
    return {
        "rule": rule_text(message),
        "action": ACTIONS.get(message.action, "deny" if message.deny else "allow"),
        "cookie": message.cookie,
        "source": message.source,
        "line": message.line,
    }


def entry(message: policy_pb2.PolicyEntry) -> dict[str, Any]:
    """An entry of the policy map."""
    return {
        "direction": {1: "ingress", 2: "egress"}.get(message.direction, ""),
        "identity": message.identity,
        "by_address": message.by_address,
        "protocol": message.protocol,
        "port": message.port,
        "port_prefix_length": message.port_prefix_length,
        "tier": TIERS.get(message.tier, "normal"),
        "order": message.order,
        "audit": message.audit,
        "action": "deny" if message.deny else "pass" if message.passes else "allow",
        "rule_cookie": message.rule_cookie,
    }


def lines(answer: dict[str, Any]) -> list[str]:
    """An answer for people: both verdicts, the rules behind them, and what would turn them."""
    found = []
    for direction in ("egress", "ingress"):
        told = answer[direction]
        found.append(f"  {direction:8} {told['reason']}")
        for place, item in enumerate(told["contributing"]):
            deciding = not place and item["rule"] == told["rule"]
            where = f" ({place_text(item)})" if place_text(item) else ""
            title = "rule" if deciding else "also"
            found.append(f"  {'':8}   {title:6} {item['action']:5} {item['rule']}{where}")
        if told["entry"] is not None:
            found.append(f"  {'':8}   {'entry':6} {entry_text(told['entry'])}")
        if told["audited"]:
            found.append(f"  {'':8}   audit  it passes, and would not without audit mode")
    if answer["remedies"]:
        found.append("  to deny it:" if answer["allowed"] else "  to allow it:")
        found += [f"    - {text}" for text in answer["remedies"]]
    return found


def place_text(item: dict[str, Any]) -> str:
    """`web.yaml:12`, or what is known of it."""
    line = f"line {item['line']}" if item["line"] else ""
    if item["source"]:
        return f"{item['source']}:{item['line']}" if line else str(item["source"])
    return line


def entry_text(item: dict[str, Any]) -> str:
    """`identity 301, TCP port 80, allow`."""
    whose = "any identity" if not item["identity"] else f"identity {item['identity']}"
    if item["by_address"]:
        whose = f"addresses of prefix {item['identity']}"
    what = "any protocol"
    if item["protocol"]:
        what = PROTOCOLS.get(item["protocol"], f"protocol {item['protocol']}")
        length = item["port_prefix_length"]
        kind = "type" if what.startswith("ICMP") else "port"
        last = item["port"] + (1 << (16 - length)) - 1
        if length == 16:
            what += f" {kind} {item['port']}"
        elif length:
            what += f" {kind}s {item['port']}-{last}"
    tier = "" if item["tier"] == "normal" else f", tier {item['tier']} order {item['order']}"
    return f"{whose}, {what}{tier}: {item['action']}"


def key_text(key: policy_pb2.PolicyKey) -> str:
    """`CiliumNetworkPolicy shop/web`."""
    return f"{key.kind} {key.namespace}/{key.name}" if key.namespace else f"{key.kind} {key.name}"


def rule_text(message: policy_pb2.RuleRef) -> str:
    """`CiliumNetworkPolicy shop/web spec.ingress[0]`."""
    return f"{key_text(message.policy)} {message.path}"
