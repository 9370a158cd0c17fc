"""How far policies have come, as plain data and for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cli.output import table
from cli.policy_names import title

if TYPE_CHECKING:
    from fimbria.policy.v1 import policy_pb2

    from cli.client import Cluster

_NAMESPACE = "io.kubernetes.pod.namespace"
# Labels that say more about where a pod is than about what it is.
_OTHERS = ("io.cilium.k8s.namespace.labels.", "io.cilium.k8s.policy.")
TIERS = {1: "admin", 2: "normal", 3: "baseline"}


def statuses(cluster: Cluster, key: policy_pb2.PolicyKey | None = None) -> list[dict[str, Any]]:
    """The status of one policy, or of all."""
    from fimbria.policy.v1 import policy_pb2

    from cli.client import pages

    request = policy_pb2.ListPolicyStatusRequest(key=key)
    found = pages(cluster.policies.ListPolicyStatus, request, "policies", timeout=30)
    return [document(item) for item in found]


def document(item: policy_pb2.PolicyStatus) -> dict[str, Any]:
    """A policy's status as JSON."""
    return {
        "kind": item.key.kind,
        "namespace": item.key.namespace,
        "name": item.key.name,
        "revision": item.revision,
        "enforced": item.enforced,
        "update_time": item.update_time.ToJsonString(),
        "audit": item.audit,
        "tier": TIERS.get(item.tier, "normal"),
        "subjects": [
            {
                "identity": subject.identity,
                "labels": list(subject.labels),
                "nodes": [
                    {
                        "node": node.node,
                        "policy_revision": node.acknowledged.policy,
                        "identity_revision": node.acknowledged.identity,
                        "enforced": node.enforced,
                        "late": node.late,
                        "late_seconds": round(node.late_for.ToNanoseconds() / 1e9, 3),
                    }
                    for node in subject.nodes
                ],
            }
            for subject in item.subjects
        ],
        "notes": list(item.notes),
    }


def late_nodes(status: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """Each node that is late with a policy: why, and for how many seconds."""
    found: dict[str, tuple[str, float]] = {}
    for subject in status["subjects"]:
        for node in subject["nodes"]:
            if not node["enforced"]:
                found.setdefault(node["node"], (node["late"], node["late_seconds"]))
    return found


def overview(items: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each policy, and below it who is late and what else is to be said."""
    rows: list[dict[str, Any]] = []
    below: list[list[str]] = []
    for item in items:
        late = late_nodes(item)
        nodes = {node["node"] for subject in item["subjects"] for node in subject["nodes"]}
        rows.append(
            {
                **item,
                "mode": "audit" if item["audit"] else "enforce",
                "subject_count": len(item["subjects"]),
                "node_count": f"{len(nodes) - len(late)}/{len(nodes)}",
            }
        )
        below.append(
            [f"late: {name} ({seconds(since)}): {why}" for name, (why, since) in sorted(late.items())]
            + [f"note: {note}" for note in item["notes"]]
        )
    lines = table(
        rows,
        [
            ("kind", "KIND"),
            ("namespace", "NAMESPACE"),
            ("name", "NAME"),
            ("tier", "TIER"),
            ("mode", "MODE"),
            ("revision", "REVISION"),
            ("enforced", "ENFORCED"),
            ("subject_count", "SUBJECTS"),
            ("node_count", "NODES"),
        ],
    )
    found = lines[:1]
    for line, more in zip(lines[1:], below, strict=True):
        found += [line, *(f"  {text}" for text in more)]
    return found


def details(item: dict[str, Any]) -> list[str]:
    """One policy: each subject on each node."""
    state = "enforced on every node that has to" if item["enforced"] else "not enforced everywhere yet"
    audit = ", in audit mode" if item["audit"] else ""
    found = [f"{title(item)}: revision {item['revision']}, {state} (tier {item['tier']}{audit})"]
    rows = [
        {
            "identity": subject["identity"],
            "labels": labels_text(subject["labels"]),
            "node": node["node"],
            "acknowledged": node["policy_revision"],
            "state": "enforced" if node["enforced"] else f"late for {seconds(node['late_seconds'])}",
            "why": node["late"],
        }
        for subject in item["subjects"]
        for node in subject["nodes"]
    ]
    if rows:
        columns = [("identity", "IDENTITY"), ("labels", "LABELS"), ("node", "NODE")]
        more = [("acknowledged", "ACKNOWLEDGED"), ("state", "STATE"), ("why", "WHY")]
        found += [f"  {line}" for line in table(rows, [*columns, *more])]
    return found + [f"  note: {note}" for note in item["notes"]]


def labels_text(labels: Iterable[str]) -> str:
    """Labels for people: `app=web in shop`, without those of the namespace and the cluster."""
    namespace, shown = "", []
    for label in labels:
        plain = label.removeprefix("k8s:")
        key, _, value = plain.partition("=")
        if key == _NAMESPACE:
            namespace = f" in {value}"
        elif not key.startswith(_OTHERS):
            shown.append(plain)
    return (",".join(shown) or "pods without labels") + namespace


def seconds(count: float) -> str:
    """`0.3 s`, `12 s`, `5 min`, `3 h`."""
    if count < 10:
        return f"{count:.1f} s"
    if count < 120:
        return f"{count:.0f} s"
    return f"{count / 60:.0f} min" if count < 7200 else f"{count / 3600:.0f} h"
