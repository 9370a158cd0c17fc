# SPDX-License-Identifier: Apache-2.0
"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy, as https://docs.cilium.io/en/latest/security/policy/
describes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.policy_model.cluster import Cluster, End
from tests.policy_model.reading import (
    ALLOW,
    DENY,
    EGRESS,
    EVERYBODY,
    INGRESS,
    TRANSPORT,
    Peer,
    Ports,
    Reading,
    Statement,
    of_outside,
)
from tests.policy_model.selectors import (
    LabelSelector,
    cilium_matches,
    cilium_peer_matches,
    kubernetes_matches,
)

Document = Mapping[str, Any]
# The CIDR groups: their documents by name.
Groups = Mapping[str, Document]

_SECTIONS = (
    (INGRESS, ALLOW, "ingress"),
    (INGRESS, DENY, "ingressDeny"),
    (EGRESS, ALLOW, "egress"),
    (EGRESS, DENY, "egressDeny"),
)
# Types by the names that Cilium documents; the numbers are IANA's.
ICMP_TYPES = {
    "ICMP": {
        "EchoReply": 0,
        "DestinationUnreachable": 3,
        "Redirect": 5,
        "Echo": 8,
        "EchoRequest": 8,
        "RouterAdvertisement": 9,
        "RouterSelection": 10,
        "TimeExceeded": 11,
        "ParameterProblem": 12,
        "Timestamp": 13,
        "TimestampReply": 14,
        "Photuris": 40,
    },
    "ICMPv6": {
        "DestinationUnreachable": 1,
        "PacketTooBig": 2,
        "TimeExceeded": 3,
        "ParameterProblem": 4,
        "EchoRequest": 128,
        "EchoReply": 129,
        "RouterSolicitation": 133,
        "RouterAdvertisement": 134,
        "NeighborSolicitation": 135,
        "NeighborAdvertisement": 136,
    },
}


def cilium_policy(document: Document, cluster: Cluster, groups: Groups) -> Iterator[Reading]:
    """One reading for `spec` and for each of `specs`."""
    namespace = ""
    if document["kind"] == "CiliumNetworkPolicy":
        namespace = document["metadata"].get("namespace", "default")
    for spec in (*([document["spec"]] if "spec" in document else ()), *document.get("specs", ())):
        yield _spec(spec, cluster, namespace, groups)


def _spec(spec: Mapping[str, Any], cluster: Cluster, namespace: str, groups: Groups) -> Reading:
    statements = []
    isolates = set()
    chosen = spec.get("enableDefaultDeny") or {}
    for direction, action, section in _SECTIONS:
        for rule in spec.get(section) or ():
            statements.append(
                Statement(direction, action, _peers(rule, direction, namespace, groups), _ports(rule))
            )
            if chosen.get(direction, True):
                isolates.add(direction)
        if chosen.get(direction):
            isolates.add(direction)
    return Reading(_subject(spec, cluster, namespace), tuple(statements), frozenset(isolates))


def _subject(spec: Mapping[str, Any], cluster: Cluster, namespace: str) -> Any:
    if "nodeSelector" in spec:
        return lambda end: node_matches(spec["nodeSelector"], cluster, end)
    selector = spec["endpointSelector"]
    return lambda end: (
        end.pod is not None
        and (not namespace or end.pod.namespace == namespace)
        and cilium_matches(selector, end)
    )


def node_matches(selector: LabelSelector, cluster: Cluster, end: End) -> bool:
    """The host, by the labels of the node and its reserved one."""
    labels = end.labels | {("k8s", key, value) for key, value in cluster.node_labels.items()}
    return end.is_host and cilium_matches(selector, End(end.name, labels, end.addresses))


def _peers(rule: Mapping[str, Any], direction: str, namespace: str, groups: Groups) -> tuple[Peer, ...]:
    side = "from" if direction == INGRESS else "to"
    listed = {key: rule.get(side + key) for key in ("Endpoints", "Entities", "CIDR", "CIDRSet")}
    if all(value is None for value in listed.values()):
        return (EVERYBODY,) if rule.get("toPorts") or rule.get("icmps") else ()
    return (
        *(endpoints(item, namespace) for item in listed["Endpoints"] or ()),
        *(entity(item) for item in listed["Entities"] or ()),
        *(of_outside(item) for item in listed["CIDR"] or ()),
        *(peer for item in listed["CIDRSet"] or () for peer in _cidr_set(item, groups)),
    )


def endpoints(selector: LabelSelector, namespace: str) -> Peer:
    return Peer(lambda end, _family: cilium_peer_matches(selector, end, namespace))


def entity(name: str) -> Peer:
    if name == "all":
        return EVERYBODY
    if name == "cluster":
        return Peer(lambda end, _family: not end.is_outside)
    if name == "world":
        return Peer(lambda end, _family: end.is_outside)
    if name == "world-ipv4":
        return of_outside("0.0.0.0/0")
    if name == "world-ipv6":
        return of_outside("::/0")
    # `none` is nobody's name.
    return Peer(lambda end, _family: end.name == "@" + name)


def group_cidrs(name: str, groups: Groups) -> Sequence[str]:
    return groups[name]["spec"]["externalCIDRs"] if name in groups else ()


def _cidr_set(item: Mapping[str, Any], groups: Groups) -> list[Peer]:
    excepts = item.get("except") or ()
    if "cidr" in item:
        return [of_outside(item["cidr"], excepts)]
    if "cidrGroupRef" in item:
        names = [item["cidrGroupRef"]]
    else:
        names = [
            name
            for name, group in groups.items()
            if kubernetes_matches(item["cidrGroupSelector"], group["metadata"].get("labels") or {})
        ]
    return [of_outside(cidr, excepts) for name in names for cidr in group_cidrs(name, groups)]


def _ports(rule: Mapping[str, Any]) -> tuple[Ports, ...] | None:
    found = []
    for entry in rule.get("toPorts") or ():
        for item in entry["ports"]:
            protocol = item.get("protocol", "ANY")
            protocols = TRANSPORT if protocol == "ANY" else (protocol,)
            if item["port"].isdigit():
                first = int(item["port"])
                found.append(Ports(protocols, first, item.get("endPort") or first))
            else:
                found.append(Ports(protocols, name=item["port"].lower()))
    for entry in rule.get("icmps") or ():
        for field in entry["fields"]:
            protocol = "ICMPv6" if field.get("family") == "IPv6" else "ICMP"
            number = field["type"]
            if isinstance(number, str) and not number.isdigit():
                number = ICMP_TYPES[protocol][number]
            found.append(Ports((protocol,), int(number), int(number)))
    return tuple(found) or None
