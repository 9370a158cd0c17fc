# SPDX-License-Identifier: Apache-2.0
"""Random manifests of every kind, as documents that the parser takes."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.policy_model.reading import EGRESS, INGRESS
from tests.policy_model.vocabulary import (
    CIDRS,
    ENTITIES,
    GROUPS,
    LABELS,
    NAMESPACE_LABELS,
    NAMESPACES,
    NODE_LABELS,
    PORT_NAMES,
    Document,
    cidrs,
    cilium_selectors,
    clusterwide_subjects,
    document_of,
    maybe,
    priorities,
    protocols,
    ranges,
    selectors,
)

# -- Kubernetes


@st.composite
def kubernetes_ports(draw: st.DrawFn) -> Document:
    found: Document = {}
    if maybe(draw):
        found["protocol"] = draw(protocols)
    shape = draw(st.integers(0, 3))
    if shape == 1:
        found["port"] = draw(st.sampled_from(PORT_NAMES))
    elif shape > 1:
        found["port"], last = draw(ranges())
        if shape == 3:
            found["endPort"] = last
    return found


@st.composite
def kubernetes_peers(draw: st.DrawFn) -> Document:
    shape = draw(st.integers(0, 3))
    if shape == 0:
        cidr, excepts = draw(cidrs(excepts=True))
        return {"ipBlock": {"cidr": cidr, **({"except": excepts} if excepts else {})}}
    found: Document = {}
    if shape in (1, 3):
        found["podSelector"] = draw(selectors(LABELS))
    if shape in (2, 3):
        found["namespaceSelector"] = draw(selectors(NAMESPACE_LABELS))
    return found


@st.composite
def network_policies(draw: st.DrawFn) -> Document:
    spec: Document = {"podSelector": draw(selectors(LABELS))}
    for direction, side in ((INGRESS, "from"), (EGRESS, "to")):
        if maybe(draw, 3):
            continue
        rules = spec[direction] = []
        for _ in range(draw(st.integers(0, 2))):
            rule: Document = {}
            if not maybe(draw, 4):
                rule[side] = draw(st.lists(kubernetes_peers(), max_size=2))
            if maybe(draw):
                rule["ports"] = draw(st.lists(kubernetes_ports(), max_size=2))
            rules.append(rule)
    if maybe(draw):
        spec["policyTypes"] = draw(st.sampled_from((["Ingress"], ["Egress"], ["Ingress", "Egress"], [])))
    return document_of(draw, "networking.k8s.io/v1", "NetworkPolicy", spec, namespaced=True)


# -- administrators


@st.composite
def subjects(draw: st.DrawFn) -> Document:
    """Pods by their namespaces, or by both: what policies of administrators call a subject or a peer."""
    namespaces = draw(selectors({**NAMESPACE_LABELS, "kubernetes.io/metadata.name": NAMESPACES}))
    if maybe(draw):
        return {"namespaces": namespaces}
    return {"pods": {"namespaceSelector": namespaces, "podSelector": draw(selectors(LABELS))}}


@st.composite
def admin_ports(draw: st.DrawFn, named: bool) -> Document:
    shape = draw(st.integers(0, 2))
    if shape == 0 and named:
        return {"namedPort": draw(st.sampled_from(PORT_NAMES))}
    first, last = draw(ranges())
    if shape == 1 or last == first:
        return {"portNumber": {"protocol": draw(protocols), "port": first}}
    return {"portRange": {"protocol": draw(protocols), "start": first, "end": last}}


@st.composite
def admin_policies(draw: st.DrawFn) -> Document:
    baseline = maybe(draw, 4)
    actions = ("Allow", "Deny") if baseline else ("Allow", "Deny", "Pass")
    spec: Document = {"subject": draw(subjects())}
    if not baseline:
        spec["priority"] = draw(priorities)
    for direction, side in ((INGRESS, "from"), (EGRESS, "to")):
        if maybe(draw, 3):
            continue
        rules = spec[direction] = []
        for _ in range(draw(st.integers(1, 3))):
            peers = [draw(subjects())]
            if direction == EGRESS and maybe(draw):
                listed = st.lists(st.sampled_from(CIDRS), min_size=1, max_size=2, unique=True)
                peers.insert(draw(st.integers(0, 1)), {"networks": draw(listed)})
            rule: Document = {"action": draw(st.sampled_from(actions)), side: peers}
            if maybe(draw):
                # A named port beside networks is refused: they declare none.
                named = not any("networks" in peer for peer in peers)
                rule["ports"] = draw(st.lists(admin_ports(named), min_size=1, max_size=2))
            rules.append(rule)
    kind = "BaselineAdminNetworkPolicy" if baseline else "AdminNetworkPolicy"
    found = document_of(draw, "policy.networking.k8s.io/v1alpha1", kind, spec)
    if baseline:
        found["metadata"]["name"] = "default"
    return found


# -- Cilium


@st.composite
def cilium_ports(draw: st.DrawFn) -> Document:
    found: Document = {}
    if maybe(draw):
        found["protocol"] = draw(st.sampled_from(("TCP", "UDP", "SCTP", "ANY")))
    if maybe(draw, 3):
        return {**found, "port": draw(st.sampled_from(PORT_NAMES))}
    first, last = draw(ranges())
    return {**found, "port": str(first), **({"endPort": last} if maybe(draw) else {})}


icmp_fields = st.sampled_from(
    (
        {"type": 8},
        {"type": "EchoReply"},
        {"family": "IPv4", "type": "EchoRequest"},
        {"family": "IPv6", "type": 128},
        {"family": "IPv6", "type": "NeighborSolicitation"},
    )
)


@st.composite
def cidr_sets(draw: st.DrawFn) -> Document:
    if maybe(draw, 3):
        found: Document = {"cidrGroupRef": draw(st.sampled_from(GROUPS))}
        return {
            **found,
            **({"except": [draw(st.sampled_from(("192.0.2.17/32",)))]} if maybe(draw, 4) else {}),
        }
    cidr, excepts = draw(cidrs(excepts=True))
    return {"cidr": cidr, **({"except": excepts} if excepts else {})}


@st.composite
def cilium_rules(draw: st.DrawFn, side: str, named: bool) -> Document:
    rule: Document = {}
    shape = draw(st.integers(0, 6))
    if shape in (1, 2):
        rule[f"{side}Endpoints"] = draw(st.lists(cilium_selectors(), max_size=2))
    elif shape == 3:
        rule[f"{side}Entities"] = draw(st.lists(st.sampled_from(ENTITIES), max_size=2))
    elif shape == 4:
        rule[f"{side}CIDR"] = draw(st.lists(st.sampled_from((*CIDRS, "192.0.2.18")), max_size=2))
    elif shape == 5:
        rule[f"{side}CIDRSet"] = draw(st.lists(cidr_sets(), max_size=2))
    ports = draw(st.integers(0, 3))
    if ports == 1:
        found = draw(st.lists(cilium_ports(), min_size=1, max_size=2))
        listed = [port for port in found if named or port["port"].isdigit()]
        if listed:
            rule["toPorts"] = [{"ports": listed}]
    elif ports == 2:
        rule["icmps"] = [{"fields": draw(st.lists(icmp_fields, min_size=1, max_size=2))}]
    return rule


@st.composite
def cilium_specs(draw: st.DrawFn, namespaced: bool) -> Document:
    nodes = not namespaced and maybe(draw, 3)
    spec: Document = {}
    if nodes:
        spec["nodeSelector"] = draw(selectors(NODE_LABELS))
    else:
        chosen_pods = selectors(LABELS, "k8s:") if namespaced else clusterwide_subjects()
        spec["endpointSelector"] = draw(chosen_pods)
    for direction, side in ((INGRESS, "from"), (EGRESS, "to")):
        for section in (direction, f"{direction}Deny"):
            if maybe(draw):
                named = not nodes or direction == EGRESS
                spec[section] = draw(st.lists(cilium_rules(side, named), max_size=2))
    if maybe(draw, 3):
        flags = st.fixed_dictionaries({}, optional={INGRESS: st.booleans(), EGRESS: st.booleans()})
        spec["enableDefaultDeny"] = draw(flags)
    return spec


@st.composite
def cilium_policies(draw: st.DrawFn) -> Document:
    namespaced = maybe(draw)
    kind = "CiliumNetworkPolicy" if namespaced else "CiliumClusterwideNetworkPolicy"
    found = document_of(draw, "cilium.io/v2", kind, draw(cilium_specs(namespaced)), namespaced=namespaced)
    if maybe(draw, 4):
        found["specs"] = [found.pop("spec"), draw(cilium_specs(namespaced))]
    return found


# -- the service's own


@st.composite
def own_peers(draw: st.DrawFn) -> Document:
    shape = draw(st.integers(0, 4))
    if shape == 0:
        return {"entity": draw(st.sampled_from(ENTITIES))}
    if shape == 1:
        return {"cidrGroup": draw(st.sampled_from(GROUPS))}
    if shape == 2:
        cidr, excepts = draw(cidrs(excepts=True))
        found: Document = {"cidr": cidr, **({"except": excepts} if excepts else {})}
        return {"cidr": {**found, **({"byAddress": True} if maybe(draw) else {})}}
    return {"pods": draw(cilium_selectors())}


@st.composite
def own_ports(draw: st.DrawFn, named: bool) -> Document:
    shape = draw(st.integers(0, 4))
    if shape == 0:
        kinds: tuple[Document, ...] = ({}, {"port": "8"}, {"port": "128"}, {"port": "0", "endPort": 12})
        return {"protocol": draw(st.sampled_from(("ICMP", "ICMPv6"))), **draw(st.sampled_from(kinds))}
    protocol = {"protocol": draw(st.sampled_from(("TCP", "UDP", "SCTP", "ANY")))}
    if shape == 1:
        return protocol
    if shape == 2 and named:
        return {**protocol, "port": draw(st.sampled_from(PORT_NAMES))}
    first, last = draw(ranges())
    return {**protocol, "port": str(first), **({"endPort": last} if maybe(draw) else {})}


@st.composite
def own_policies(draw: st.DrawFn) -> Document:
    namespaced = maybe(draw)
    tier = draw(st.sampled_from(("normal", "normal", "admin", "baseline")))
    actions = ("allow", "deny", "pass") if tier == "admin" else ("allow", "deny")
    spec: Document = {} if tier == "normal" and maybe(draw) else {"tier": tier}
    if tier != "normal":
        spec["priority"] = draw(priorities)
    nodes = not namespaced and maybe(draw, 3)
    if nodes:
        spec["nodes"] = draw(selectors(NODE_LABELS))
    else:
        spec["pods"] = draw(selectors(LABELS) if namespaced else clusterwide_subjects())
    if tier == "normal":
        spec["defaultDeny"] = draw(st.sampled_from(([], ["ingress"], ["egress"], ["ingress", "egress"])))
    if maybe(draw, 4):
        spec["audit"] = draw(st.booleans())
    rules = spec["rules"] = []
    for _ in range(draw(st.integers(0, 3))):
        direction = draw(st.sampled_from((INGRESS, EGRESS)))
        rule: Document = {"direction": direction, "action": draw(st.sampled_from(actions))}
        if not maybe(draw, 4):
            rule["peers"] = draw(st.lists(own_peers(), max_size=2))
        if maybe(draw):
            named = not nodes or direction == EGRESS
            rule["ports"] = draw(st.lists(own_ports(named), max_size=2))
        rules.append(rule)
    return document_of(draw, "fimbria.io/v1", "Policy", spec, namespaced=namespaced, audit=False)


@st.composite
def contests(draw: st.DrawFn) -> Document:
    """Policies of administrators that are about the same: their rules' order is what they differ in."""
    tier = draw(st.sampled_from(("admin", "admin", "baseline")))
    actions = ("allow", "deny", "pass") if tier == "admin" else ("allow", "deny")
    peers: tuple[Document, ...] = ({}, {"peers": [{"entity": "cluster"}]}, {"peers": [{"pods": {}}]})
    ports: tuple[Document, ...] = (
        {},
        {"ports": [{"protocol": "TCP"}]},
        {"ports": [{"protocol": "TCP", "port": "80"}]},
    )
    rule = st.builds(
        lambda action, who, where: {"direction": INGRESS, "action": action, **who, **where},
        st.sampled_from(actions),
        st.sampled_from(peers),
        st.sampled_from(ports),
    )
    spec = {"tier": tier, "priority": draw(priorities), "pods": {}}
    spec["rules"] = draw(st.lists(rule, min_size=1, max_size=3))
    return document_of(draw, "fimbria.io/v1", "Policy", spec)


