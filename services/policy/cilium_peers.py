# SPDX-License-Identifier: Apache-2.0
"""The peers of a Cilium rule: endpoints, entities, CIDRs and CIDR groups.

A rule names peers of one kind only; Cilium's own validation refuses several, with the same field for each.
A list of peers that is there but empty matches nobody, whatever else the rule says.
"""

from __future__ import annotations

from services.policy.cidr_fields import read_cidr_peer, read_excepts, read_prefix
from services.policy.cilium_ports import has_ports
from services.policy.fields import Node
from services.policy.label_selector import KeyStyle, read_selector
from services.policy.names import RESERVED_NAMES, WORLD_FAMILIES, object_name_problem
from services.policy.rules import CidrGroupPeer, CidrPeer, Direction, Peer
from services.policy.selector import (
    ANY_SOURCE,
    EVERYTHING,
    K8S,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    RESERVED,
    Operator,
    Selector,
    absent,
    equals,
    exists,
)

# `cluster` is whatever is not outside of it. Cilium lists its members; everything that is not the world
# (identities of CIDRs carry reserved:world too) is the same set, and stays so when a reserved identity is
# added. The world of one address family is the prefix that holds all of its addresses.
_CLUSTER = Selector((absent(RESERVED, "world"),))
_ENTITIES: dict[str, Peer | None] = {
    "all": EVERYTHING,
    "cluster": _CLUSTER,
    "none": None,
    **{name: Selector((exists(RESERVED, name),)) for name in RESERVED_NAMES},
    **{name: CidrPeer(cidr) for name, cidr in WORLD_FAMILIES.items()},
}

_KINDS = ("Endpoints", "Entities", "CIDR", "CIDRSet")
_LATER = {
    Direction.INGRESS: {
        "fromGroups": "cloud provider groups are",
        "fromNodes": "node peers are",
        "fromRequires": "fromRequires is",
        "authentication": "mutual authentication is",
    },
    Direction.EGRESS: {
        "toFQDNs": "DNS name peers are",
        "toServices": "service peers are",
        "toGroups": "cloud provider groups are",
        "toNodes": "node peers are",
        "toRequires": "toRequires is",
        "authentication": "mutual authentication is",
    },
}
_LATER_REASONS = {
    direction: {key: f"{what} not supported yet; leave the field out" for key, what in fields.items()}
    for direction, fields in _LATER.items()
}


def read_peers(
    item: Node, direction: Direction, deny: bool, namespace: str, matches_init: bool
) -> tuple[Peer, ...]:
    """The peers of one rule; nothing when it matches nobody, or after violations."""
    side = "from" if direction is Direction.INGRESS else "to"
    keys = tuple(side + kind for kind in _KINDS)
    later = dict(_LATER_REASONS[direction])
    if deny:
        for key in ("authentication", "toFQDNs"):
            later.pop(key, None)
    if not item.only((*keys, "toPorts", "icmps"), later):
        return ()
    given = [(key, node) for key in keys if (node := item.child(key)) is not None]
    if not given:
        # Ports alone mean every peer; nothing at all means nobody.
        return (EVERYTHING,) if has_ports(item) else ()
    filled = [key for key, node in given if node.value != []]
    peers: list[Peer] = []
    for key, node in given:
        if len(filled) > 1 and key in filled[1:]:
            expected = "expected one kind of peer in a rule; use two rules"
            item.report.add(node.path, f"got {key} beside {filled[0]}, {expected}")
        elif key.endswith("Endpoints"):
            peers.extend(_endpoints(node, namespace, matches_init))
        elif key.endswith("Entities"):
            peers.extend(_entities(node))
        elif key.endswith("CIDRSet"):
            peers.extend(_cidr_set(node))
        else:
            prefixes = [read_prefix(each, bare_address=True) for each in node.items()]
            peers.extend(CidrPeer(prefix) for prefix in prefixes if prefix is not None)
    return tuple(dict.fromkeys(peers)) if len(filled) == len(given) else ()


def _endpoints(node: Node, namespace: str, matches_init: bool) -> list[Peer]:
    selectors = [read_selector(item, KeyStyle.CILIUM) for item in node.items()]
    return [confine_peer(found, namespace, matches_init) for found in selectors if found is not None]


def confine_peer(selector: Selector, namespace: str, matches_init: bool) -> Selector:
    """Keep a peer where Cilium keeps it: in the policy's namespace, or among pods for a cluster-wide
    policy.
    """
    if any(r.source == RESERVED for r in selector.requirements):
        return selector
    keys = {r.key for r in selector.requirements if r.source in (K8S, ANY_SOURCE)}
    if NAMESPACE_KEY in keys:
        return selector
    if not namespace:
        return selector if matches_init else selector.and_(exists(K8S, NAMESPACE_KEY))
    if any(key.startswith(NAMESPACE_LABELS_PREFIX) for key in keys):
        return selector
    return selector.and_(equals(K8S, NAMESPACE_KEY, namespace))


def read_subject(node: Node, namespace: str) -> Selector | None:
    """The pods that a policy is about: of its own namespace, if it has one. None after violations."""
    selector = read_selector(node, KeyStyle.CILIUM)
    if selector is None or not namespace:
        return selector
    for requirement in selector.requirements:
        if requirement.key != NAMESPACE_KEY or requirement.source not in (K8S, ANY_SOURCE):
            continue
        if requirement.operator is not Operator.IN or requirement.values != (namespace,):
            node.report.add(
                node.path,
                f"got {requirement}, expected no other namespace than the policy's own, {namespace}; "
                "use a cluster-wide policy to select pods elsewhere",
            )
            return None
    return selector.and_(equals(K8S, NAMESPACE_KEY, namespace))


def _entities(node: Node) -> list[Peer]:
    return [peer for item in node.items() if (peer := read_entity(item)) is not None]


def read_entity(item: Node) -> Peer | None:
    """Whom an entity's name stands for; None for nobody, and after a violation."""
    name = item.value if isinstance(item.value, str) else None
    if name is None or name not in _ENTITIES:
        item.wrong(f"an entity: {', '.join(_ENTITIES)}")
        return None
    return _ENTITIES[name]


def _cidr_set(node: Node) -> list[Peer]:
    found: list[Peer] = []
    later = {"cidrGroupSelector": "CIDR groups by their labels are not supported yet; use cidrGroupRef"}
    for item in node.items():
        if not item.only(("cidr", "cidrGroupRef", "except"), later):
            continue
        chosen = item.one_of(("cidr", "cidrGroupRef", "cidrGroupSelector"))
        if chosen is None or chosen[0] == "cidrGroupSelector":
            continue
        peer: Peer | None
        if chosen[0] == "cidr":
            peer = read_cidr_peer(item, by_address=False, strict=False)
        else:
            name, excepts = read_group_name(chosen[1]), read_excepts(item, None)
            peer = CidrGroupPeer(name, excepts) if name is not None and excepts is not None else None
        if peer is not None:
            found.append(peer)
    return found


def read_group_name(node: Node) -> str | None:
    """The name of a CiliumCIDRGroup."""
    name = node.text("the name of a CiliumCIDRGroup")
    if name is not None and (problem := object_name_problem(name)):
        node.wrong(problem)
        return None
    return name
