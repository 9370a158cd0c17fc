# SPDX-License-Identifier: Apache-2.0
"""AdminNetworkPolicy and BaselineAdminNetworkPolicy (policy.networking.k8s.io/v1alpha1) to the rule model.

Their rules have an order: of all rules that match, the one of the lowest priority decides, and within a
policy the one that stands first. They never make a subject refuse what no rule mentions. The checks are those
of the custom resource definitions.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.policy.cidr_fields import read_prefix
from services.policy.fields import Node
from services.policy.kubernetes import PROTOCOLS, read_namespaces
from services.policy.label_selector import KeyStyle, read_selector
from services.policy.names import port_name_problem
from services.policy.rules import (
    MAX_PORT,
    CidrPeer,
    Direction,
    Peer,
    PortMatch,
    PortName,
    PortRange,
    Protocol,
    Rule,
    RuleSpec,
)
from services.policy.selector import Selector

MAX_PRIORITY = 1000
_MAX_ITEMS = 100
_MAX_NETWORKS = 25
_MAX_NAME = 100
_ORDER_BITS = 16
_ACTIONS = {"Allow": (False, False), "Deny": (True, False), "Pass": (False, True)}
_LATER_PEERS = {
    "nodes": "node peers are not supported yet; leave the peer out",
    "domainNames": "DNS name peers are not supported yet; leave the peer out",
}


def rule_order(priority: int, index: int) -> int:
    """Where a rule stands within its tier: by its policy's priority, then by its place among the policy's
    rules of its direction.
    """
    return priority << _ORDER_BITS | index


def read_admin_spec(spec: Node, *, baseline: bool) -> tuple[RuleSpec, int] | None:
    """The rules of a `spec` and its priority (0 for the baseline, which has none); None after violations."""
    sections = ("ingress", "egress")
    if not spec.only(("subject", *sections) if baseline else ("priority", "subject", *sections)):
        return None
    priority: int | None = 0
    if not baseline:
        node = spec.required("priority", f"a number from 0 to {MAX_PRIORITY}, the lowest first")
        priority = node.integer(0, MAX_PRIORITY, "a priority") if node is not None else None
    subject_node = spec.required("subject", "an object with namespaces or pods")
    subject = None
    if subject_node is not None and subject_node.only(("namespaces", "pods")):
        subject = _pods(subject_node)
    rules: list[Rule] = []
    for direction in Direction:
        section = spec.child(sections[direction])
        items = section.elements(0, _MAX_ITEMS, "rules") if section is not None else []
        for index, item in enumerate(items):
            rule = _rule(item, direction, baseline, rule_order(priority or 0, index))
            if rule is not None:
                rules.append(rule)
    if subject is None or priority is None:
        return None
    return RuleSpec(subject, tuple(rules), (False, False), spec.path), priority


def _rule(item: Node, direction: Direction, baseline: bool, order: int) -> Rule | None:
    key = "from" if direction is Direction.INGRESS else "to"
    if not item.only(("name", "action", key, "ports")):
        return None
    name = item.child("name")
    if name is not None and len(name.text("a name") or "") > _MAX_NAME:
        name.wrong(f"a name of at most {_MAX_NAME} characters")
    actions = {k: v for k, v in _ACTIONS.items() if not (baseline and k == "Pass")}
    expected = f"one of {', '.join(actions)}"
    action_node = item.required("action", expected)
    action = action_node.choice(actions, expected) if action_node is not None else None
    peers_node = item.required(key, "a list with at least one peer")
    peer_nodes = peers_node.elements(1, _MAX_ITEMS, "peers") if peers_node is not None else []
    peers = [peer for node in peer_nodes for peer in _peers(node, direction)]
    ports_node = item.child("ports")
    port_nodes = ports_node.elements(1, _MAX_ITEMS, "ports") if ports_node is not None else []
    ports: list[PortMatch] = []
    for node in port_nodes:
        match = _port(node)
        if isinstance(match, PortName) and any(isinstance(peer, CidrPeer) for peer in peers):
            node.wrong("no named port beside networks, which declare none; use two rules")
        elif match is not None:
            ports.append(match)
    if action is None:
        return None
    deny, passes = action
    return Rule(
        direction,
        deny,
        tuple(dict.fromkeys(peers)),
        tuple(dict.fromkeys(ports)),
        item.path,
        passes=passes,
        order=order,
    )


def _pods(node: Node) -> Selector | None:
    """The pods of an object with either `namespaces` or `pods`."""
    chosen = node.one_of(("namespaces", "pods"))
    if chosen is None:
        return None
    key, found = chosen
    if key == "namespaces":
        return read_namespaces(found)
    keys = ("namespaceSelector", "podSelector")
    if not found.only(keys):
        return None
    where_node, pods_node = (found.required(each, "a label selector ({} for all)") for each in keys)
    where = read_namespaces(where_node) if where_node is not None else None
    pods = read_selector(pods_node, KeyStyle.POD) if pods_node is not None else None
    return where.and_(*pods.requirements) if where is not None and pods is not None else None


def _peers(item: Node, direction: Direction) -> Iterator[Peer]:
    if direction is Direction.INGRESS:
        if item.only(("namespaces", "pods")) and (selector := _pods(item)) is not None:
            yield selector
        return
    if not item.only(("namespaces", "pods", "networks"), _LATER_PEERS):
        return
    chosen = item.one_of(("namespaces", "pods", "networks", *_LATER_PEERS))
    if chosen is None or chosen[0] in _LATER_PEERS:
        return
    if chosen[0] != "networks":
        if (selector := _pods(item)) is not None:
            yield selector
        return
    seen: set[str] = set()
    for node in chosen[1].elements(1, _MAX_NETWORKS, "networks"):
        prefix = read_prefix(node)
        if prefix is not None and prefix in seen:
            node.wrong("each network once")
        elif prefix is not None:
            seen.add(prefix)
            yield CidrPeer(prefix, by_address=True)


def _port(item: Node) -> PortMatch | None:
    kinds = ("portNumber", "portRange", "namedPort")
    if not item.only(kinds):
        return None
    chosen = item.one_of(kinds)
    if chosen is None:
        return None
    kind, node = chosen
    if kind == "namedPort":
        name = node.text("a port name")
        if name is not None and (problem := port_name_problem(name, lower_case=True)):
            node.wrong(problem)
            return None
        return PortName(Protocol.ANY, name) if name is not None else None
    keys = ("port",) if kind == "portNumber" else ("start", "end")
    if not node.only(("protocol", *keys)):
        return None
    protocol: Protocol | None = Protocol.TCP
    if (protocol_node := node.child("protocol")) is not None:
        protocol = protocol_node.choice(PROTOCOLS, "TCP, UDP or SCTP")
    numbers: list[int | None] = []
    for key in keys:
        number_node = node.required(key, "a port from 1 to 65535")
        numbers.append(number_node.integer(1, MAX_PORT, "a port") if number_node is not None else None)
    first, last = numbers[0], numbers[-1]
    if protocol is None or first is None or last is None:
        return None
    if kind == "portRange" and first >= last:
        node.wrong("a start below the end")
        return None
    return PortRange(protocol, first, last)
