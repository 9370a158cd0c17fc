# SPDX-License-Identifier: Apache-2.0
"""The service's own kind, Policy (fimbria.io/v1), to the rule model.

It says all that the other kinds say, in one form: a tier, a subject, and rules with a direction, an action,
peers and ports. Its `spec` has the fields of the gRPC message PolicyDefinition under their JSON names, which
is also how such messages are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.policy.admin import MAX_PRIORITY, rule_order
from services.policy.cidr_fields import read_cidr_peer
from services.policy.cilium_peers import confine_peer, read_entity, read_group_name, read_subject
from services.policy.fields import Chosen, Node
from services.policy.icmp_types import MAX_TYPE, TITLES, read_type
from services.policy.label_selector import KeyStyle, read_selector
from services.policy.names import port_name_problem
from services.policy.rules import (
    MAX_PORT,
    PORT_PROTOCOLS,
    CidrGroupPeer,
    Direction,
    Peer,
    PortMatch,
    PortName,
    PortRange,
    Protocol,
    Rule,
    RuleSpec,
    Tier,
)
from services.policy.selector import EVERYTHING, RESERVED, Selector

_FIELDS = ("tier", "priority", "audit", "pods", "nodes", "defaultDeny", "rules")
_TIERS = {"normal": Tier.NORMAL, "admin": Tier.ADMIN, "baseline": Tier.BASELINE}
_DIRECTIONS = {"ingress": Direction.INGRESS, "egress": Direction.EGRESS}
_ACTIONS = {"allow": (False, False), "deny": (True, False), "pass": (False, True)}
_PROTOCOLS = {
    "TCP": Protocol.TCP,
    "UDP": Protocol.UDP,
    "SCTP": Protocol.SCTP,
    "ANY": Protocol.ANY,
    "ICMP": Protocol.ICMP,
    "ICMPv6": Protocol.ICMPV6,
}
_MAX_RULES = 1000
_ENUMS = {"tier": "TIER_", "defaultDeny": "DIRECTION_", "direction": "DIRECTION_", "action": "ACTION_"}


@dataclass(frozen=True, slots=True)
class OwnSpec:
    """What the `spec` of a Policy says; `audit` is None when it is not given."""

    spec: RuleSpec
    tier: Tier
    priority: int
    audit: bool | None


def read_own_spec(spec: Node, namespace: str) -> OwnSpec | None:
    """None after violations. `namespace` is empty for a cluster-wide policy."""
    if not spec.only(_FIELDS):
        return None
    tier_node, audit_node = spec.child("tier"), spec.child("audit")
    tier = (
        Tier.NORMAL
        if tier_node is None
        else _enum(tier_node, "TIER_", {**_TIERS, "unspecified": Tier.NORMAL})
    )
    audit = audit_node.boolean() if audit_node is not None else None
    priority = _priority(spec, tier)
    nodes = spec.child("nodes")
    subject = _subject(spec, namespace)
    init = subject is not None and any((r.source, r.key) == (RESERVED, "init") for r in subject.requirements)
    rules: list[Rule] = []
    counts = [0, 0]
    section = spec.child("rules")
    for item in section.elements(0, _MAX_RULES, "rules") if section is not None else ():
        if not item.only(("direction", "action", "peers", "ports")):
            continue
        direction = _required_enum(item, "direction", "DIRECTION_", _DIRECTIONS)
        actions = {k: v for k, v in _ACTIONS.items() if k != "pass" or tier in (Tier.ADMIN, None)}
        hint = "" if "pass" in actions else "; pass is for the tier admin"
        action = _required_enum(item, "action", "ACTION_", actions, hint)
        peers = _peers(item, namespace, init)
        names = nodes is None or direction is Direction.EGRESS
        ports = _ports(item, names)
        if direction is None or action is None:
            continue
        order = 0 if tier is Tier.NORMAL else rule_order(priority or 0, counts[direction])
        counts[direction] += 1
        rules.append(Rule(direction, action[0], peers, ports, item.path, passes=action[1], order=order))
    default_deny = _default_deny(spec, tier)
    if subject is None or tier is None or priority is None:
        return None
    found = RuleSpec(subject, tuple(rules), default_deny, spec.path, nodes=nodes is not None)
    return OwnSpec(found, tier, priority, audit)


def document_of(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest that says the same as a PolicyDefinition in its JSON form, with enum values in short."""
    metadata = {key: definition[key] for key in ("name", "namespace") if definition.get(key)}
    spec = {key: value for key, value in definition.items() if key not in ("name", "namespace")}
    if spec.get("tier") == "TIER_UNSPECIFIED":
        del spec["tier"]
    return {"apiVersion": "fimbria.io/v1", "kind": "Policy", "metadata": metadata, "spec": _shortened(spec)}


def field_of(path: str) -> str:
    """The path in a PolicyDefinition of what has this path in its manifest."""
    for prefix in ("spec.", "metadata."):
        path = path.removeprefix(prefix)
    return path


def _shortened(spec: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: _short(key, value) for key, value in spec.items()}
    if isinstance(found.get("defaultDeny"), list):
        found["defaultDeny"] = [_short("defaultDeny", each) for each in found["defaultDeny"]]
    if isinstance(found.get("rules"), list):
        found["rules"] = [
            {key: _short(key, value) for key, value in rule.items()} if isinstance(rule, dict) else rule
            for rule in found["rules"]
        ]
    return found


def _short(key: str, value: Any) -> Any:
    """An enum value's name without what all of its enum begin with, in lower case."""
    prefix = _ENUMS.get(key)
    if prefix is None or not isinstance(value, str) or not value.startswith(prefix):
        return value
    return value.removeprefix(prefix).lower()


