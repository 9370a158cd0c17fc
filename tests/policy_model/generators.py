# SPDX-License-Identifier: Apache-2.0
"""Random clusters, manifests and changes, from a vocabulary so small that they have to do with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from hypothesis import strategies as st

from tests.policy_model.cases import reserved_addresses
from tests.policy_model.cluster import CLUSTER, POD_NAMESPACE, SERVICE_ACCOUNT, Cluster, DeclaredPort, Pod
from tests.policy_model.reading import EGRESS, INGRESS

Document = dict[str, Any]
# Values by key.
Vocabulary = Mapping[str, tuple[str, ...]]

NAMESPACES = ("bank", "shop")
LABELS = {"app": ("web", "db"), "tier": ("one", "two")}
NAMESPACE_LABELS = {"team": ("red", "blue"), "env": ("prod",)}
NODE_LABELS = {"role": ("edge", "core")}
ACCOUNTS = ("", "", "robot")
GROUPS = ("office", "partners")
NAMES = ("one", "two")
PORT_NAMES = ("http", "dns")
# Slots for pods; each has its addresses for good.
SLOTS = {
    f"{namespace}/p{number}": (f"10.0.{index}.{number}", f"fd00:{index}::{number}")
    for index, namespace in enumerate(NAMESPACES)
    for number in (1, 2)
}
# Prefixes that lie within each other, about pods, nodes and others.
CIDRS = (
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.1/32",
    "172.31.0.0/24",
    "172.31.0.2/32",
    # Three that lie within each other, so often that policies differ about them.
    *(("192.0.2.0/24", "192.0.2.16/28", "192.0.2.17/32") * 3),
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "fd00::/16",
)
OUTSIDE = (
    "192.0.2.17",
    "192.0.2.18",
    "192.0.2.200",
    "198.51.100.7",
    "10.9.9.9",
    "2001:db8:1::7",
    "2001:db8:2::1",
    "2a00::1",
)
ENTITIES = (
    "all",
    "world",
    "world-ipv4",
    "world-ipv6",
    "cluster",
    "host",
    "remote-node",
    "health",
    "kube-apiserver",
    "ingress",
    "unmanaged",
    "init",
    "none",
)


@dataclass(frozen=True)
class Step:
    """A change. What `value` is depends on `what`: see `steps`."""

    what: str
    name: str = ""
    value: Any = None


def chosen(vocabulary: Vocabulary) -> st.SearchStrategy[dict[str, str]]:
    """Labels: each key with a value, or not at all."""
    return st.fixed_dictionaries(
        {}, optional={key: st.sampled_from(values) for key, values in vocabulary.items()}
    )


@st.composite
def expressions(draw: st.DrawFn, vocabulary: Vocabulary, prefix: str = "") -> Document:
    key = draw(st.sampled_from(sorted(vocabulary)))
    operator = draw(st.sampled_from(("In", "NotIn", "Exists", "DoesNotExist")))
    found: Document = {"key": prefix + key, "operator": operator}
    if operator in ("In", "NotIn"):
        values = st.lists(st.sampled_from(vocabulary[key]), min_size=1, max_size=2, unique=True)
        found["values"] = draw(values)
    return found


@st.composite
def selectors(draw: st.DrawFn, vocabulary: Vocabulary, prefix: str = "") -> Document:
    """A label selector on the vocabulary's keys with a prefix."""
    found: Document = {}
    shape = draw(st.integers(0, 4))
    if shape in (1, 2):
        labels = draw(chosen(vocabulary))
        found["matchLabels"] = {prefix + key: value for key, value in labels.items()}
    if shape in (2, 3):
        found["matchExpressions"] = draw(st.lists(expressions(vocabulary, prefix), max_size=2))
    return found


def merged(first: Document, second: Document) -> Document:
    return {
        "matchLabels": {**first.get("matchLabels", {}), **second.get("matchLabels", {})},
        "matchExpressions": [*first.get("matchExpressions", []), *second.get("matchExpressions", [])],
    }


