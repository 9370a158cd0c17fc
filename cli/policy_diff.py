"""What a change of policies would change, as plain data and for people."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fimbria.policy.v1 import policy_pb2

from cli.client import call
from cli.explain import verdict
from cli.policy_names import title
from cli.policy_status import labels_text
from cli.protocols import PROTOCOLS

if TYPE_CHECKING:
    from cli.client import Cluster
    from cli.recent_flows import Flows, RecentConnection

LARGEST_CALL = 10_000


def ask(
    cluster: Cluster,
    manifests: str,
    deletes: Sequence[policy_pb2.PolicyKey],
    *,
    flows: Flows | None = None,
    limit: int = 1000,
) -> dict[str, Any]:
    """The policy service's answer; with the recent flows that would be decided otherwise if given."""
    connections = flows.connections[:LARGEST_CALL] if flows is not None else []
    request = policy_pb2.DiffPoliciesRequest(
        manifests=manifests,
        deletes=deletes,
        connections=[item.message for item in connections],
        max_changes=limit,
    )
    answer = call(cluster.policies.DiffPolicies, request, timeout=60)
    told = document(answer)
    if flows is not None:
        told["flows"] = {
            "since": flows.since,
            "connections": len(flows.connections),
            "judged": len(connections),
            "changes": [_flow_change(change, connections) for change in answer.connections],
            "notes": list(flows.notes),
        }
        if len(flows.connections) > len(connections):
            left = len(flows.connections) - len(connections)
            told["flows"]["notes"].append(f"{left} more connections were not looked at")
    return told


def document(answer: policy_pb2.DiffPoliciesResponse) -> dict[str, Any]:
    """The answer as JSON."""
    outcomes = policy_pb2.AppliedPolicy.Outcome
    return {
        "policies": [
            {
                "kind": item.policy.key.kind,
                "namespace": item.policy.key.namespace,
                "name": item.policy.key.name,
                "outcome": outcomes.Name(item.outcome).removeprefix("OUTCOME_").lower(),
                "warnings": list(item.warnings),
            }
            for item in answer.policies
        ],
        "changes": [_change(item) for item in answer.changes],
        "omitted": answer.omitted,
        "policy_revision": answer.revision.policy,
        "identity_revision": answer.revision.identity,
    }


def _change(item: policy_pb2.VerdictChange) -> dict[str, Any]:
    return {
        "subject": item.subject,
        "subject_labels": list(item.subject_labels),
        "nodes": item.nodes,
        "direction": {1: "ingress", 2: "egress"}.get(item.direction, ""),
        "peers": [
            {"identity": number, "name": name}
            for number, name in zip(item.peers, item.peer_names, strict=True)
        ],
        "every_other_peer": item.every_other_peer,
        "protocol": PROTOCOLS.get(item.protocol, str(item.protocol)) if item.protocol else "",
        "first_port": item.first_port,
        "last_port": item.last_port,
        "allowed_before": item.allowed_before,
        "allowed_after": item.allowed_after,
        "audit_only": item.audit_only,
    }


def _flow_change(
    change: policy_pb2.ConnectionChange, connections: Sequence[RecentConnection]
) -> dict[str, Any]:
    connection = connections[change.index]
    return {
        **connection.document,
        "allowed_before": change.allowed_before,
        "allowed_after": change.allowed_after,
        "egress": verdict(change.egress),
        "ingress": verdict(change.ingress),
    }


def differs(told: dict[str, Any]) -> bool:
    """Whether any verdict would change."""
    changes = [item for item in told["changes"] if changed(item)]
    return bool(changes) or bool(told["omitted"]) or bool(told.get("flows", {}).get("changes"))


def changed(item: dict[str, Any]) -> bool:
    """Whether it tells of a change, and not of what stays as it is."""
    return bool(item["allowed_before"] != item["allowed_after"])


def lines(told: dict[str, Any], deleted: Iterable[str] = ()) -> list[str]:
    """The answer for people."""
    found = [f"{title(item)} would be {item['outcome']}" for item in told["policies"]]
    found += [f"  warning: {text}" for item in told["policies"] for text in item["warnings"]]
    found += [f"{name} would be deleted" for name in deleted]
    subjects: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for item in told["changes"]:
        key = item["subject"], tuple(item["subject_labels"]), item["direction"]
        subjects.setdefault(key, []).append(item)
    for (number, labels, direction), items in subjects.items():
        nodes = items[0]["nodes"]
        where = f"on {nodes} node{'s' * (nodes != 1)}" if nodes else "on no node"
        found.append(f"{direction} of {labels_text(labels)} (identity {number}, {where}):")
        found += [f"  {line}" for line in _subject_lines(items)]
    if told["omitted"]:
        found.append(f"and {told['omitted']} more changes; --max, or less at once, shows more")
    if not subjects and not told["omitted"]:
        found.append("no verdict changes")
    if "flows" in told:
        found += _flow_lines(told["flows"])
    return found