@st.composite
def address_books(draw: st.DrawFn) -> Document:
    """Policies about addresses and nothing else: their prefixes lie within each other."""
    shape = draw(st.integers(0, 2))
    direction, side = draw(st.sampled_from(((INGRESS, "from"), (EGRESS, "to"))))
    if shape == 0:
        blocks = [
            {"ipBlock": {"cidr": cidr, "except": excepts} if excepts else {"cidr": cidr}}
            for cidr, excepts in draw(st.lists(cidrs(excepts=True), min_size=1, max_size=2))
        ]
        spec = {"podSelector": {}, "policyTypes": [direction.capitalize()], direction: [{side: blocks}]}
        return document_of(draw, "networking.k8s.io/v1", "NetworkPolicy", spec, namespaced=True)
    if shape == 1:
        section = direction + draw(st.sampled_from(("", "", "Deny")))
        sets = draw(st.lists(cidr_sets(), min_size=1, max_size=2))
        spec = {"endpointSelector": {}, section: [{f"{side}CIDRSet": sets}]}
        return document_of(draw, "cilium.io/v2", "CiliumClusterwideNetworkPolicy", spec)
    return draw(cidr_groups())


@st.composite
def port_books(draw: st.DrawFn) -> Document:
    """Policies about ports by their names: what pods declare decides, at either end."""
    direction, side = draw(st.sampled_from(((INGRESS, "from"), (EGRESS, "to"), (EGRESS, "to"))))
    name = draw(st.sampled_from(PORT_NAMES))
    if maybe(draw):
        peers = [{"namespaceSelector": {}, "podSelector": draw(selectors(LABELS))}]
        rule: Document = {side: peers, "ports": [{"port": name}, {"protocol": "UDP", "port": "dns"}]}
        spec: Document = {"podSelector": {}, "policyTypes": [direction.capitalize()], direction: [rule]}
        return document_of(draw, "networking.k8s.io/v1", "NetworkPolicy", spec, namespaced=True)
    section = direction + draw(st.sampled_from(("", "", "Deny")))
    rule = {"toPorts": [{"ports": [{"port": name}]}]}
    if maybe(draw):
        rule[f"{side}Endpoints"] = [draw(selectors(LABELS))]
    spec = {"endpointSelector": {}, section: [rule]}
    return document_of(draw, "cilium.io/v2", "CiliumClusterwideNetworkPolicy", spec)


@st.composite
def cidr_groups(draw: st.DrawFn) -> Document:
    members = st.lists(st.sampled_from(CIDRS), min_size=1, max_size=3, unique=True)
    return {
        "apiVersion": draw(st.sampled_from(("cilium.io/v2", "cilium.io/v2alpha1"))),
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": draw(st.sampled_from(GROUPS))},
        "spec": {"externalCIDRs": draw(members)},
    }
