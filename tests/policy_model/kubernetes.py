# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicy, AdminNetworkPolicy and BaselineAdminNetworkPolicy, as their API types are documented.

https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1
https://network-policy-api.sigs.k8s.io/reference/spec/ (policy.networking.k8s.io/v1alpha1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.policy_model.cluster import Cluster, End
from tests.policy_model.reading import (
    ADMIN,
    BASELINE,
    EGRESS,
    EVERYBODY,
    INGRESS,
    TRANSPORT,
    Peer,
    Ports,
    Reading,
    Statement,
    of_address,
)
from tests.policy_model.selectors import LabelSelector, kubernetes_matches

Document = Mapping[str, Any]
_SIDES = {INGRESS: "from", EGRESS: "to"}


def _pod_matches(cluster: Cluster, end: End, namespaces: LabelSelector, pods: LabelSelector) -> bool:
    if end.pod is None:
        return False
    of_namespace = {
        **cluster.namespaces.get(end.pod.namespace, {}),
        "kubernetes.io/metadata.name": end.pod.namespace,
    }
    return kubernetes_matches(namespaces, of_namespace) and kubernetes_matches(pods, end.pod.labels)


# -- NetworkPolicy


def network_policy(document: Document, cluster: Cluster) -> Reading:
    namespace = document["metadata"].get("namespace", "default")
    spec = document["spec"]
    chosen = spec.get("podSelector") or {}
    types = [text.lower() for text in spec.get("policyTypes") or ()]
    if not types:
        types = [INGRESS, EGRESS] if spec.get("egress") else [INGRESS]
    statements = [
        Statement(direction, "allow", _peers(rule, direction, namespace, cluster), _ports(rule))
        for direction in (INGRESS, EGRESS)
        if direction in types
        for rule in spec.get(direction) or ()
    ]
    return Reading(
        selects=lambda end: (
            end.pod is not None
            and end.pod.namespace == namespace
            and kubernetes_matches(chosen, end.pod.labels)
        ),
        statements=tuple(statements),
        isolates=frozenset(types),
    )


def _peers(rule: Mapping[str, Any], direction: str, namespace: str, cluster: Cluster) -> tuple[Peer, ...]:
    listed = rule.get(_SIDES[direction])
    if not listed:
        return (EVERYBODY,)
    return tuple(_peer(item, namespace, cluster) for item in listed)


def _peer(item: Mapping[str, Any], namespace: str, cluster: Cluster) -> Peer:
    if "ipBlock" in item:
        return of_address(item["ipBlock"]["cidr"], item["ipBlock"].get("except") or ())
    pods = item.get("podSelector") or {}
    if item.get("namespaceSelector") is None:
        return Peer(
            lambda end, _family: (
                end.pod is not None
                and end.pod.namespace == namespace
                and kubernetes_matches(pods, end.pod.labels)
            )
        )
    where = item["namespaceSelector"]
    return Peer(lambda end, _family: _pod_matches(cluster, end, where, pods))


def _ports(rule: Mapping[str, Any]) -> tuple[Ports, ...] | None:
    listed = rule.get("ports")
    if not listed:
        return None
    found = []
    for item in listed:
        protocols = (item.get("protocol", "TCP"),)
        port = item.get("port")
        if port is None:
            found.append(Ports(protocols))
        elif isinstance(port, str):
            found.append(Ports(protocols, name=port))
        else:
            found.append(Ports(protocols, port, item.get("endPort", port)))
    return tuple(found)


# -- AdminNetworkPolicy and BaselineAdminNetworkPolicy


def admin_policy(document: Document, cluster: Cluster) -> Reading:
    spec = document["spec"]
    admin = document["kind"] == "AdminNetworkPolicy"
    subject = spec["subject"]
    statements = [
        Statement(
            direction,
            rule["action"].lower(),
            tuple(_admin_peer(item, cluster) for item in rule[_SIDES[direction]]),
            _admin_ports(rule),
            index,
        )
        for direction in (INGRESS, EGRESS)
        for index, rule in enumerate(spec.get(direction) or ())
    ]
    return Reading(
        selects=lambda end: _set_matches(cluster, end, subject),
        statements=tuple(statements),
        tier=ADMIN if admin else BASELINE,
        priority=spec["priority"] if admin else 0,
    )


def _set_matches(cluster: Cluster, end: End, chosen: Mapping[str, Any]) -> bool:
    """`namespaces: SELECTOR` or `pods: {namespaceSelector, podSelector}`."""
    if "namespaces" in chosen:
        return _pod_matches(cluster, end, chosen["namespaces"], {})
    return _pod_matches(cluster, end, chosen["pods"]["namespaceSelector"], chosen["pods"]["podSelector"])


def _admin_peer(item: Mapping[str, Any], cluster: Cluster) -> Peer:
    if "networks" in item:
        blocks = [of_address(cidr) for cidr in item["networks"]]
        return Peer(
            lambda end, family: any(block.matches(end, family) for block in blocks), names_ports=False
        )
    return Peer(lambda end, _family: _set_matches(cluster, end, item))


def _admin_ports(rule: Mapping[str, Any]) -> tuple[Ports, ...] | None:
    if rule.get("ports") is None:
        return None
    found = []
    for item in rule["ports"]:
        if "namedPort" in item:
            found.append(Ports(TRANSPORT, name=item["namedPort"]))
        elif "portRange" in item:
            chosen = item["portRange"]
            found.append(Ports((chosen.get("protocol", "TCP"),), chosen["start"], chosen["end"]))
        else:
            chosen = item["portNumber"]
            found.append(Ports((chosen.get("protocol", "TCP"),), chosen["port"], chosen["port"]))
    return tuple(found)
