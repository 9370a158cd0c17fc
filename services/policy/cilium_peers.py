# SPDX-License-Identifier: Apache-2.0
"""The peers of a Cilium rule: endpoints and entities."""

from __future__ import annotations

from services.policy.fields import Node
from services.policy.label_selector import KeyStyle, read_selector
from services.policy.names import RESERVED_NAMES
from services.policy.rules import Direction
from services.policy.selector import (
    ANY_SOURCE,
    EVERYTHING,
    K8S,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    RESERVED,
    Selector,
    absent,
    equals,
    exists,
)

# `cluster` is whatever is not outside of it. Cilium lists its members; everything that is not the world
# (identities of CIDRs carry reserved:world too) is the same set, and stays so when a reserved identity is
# added.
_CLUSTER = Selector((absent(RESERVED, "world"),))
_ENTITIES: dict[str, Selector | None] = {
    "all": EVERYTHING,
    "cluster": _CLUSTER,
    "none": None,
    **{name: Selector((exists(RESERVED, name),)) for name in RESERVED_NAMES},
}

_LATER = {
    Direction.INGRESS: {
        "fromCIDR": "CIDR peers are",
        "fromCIDRSet": "CIDR peers are",
        "fromGroups": "cloud provider groups are",
        "fromNodes": "node peers are",
        "fromRequires": "fromRequires is",
        "icmps": "ICMP rules are",
        "authentication": "mutual authentication is",
    },
    Direction.EGRESS: {
        "toCIDR": "CIDR peers are",
        "toCIDRSet": "CIDR peers are",
        "toFQDNs": "DNS name peers are",
        "toServices": "service peers are",
        "toGroups": "cloud provider groups are",
        "toNodes": "node peers are",
        "toRequires": "toRequires is",
        "icmps": "ICMP rules are",
        "authentication": "mutual authentication is",
    },
}
_LATER_REASONS = {
    direction: {key: f"{what} not supported yet; leave the field out" for key, what in fields.items()}
    for direction, fields in _LATER.items()
}


def read_peers(
    item: Node, direction: Direction, deny: bool, namespace: str, matches_init: bool
) -> tuple[Selector, ...]:
    """The peers of one rule; nothing when it matches nobody, or after violations."""
    side = "from" if direction is Direction.INGRESS else "to"
    keys = (f"{side}Endpoints", f"{side}Entities")
    later = dict(_LATER_REASONS[direction])
    if deny:
        for key in ("authentication", "toFQDNs"):
            later.pop(key, None)
    if not item.only((*keys, "toPorts"), later):
        return ()
    endpoints, entities = (item.child(key) for key in keys)
    if endpoints is None and entities is None:
        # Ports alone mean every peer; nothing at all means nobody.
        ports = item.child("toPorts")
        return (EVERYTHING,) if ports is not None and ports.value else ()
    if any(node is not None and node.value == [] for node in (endpoints, entities)):
        return ()
    if endpoints is not None and entities is not None:
        item.report.add(
            entities.path,
            f"got {keys[1]} beside {keys[0]}, expected one kind of peer in a rule; use two rules",
        )
        return ()
    return (
        *(_endpoints(endpoints, namespace, matches_init) if endpoints is not None else ()),
        *(_entities(entities) if entities is not None else ()),
    )


def _endpoints(node: Node, namespace: str, matches_init: bool) -> tuple[Selector, ...]:
    found = []
    for item in node.items():
        selector = read_selector(item, KeyStyle.CILIUM)
        if selector is not None:
            found.append(_confined(selector, namespace, matches_init))
    return tuple(dict.fromkeys(found))


def _confined(selector: Selector, namespace: str, matches_init: bool) -> Selector:
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


def _entities(node: Node) -> tuple[Selector, ...]:
    found = []
    for item in node.items():
        name = item.value if isinstance(item.value, str) else None
        if name is None or name not in _ENTITIES:
            item.wrong(f"an entity: {', '.join(_ENTITIES)}")
            continue
        selector = _ENTITIES[name]
        if selector is not None:
            found.append(selector)
    return tuple(dict.fromkeys(found))