@st.composite
def cilium_selectors(draw: st.DrawFn) -> Document:
    """Of endpoints as peers: by labels with and without a source, namespaces, their labels, reserved ones."""
    shape = draw(st.integers(0, 9))
    if shape == 0:
        return {"matchLabels": {f"reserved:{draw(st.sampled_from(('world', 'host', 'health')))}": ""}}
    if shape == 1:
        return {"matchExpressions": [draw(expressions({"host": ("",), "world": ("",)}, "reserved:"))]}
    found: Document = draw(selectors(LABELS, draw(st.sampled_from(("", "k8s:", "any:")))))
    if shape == 2:
        where: Document = {"matchLabels": {f"k8s:{POD_NAMESPACE}": draw(st.sampled_from(NAMESPACES))}}
        return merged(found, where)
    if shape == 3:
        found = merged(found, draw(selectors({POD_NAMESPACE: NAMESPACES}, "k8s:")))
    elif shape == 4:
        prefix = draw(st.sampled_from(("", "k8s:"))) + "io.cilium.k8s.namespace.labels."
        found = merged(found, draw(selectors(NAMESPACE_LABELS, prefix)))
    elif shape == 5:
        return merged(found, {"matchLabels": {SERVICE_ACCOUNT: "robot", CLUSTER: "default"}})
    return found


@st.composite
def clusterwide_subjects(draw: st.DrawFn) -> Document:
    """Pods of all namespaces, by what there is to say of them."""
    found: Document = draw(selectors(LABELS, draw(st.sampled_from(("", "k8s:")))))
    shape = draw(st.integers(0, 4))
    if shape == 0:
        return merged(found, draw(selectors({POD_NAMESPACE: NAMESPACES}, "k8s:")))
    if shape == 1:
        return merged(found, draw(selectors(NAMESPACE_LABELS, "io.cilium.k8s.namespace.labels.")))
    if shape == 2:
        return merged(found, {"matchExpressions": [{"key": SERVICE_ACCOUNT, "operator": "Exists"}]})
    return found


@st.composite
def cidrs(draw: st.DrawFn, *, excepts: bool) -> tuple[str, list[str]]:
    """A prefix, and some within it to be left out."""
    cidr = draw(st.sampled_from(CIDRS))
    if not excepts:
        return cidr, []
    there = ip_network(cidr)
    inside = [
        text
        for text in dict.fromkeys(CIDRS)
        if text != cidr and ip_network(text).version == there.version and ip_network(text).subnet_of(there)  # type: ignore[arg-type]
    ]
    if not inside:
        return cidr, []
    return cidr, draw(st.lists(st.sampled_from(inside), max_size=2, unique=True))


priorities = st.sampled_from((0, 1, 1, 7, 1000))
numbers = st.sampled_from((53, 80, 81, 83, 443))
protocols = st.sampled_from(("TCP", "UDP", "SCTP"))


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int]:
    first = draw(numbers)
    return first, draw(st.sampled_from((first, first + 1, first + 6, 65535)))


def maybe(draw: st.DrawFn, chance: int = 2) -> bool:
    return draw(st.integers(0, chance - 1)) == 0


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
    return _document(draw, "networking.k8s.io/v1", "NetworkPolicy", spec, namespaced=True)


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
    found = _document(draw, "policy.networking.k8s.io/v1alpha1", kind, spec)
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
    found = _document(draw, "cilium.io/v2", kind, draw(cilium_specs(namespaced)), namespaced=namespaced)
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
    return _document(draw, "fimbria.io/v1", "Policy", spec, namespaced=namespaced, audit=False)


@st.composite
def cidr_groups(draw: st.DrawFn) -> Document:
    members = st.lists(st.sampled_from(CIDRS), min_size=1, max_size=3, unique=True)
    return {
        "apiVersion": draw(st.sampled_from(("cilium.io/v2", "cilium.io/v2alpha1"))),
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": draw(st.sampled_from(GROUPS))},
        "spec": {"externalCIDRs": draw(members)},
    }


def _document(
    draw: st.DrawFn, version: str, kind: str, spec: Document, *, namespaced: bool = False, audit: bool = True
) -> Document:
    metadata: Document = {"name": draw(st.sampled_from(NAMES))}
    if namespaced:
        metadata["namespace"] = draw(st.sampled_from(NAMESPACES))
    if audit and maybe(draw, 5):
        metadata["annotations"] = {"fimbria.io/audit": draw(st.sampled_from(("true", "true", "false")))}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