def _enum(node: Node, prefix: str, known: Mapping[str, Chosen], hint: str = "") -> Chosen | None:
    """A value by its short name or by that in the API."""
    names = [name for name in known if name != "unspecified"]
    both = {**known, **{prefix + name.upper(): value for name, value in known.items()}}
    return node.choice(both, f"one of {', '.join(names)}{hint}")


def _required_enum(
    item: Node, key: str, prefix: str, known: Mapping[str, Chosen], hint: str = ""
) -> Chosen | None:
    node = item.required(key, f"one of {', '.join(known)}")
    return _enum(node, prefix, known, hint) if node is not None else None


def _priority(spec: Node, tier: Tier | None) -> int | None:
    node = spec.child("priority")
    if node is None:
        return 0
    priority = node.integer(0, MAX_PRIORITY, "a priority")
    if priority and tier is Tier.NORMAL:
        node.wrong("no priority in the tier normal, where denying comes before allowing")
        return None
    return priority


def _subject(spec: Node, namespace: str) -> Selector | None:
    chosen = spec.one_of(("pods", "nodes"))
    if chosen is None:
        return None
    key, node = chosen
    if key == "pods":
        return read_subject(node, namespace)
    if namespace:
        node.wrong("none in a policy with a namespace: only a cluster-wide policy selects nodes")
        return None
    return read_selector(node, KeyStyle.CILIUM)


def _default_deny(spec: Node, tier: Tier | None) -> tuple[bool, bool]:
    node = spec.child("defaultDeny")
    if node is None:
        return False, False
    found: set[Direction] = set()
    for item in node.items():
        direction = _enum(item, "DIRECTION_", _DIRECTIONS)
        if direction in found:
            item.wrong("each direction once")
        elif direction is not None:
            found.add(direction)
    if node.value != [] and tier in (Tier.ADMIN, Tier.BASELINE):
        node.wrong("none in this tier: only policies of the tier normal deny by default")
    return Direction.INGRESS in found, Direction.EGRESS in found


def _peers(rule: Node, namespace: str, matches_init: bool) -> tuple[Peer, ...]:
    node = rule.child("peers")
    if node is None or node.value == []:
        return (EVERYTHING,)
    peers = [_peer(item, namespace, matches_init) for item in node.items()]
    return tuple(dict.fromkeys(peer for peer in peers if peer is not None))


def _peer(item: Node, namespace: str, matches_init: bool) -> Peer | None:
    kinds = ("pods", "entity", "cidr", "cidrGroup")
    if not item.only(kinds):
        return None
    chosen = item.one_of(kinds)
    if chosen is None:
        return None
    kind, node = chosen
    if kind == "pods":
        selector = read_selector(node, KeyStyle.CILIUM)
        return confine_peer(selector, namespace, matches_init) if selector is not None else None
    if kind == "entity":
        return read_entity(node)
    if kind == "cidrGroup":
        name = read_group_name(node)
        return CidrGroupPeer(name) if name is not None else None
    if not node.only(("cidr", "except", "byAddress")):
        return None
    flag = node.child("byAddress")
    by_address = flag.boolean() if flag is not None else False
    return read_cidr_peer(node, by_address=bool(by_address))


def _ports(rule: Node, names: bool) -> tuple[PortMatch, ...]:
    node = rule.child("ports")
    if node is None:
        return ()
    return tuple(dict.fromkeys(match for item in node.items() for match in _port(item, names)))


def _port(item: Node, names: bool) -> tuple[PortMatch, ...]:
    if not item.only(("protocol", "port", "endPort")):
        return ()
    expected = f"one of {', '.join(_PROTOCOLS)}"
    protocol_node = item.required("protocol", expected)
    protocol = protocol_node.choice(_PROTOCOLS, expected) if protocol_node is not None else None
    if protocol is None:
        return ()
    node, end_node = item.child("port"), item.child("endPort")
    if end_node is not None and end_node.value == 0 and end_node.value is not False:
        end_node = None
    if node is None:
        if end_node is not None:
            end_node.wrong("no endPort without a port")
            return ()
        return _ranges(protocol, 0, MAX_PORT)
    text = node.text("a port")
    if text is None:
        return ()
    if protocol in TITLES:
        first, highest = read_type(node, protocol), MAX_TYPE
    elif text.isascii() and text.isdigit():
        first, highest = _number(node, text), MAX_PORT
    else:
        return _named(node, text, protocol, end_node, names)
    if first is None:
        return ()
    last: int | None = first
    if end_node is not None:
        last = end_node.integer(first, highest, "the last of a range, not below port")
    return _ranges(protocol, first, last) if last is not None else ()


def _ranges(protocol: Protocol, first: int, last: int) -> tuple[PortRange, ...]:
    protocols = PORT_PROTOCOLS if protocol is Protocol.ANY else (protocol,)
    return tuple(PortRange(one, first, last) for one in protocols)


def _number(node: Node, text: str) -> int | None:
    number = int(text) if len(text) <= 5 else 0
    if 1 <= number <= MAX_PORT and str(number) == text:
        return number
    node.wrong("a port name or a port from 1 to 65535 without leading zeros; leave it out for every port")
    return None


def _named(
    node: Node, text: str, protocol: Protocol, end_node: Node | None, names: bool
) -> tuple[PortMatch, ...]:
    if problem := port_name_problem(text, lower_case=False):
        node.wrong(problem)
    elif not names:
        node.wrong("a port from 1 to 65535: nodes declare no port names")
    elif end_node is not None:
        end_node.wrong(f"no endPort with the named port {text}")
    else:
        return (PortName(protocol, text.lower()),)
    return ()
