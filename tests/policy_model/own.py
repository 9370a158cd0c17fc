# SPDX-License-Identifier: Apache-2.0
"""The service's own kind (fimbria.io/v1 Policy), as the comments of its PolicyDefinition message put it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.policy_model.cilium import Groups, endpoints, entity, group_cidrs, node_matches
from tests.policy_model.cluster import Cluster, End
from tests.policy_model.reading import (
    EVERYBODY,
    TRANSPORT,
    Peer,
    Ports,
    Reading,
    Statement,
    of_address,
    of_outside,
)
from tests.policy_model.selectors import cilium_matches

Document = Mapping[str, Any]


def own_policy(document: Document, cluster: Cluster, groups: Groups) -> Reading:
    namespace = document["metadata"].get("namespace", "")
    spec = document["spec"]
    counts = {"ingress": 0, "egress": 0}
    statements = []
    for rule in spec.get("rules") or ():
        direction = rule["direction"]
        statements.append(
            Statement(
                direction,
                rule["action"],
                _peers(rule, namespace, groups),
                _ports(rule),
                counts[direction],
            )
        )
        counts[direction] += 1

    def selects(end: End) -> bool:
        if "nodes" in spec:
            return node_matches(spec["nodes"], cluster, end)
        if end.pod is None or (namespace and end.pod.namespace != namespace):
            return False
        return cilium_matches(spec["pods"], end)

    return Reading(
        selects,
        tuple(statements),
        isolates=frozenset(spec.get("defaultDeny") or ()),
        tier=spec.get("tier", "normal"),
        priority=spec.get("priority", 0),
        audit=spec.get("audit", False),
    )


def _peers(rule: Mapping[str, Any], namespace: str, groups: Groups) -> tuple[Peer, ...]:
    if not rule.get("peers"):
        return (EVERYBODY,)
    found: list[Peer] = []
    for item in rule["peers"]:
        if "pods" in item:
            found.append(endpoints(item["pods"], namespace))
        elif "entity" in item:
            found.append(entity(item["entity"]))
        elif "cidrGroup" in item:
            found.extend(of_outside(cidr) for cidr in group_cidrs(item["cidrGroup"], groups))
        else:
            chosen = item["cidr"]
            make = of_address if chosen.get("byAddress") else of_outside
            found.append(make(chosen["cidr"], chosen.get("except") or ()))
    return tuple(found)


def _ports(rule: Mapping[str, Any]) -> tuple[Ports, ...] | None:
    found = []
    for item in rule.get("ports") or ():
        protocols = TRANSPORT if item["protocol"] == "ANY" else (item["protocol"],)
        port = item.get("port", "")
        if not port:
            found.append(Ports(protocols))
        elif port.isdigit():
            found.append(Ports(protocols, int(port), item.get("endPort") or int(port)))
        else:
            found.append(Ports(protocols, name=port))
    return tuple(found) or None