# What worlds are made of: kinds that have much to do with each other meet more often than all of them do.
KINDS: dict[str, st.SearchStrategy[Document]] = {
    "kubernetes": st.one_of(network_policies(), network_policies(), admin_policies()),
    "cilium": st.one_of(cilium_policies(), cilium_policies(), cidr_groups()),
    "administrators": st.one_of(admin_policies(), own_policies()),
    "all": st.one_of(network_policies(), admin_policies(), cilium_policies(), own_policies(), cidr_groups()),
}


def key_of(document: Document) -> tuple[str, str, str]:
    """(kind, namespace, name)."""
    head = document["metadata"]
    return document["kind"], head.get("namespace", ""), head["name"]


def reordered(document: Document, priority: int | None) -> Document:
    """A policy of a tier with an order, with this priority or else with its rules turned round."""
    spec = dict(document["spec"])
    if priority is None:
        for key in ("ingress", "egress", "rules"):
            if key in spec:
                spec[key] = list(reversed(spec[key]))
    elif document["kind"] != "BaselineAdminNetworkPolicy":
        spec["priority"] = priority
    return {**document, "spec": spec}


def has_order(document: Document) -> bool:
    spec = document.get("spec", {})
    return "subject" in spec or spec.get("tier", "normal") != "normal"


def unlike(bundle: Sequence[Document]) -> list[Document]:
    """The documents with each name once: a bundle says one thing about a policy."""
    return list({key_of(document): document for document in bundle}.values())


def bundles(documents: st.SearchStrategy[Document]) -> st.SearchStrategy[list[Document]]:
    return st.lists(documents, min_size=1, max_size=3).map(unlike)


# -- clusters and changes


@st.composite
def pods(draw: st.DrawFn, slot: str) -> Pod:
    namespace, _, name = slot.partition("/")
    ports = [
        DeclaredPort(draw(st.sampled_from(PORT_NAMES)), draw(st.sampled_from(("TCP", "UDP"))), number)
        for number in draw(st.lists(st.sampled_from((53, 80, 82)), max_size=2, unique=True))
    ]
    return Pod(
        namespace,
        name,
        draw(chosen(LABELS)),
        tuple(sorted({(port.name, port.protocol): port for port in ports}.values())),
        SLOTS[slot],
        draw(st.sampled_from(ACCOUNTS)),
    )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    cluster = Cluster(
        namespaces={name: draw(chosen(NAMESPACE_LABELS)) for name in NAMESPACES},
        node_labels=draw(chosen(NODE_LABELS)),
        addresses=reserved_addresses(),
    )
    for slot in SLOTS:
        if not maybe(draw, 4):
            cluster.put(draw(pods(slot)))
    return cluster


slots = st.sampled_from(sorted(SLOTS))


def steps(documents: st.SearchStrategy[Document]) -> st.SearchStrategy[Step]:
    """Changes, the larger part of them of policies."""
    bundle = bundles(documents)
    return st.one_of(
        # Documents to apply together.
        st.builds(Step, st.just("apply"), value=bundle),
        st.builds(Step, st.just("apply"), value=bundle),
        # A policy that there is, by its place among those with an order, with its rules in another one: its
        # priority, or None to turn them round.
        st.builds(Step, st.just("reorder"), value=st.tuples(st.integers(0, 3), priorities | st.none())),
        # A policy that there is, by its place in the list, to be deleted.
        st.builds(Step, st.just("delete"), value=st.integers(0, 9)),
        # A pod as it comes, or as it is from now on.
        slots.flatmap(lambda slot: st.builds(Step, st.just("pod"), st.just(slot), pods(slot))),
        st.builds(Step, st.just("pod gone"), slots),
        st.builds(Step, st.just("namespace"), st.sampled_from(NAMESPACES), chosen(NAMESPACE_LABELS)),
        # Identities that nobody has any more go.
        st.builds(Step, st.just("forget")),
    )
