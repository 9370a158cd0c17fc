# SPDX-License-Identifier: Apache-2.0
"""Kubernetes NetworkPolicy (networking.k8s.io/v1) to the rule model.

What is easily got wrong: a peer list that is missing or empty means every peer, the world included; a port
list that is missing or empty means every port; a rule list that is missing or empty allows nothing;
`policyTypes` defaults to Ingress, and Egress when there are egress rules; rules of a direction that
`policyTypes` leaves out have no effect.
"""

from __future__ import annotations

from services.policy.cidr_fields import read_cidr_peer
from services.policy.fields import Node
from services.policy.label_selector import KeyStyle, read_selector
from services.policy.names import port_name_problem
from services.policy.rules import (
    MAX_PORT,
    Direction,
    Peer,
    PortMatch,
    PortName,
    PortRange,
    Protocol,
    Rule,
    RuleSpec,
)
from services.policy.selector import EVERYTHING, K8S, NAMESPACE_KEY, Selector, equals, exists

PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
_TYPES = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
_PEERS = {Direction.INGRESS: "from", Direction.EGRESS: "to"}


def read_network_policy(spec: Node, namespace: str) -> RuleSpec | None:
    """The rules of a NetworkPolicy's `spec`; None after violations."""
    if not spec.only(("podSelector", "policyTypes", "ingress", "egress")):
        return None
    pods = spec.child("podSelector")
    selected: Selector | None = EVERYTHING if pods is None else read_selector(pods, KeyStyle.POD)
    types = _policy_types(spec)
    rules = [rule for direction in Direction for rule in _rules(spec, direction, namespace)]
    if selected is None:
        return None
    return RuleSpec(
        subject=selected.and_(equals(K8S, NAMESPACE_KEY, namespace)),
        rules=tuple(rule for rule in rules if rule.direction in types),
        default_deny=(Direction.INGRESS in types, Direction.EGRESS in types),
        path=spec.path,
    )


def _policy_types(spec: Node) -> frozenset[Direction]:
    node = spec.child("policyTypes")
    found: set[Direction] = set()
    if node is not None:
        for item in node.items():
            direction = _TYPES.get(item.value) if isinstance(item.value, str) else None
            if direction is None:
                item.wrong("Ingress or Egress")
            elif direction in found:
                item.wrong("each policy type once")
            else:
                found.add(direction)
        if node.value != []:
            return frozenset(found)
    egress = spec.child("egress")
    return frozenset(Direction if egress is not None and egress.value else (Direction.INGRESS,))


def _rules(spec: Node, direction: Direction, namespace: str) -> list[Rule]:
    node = spec.child(direction.name.lower())
    if node is None:
        return []
    rules = []
    key = _PEERS[direction]
    for item in node.items():
        if not item.only((key, "ports")):
            continue
        rules.append(
            Rule(
                direction=direction,
                deny=False,
                peers=_peers(item, key, namespace),
                ports=_ports(item),
                path=item.path,
            )
        )
    return rules


def _peers(rule: Node, key: str, namespace: str) -> tuple[Peer, ...]:
    node = rule.child(key)
    if node is None or node.value == []:
        return (EVERYTHING,)
    peers = [_peer(item, namespace) for item in node.items()]
    return tuple(dict.fromkeys(peer for peer in peers if peer is not None))


def _peer(item: Node, namespace: str) -> Peer | None:
    known = ("podSelector", "namespaceSelector", "ipBlock")
    if not item.only(known):
        return None
    pods, namespaces, block = (item.child(key) for key in known)
    if block is not None:
        if pods is not None or namespaces is not None:
            block.report.add(block.path, "got ipBlock beside a selector, expected one of them; use two peers")
            return None
        # Whoever has such an address, pods and nodes included.
        return read_cidr_peer(block, by_address=True) if block.only(("cidr", "except")) else None
    if pods is None and namespaces is None:
        # Fields that are not known have been reported already.
        if all(value is None for value in (item.mapping() or {}).values()):
            item.wrong("a peer with podSelector, namespaceSelector or both, or ipBlock")
        return None
    chosen = EVERYTHING if pods is None else read_selector(pods, KeyStyle.POD)
    if namespaces is None:
        where: Selector | None = Selector((equals(K8S, NAMESPACE_KEY, namespace),))
    else:
        where = read_namespaces(namespaces)
    if chosen is None or where is None:
        return None
    return where.and_(*chosen.requirements)


def read_namespaces(node: Node) -> Selector | None:
    """The pods of the namespaces that a label selector matches."""
    selector = read_selector(node, KeyStyle.NAMESPACE)
    # NotIn and DoesNotExist hold for whatever has no namespace at all, and only pods are meant.
    return selector.and_(exists(K8S, NAMESPACE_KEY)) if selector is not None else None


def _ports(rule: Node) -> tuple[PortMatch, ...]:
    node = rule.child("ports")
    if node is None:
        return ()
    ports = [_port(item) for item in node.items()]
    return tuple(dict.fromkeys(port for port in ports if port is not None))


def _port(item: Node) -> PortMatch | None:
    if not item.only(("protocol", "port", "endPort")):
        return None
    protocol: Protocol | None = Protocol.TCP
    protocol_node = item.child("protocol")
    if protocol_node is not None:
        value = protocol_node.value
        protocol = PROTOCOLS.get(value) if isinstance(value, str) else None
        if protocol is None:
            protocol_node.wrong("TCP, UDP or SCTP")
    port_node, end_node = item.child("port"), item.child("endPort")
    if port_node is None:
        if end_node is not None:
            end_node.wrong("no endPort without a port")
            return None
        return PortRange(protocol) if protocol is not None else None
    if isinstance(port_node.value, str):
        if problem := port_name_problem(port_node.value, lower_case=True):
            port_node.wrong(problem)
            return None
        if end_node is not None:
            end_node.wrong(f"no endPort with the named port {port_node.value}")
            return None
        return PortName(protocol, port_node.value) if protocol is not None else None
    first = port_node.integer(1, MAX_PORT, "a port name or a port")
    if first is None:
        return None
    last: int | None = first
    if end_node is not None:
        last = end_node.integer(first, MAX_PORT, "the last port of a range, not below port")
    return PortRange(protocol, first, last) if protocol is not None and last is not None else None