def _subject_lines(items: Iterable[dict[str, Any]]) -> Iterable[str]:
    """One line for the ports that fare alike, for the same peers."""
    by_peers: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for item in items:
        who = tuple(peer_text(peer) for peer in item["peers"])
        if item["every_other_peer"]:
            who += ("every other peer",)
        by_peers.setdefault(who, []).append(item)
    for who, theirs in by_peers.items():
        grouped: dict[tuple[bool, bool, bool], list[dict[str, Any]]] = {}
        for item in theirs:
            told = item["allowed_before"], item["allowed_after"], item["audit_only"]
            grouped.setdefault(told, []).append(item)
        for told, alike in grouped.items():
            yield f"{_words(*told)}  {_ports(alike, theirs)}: {_short(who)}"


def _ports(alike: list[dict[str, Any]], all_of_them: list[dict[str, Any]]) -> str:
    """The ports of some lines about a peer, of all lines about it."""
    if all(item["protocol"] for item in alike):
        return ", ".join(map(ports_text, alike))
    left_out = []
    for protocol in dict.fromkeys(item["protocol"] for item in all_of_them if item["protocol"]):
        held = sorted(
            (item["first_port"], item["last_port"]) for item in alike if item["protocol"] == protocol
        )
        following, top = 0, 255 if protocol.startswith("ICMP") else 65535
        for first, last in [*held, (top + 1, top + 1)]:
            if following < first:
                whole = (following, first) == (0, top + 1)
                gap = {"protocol": protocol, "first_port": following, "last_port": first - 1}
                left_out.append(protocol if whole else ports_text(gap))
            following = last + 1
    return f"everything but {', '.join(left_out)}" if left_out else "everything"


def peer_text(peer: dict[str, Any]) -> str:
    """A peer for people: an identity by its labels and number, or a prefix."""
    labels, space, where = str(peer["name"]).partition(" ")
    if ":" not in labels or _is_prefix(labels):
        return str(peer["name"])
    return f"{labels_text(labels.split(','))} ({peer['identity']}){space}{where}"


def _is_prefix(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _words(before: bool, after: bool, audit_only: bool) -> str:
    if audit_only:
        return "no longer audited" if after else "audited"
    if before == after:
        return f"stays {'allowed' if after else 'denied'}"
    return "+ allowed" if after else "- denied"


def _short(who: Sequence[str], most: int = 6) -> str:
    listed = "; ".join(who[:most])
    return f"{listed}; and {len(who) - most} more" if len(who) > most else listed


def ports_text(item: dict[str, Any]) -> str:
    """`TCP 80`, `UDP 53-60`, `ICMP type 8`, `every port of TCP`."""
    protocol, first, last = item["protocol"], item["first_port"], item["last_port"]
    if (first, last) == (0, 65535):
        return f"every port of {protocol}" if not protocol.startswith("ICMP") else f"every {protocol}"
    word = " type" if protocol.startswith("ICMP") else ""
    if word:
        last = min(last, 255)
    return f"{protocol}{word} {first}" if first == last else f"{protocol}{word} {first}-{last}"


def _flow_lines(flows: dict[str, Any]) -> list[str]:
    found = []
    count, changes = flows["connections"], flows["changes"]
    found.append(
        f"flows of the last {flows['since']}: {count} connection{'s' * (count != 1)}, "
        f"{len(changes)} would be decided otherwise"
    )
    for item in changes:
        # Where it would be denied, or the receiver that lets it in.
        side = "ingress" if item["egress"]["allowed"] else "egress"
        seen = f"{item['count']} flow{'s' * (item['count'] != 1)}" if item["count"] else "open"
        found.append(
            f"  {'+' if item['allowed_after'] else '-'} {item['from']} → {item['to']} {item['what']} "
            f"({seen}): {item[side]['reason']}"
        )
    found += [f"  note: {note}" for note in flows["notes"]]
    return found
