# SPDX-License-Identifier: Apache-2.0
"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2) to the rule model.

What differs from Kubernetes: a rule without peers and without ports matches nobody (`ingress: [{}]` is
default deny), a peer list that is there but empty matches nobody, a rule with ports only matches every
peer, the world included; peers stay in the policy's namespace unless they name a namespace; without
`enableDefaultDeny` a direction is default deny when it has a rule, denying ones included. A cluster-wide
policy with `nodeSelector` is about nodes (the host firewall), which `endpointSelector` never selects.
"""

from __future__ import annotations

from services.policy.cilium_peers import read_peers
from services.policy.fields import Node
from services.policy.label_selector import KeyStyle, read_selector
from services.policy.names import port_name_problem
from services.policy.rules import (
    MAX_PORT,
    PORT_PROTOCOLS,
    Direction,
    PortMatch,
    PortName,
    PortRange,
    Protocol,
    Rule,
    RuleSpec,
)
from services.policy.selector import (
    ANY_SOURCE,
    K8S,
    NAMESPACE_KEY,
    RESERVED,
    Operator,
    Selector,
    equals,
)

_PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP, "ANY": Protocol.ANY}
_LATER_PROTOCOLS = ("ICMP", "ICMPv6", "ICMPV6", "VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH")
_MAX_PORTS = 40
_SECTIONS = (
    (Direction.INGRESS, False, "ingress"),
    (Direction.INGRESS, True, "ingressDeny"),
    (Direction.EGRESS, False, "egress"),
    (Direction.EGRESS, True, "egressDeny"),
)
_SPEC_FIELDS = (
    "endpointSelector",
    "nodeSelector",
    "ingress",
    "ingressDeny",
    "egress",
    "egressDeny",
    "enableDefaultDeny",
    "description",
    "labels",
)
_LATER_SPEC = {
    "log": "policy log settings are not supported yet; leave the field out",
}
_LATER_PORT_RULE = {
    key: f"{what} not supported yet; leave the field out"
    for key, what in {
        "rules": "L7 rules are",
        "terminatingTLS": "TLS termination is",
        "originatingTLS": "TLS origination is",
        "serverNames": "TLS server names are",
        "listener": "Envoy listeners are",
    }.items()
}


def read_cilium_spec(spec: Node, namespace: str) -> RuleSpec | None:
    """The rules of one `spec`; None after violations. `namespace` is empty for a cluster-wide policy."""
    if not spec.only(_SPEC_FIELDS, _LATER_SPEC):
        return None
    _check_decoration(spec)
    nodes = spec.child("nodeSelector")
    subject = _pods(spec, namespace) if nodes is None else _nodes(spec, nodes, namespace)
    matches_init = subject is not None and any(
        (r.source, r.key) == (RESERVED, "init") for r in subject.requirements
    )
    rules: list[Rule] = []
    counts = [0, 0]
    for direction, deny, key in _SECTIONS:
        section = spec.child(key)
        if section is None:
            continue
        for item in section.items():
            counts[direction] += 1
            peers = read_peers(item, direction, deny, namespace, matches_init)
            names = nodes is None or direction is Direction.EGRESS
            rules.append(Rule(direction, deny, peers, _to_ports(item, names), item.path))
    default_deny = _default_deny(spec, counts)
    if subject is None:
        return None
    return RuleSpec(subject, tuple(rules), default_deny, spec.path, nodes=nodes is not None)


def _check_decoration(spec: Node) -> None:
    """`description` and `labels` describe the policy and decide nothing: only their types are checked."""
    if (description := spec.child("description")) is not None:
        description.text("a description")
    if (labels := spec.child("labels")) is not None:
        for item in labels.items():
            item.mapping()


def _nodes(spec: Node, nodes: Node, namespace: str) -> Selector | None:
    if namespace:
        nodes.wrong("none in a CiliumNetworkPolicy: only a CiliumClusterwideNetworkPolicy selects nodes")
        return None
    if spec.child("endpointSelector") is not None:
        nodes.wrong("no nodeSelector beside endpointSelector; use two specs")
        return None
    return read_selector(nodes, KeyStyle.CILIUM)


def _pods(spec: Node, namespace: str) -> Selector | None:
    node = spec.child("endpointSelector")
    if node is None:
        what = "a label selector ({} selects every pod)"
        if not namespace:
            what += ", or nodeSelector ({} selects every node)"
        spec.report.add(spec.path_of("endpointSelector"), f"missing, expected {what}")
        return None
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
                "use a CiliumClusterwideNetworkPolicy to select pods elsewhere",
            )
            return None
    return selector.and_(equals(K8S, NAMESPACE_KEY, namespace))


def _default_deny(spec: Node, counts: list[int]) -> tuple[bool, bool]:
    chosen = [counts[direction] > 0 for direction in Direction]
    node = spec.child("enableDefaultDeny")
    if node is not None and node.only(("ingress", "egress")):
        for direction in Direction:
            flag = node.child(direction.name.lower())
            if flag is not None and (value := flag.boolean()) is not None:
                chosen[direction] = value
    return chosen[0], chosen[1]


def _to_ports(item: Node, names: bool) -> tuple[PortMatch, ...]:
    """The ports of a rule; `names`: whoever has them may declare them by name."""
    node = item.child("toPorts")
    if node is None:
        return ()
    found: list[PortMatch] = []
    for entry in node.items():
        if not entry.only(("ports",), _LATER_PORT_RULE):
            continue
        ports = entry.child("ports")
        if ports is None or ports.value == []:
            entry.report.add(
                entry.path_of("ports"),
                "empty, expected at least one port; leave toPorts out for every port",
            )
            continue
        if isinstance(ports.value, list) and len(ports.value) > _MAX_PORTS:
            ports.report.add(ports.path, f"got {len(ports.value)} ports, expected at most {_MAX_PORTS}")
            continue
        for port in ports.items():
            found.extend(_port(port, names))
    return tuple(dict.fromkeys(found))


def _port(item: Node, names: bool) -> tuple[PortMatch, ...]:
    if not item.only(("port", "endPort", "protocol")):
        return ()
    protocol = _protocol(item)
    node = item.required("port", 'a port as a string, e.g. "80"')
    text = node.text("a port") if node is not None else None
    if node is None or text is None:
        return ()
    end_node = item.child("endPort")
    if not (text.isascii() and text.isdigit()):
        if problem := port_name_problem(text, lower_case=False):
            node.wrong(problem)
            return ()
        if not names:
            node.wrong("a port from 1 to 65535: nodes declare no port names")
            return ()
        if end_node is not None and end_node.value != 0:
            end_node.wrong(f"no endPort with the named port {text}")
            return ()
        return () if protocol is None else (PortName(protocol, text.lower()),)
    first = int(text) if len(text) <= 5 else 0
    if not 1 <= first <= MAX_PORT:
        node.wrong("a port name or a port from 1 to 65535")
        return ()
    last: int | None = first
    if end_node is not None and end_node.value != 0:
        last = end_node.integer(first, MAX_PORT, "the last port of a range, not below port")
    if protocol is None or last is None:
        return ()
    protocols = PORT_PROTOCOLS if protocol is Protocol.ANY else (protocol,)
    return tuple(PortRange(one, first, last) for one in protocols)


def _protocol(item: Node) -> Protocol | None:
    node = item.child("protocol")
    if node is None:
        return Protocol.ANY
    value = node.value if isinstance(node.value, str) else None
    if value in _LATER_PROTOCOLS:
        node.refuse("this protocol is not supported yet in policies; expected TCP, UDP, SCTP or ANY")
        return None
    protocol = _PROTOCOLS.get(value) if value is not None else None
    if protocol is None:
        node.wrong("TCP, UDP, SCTP or ANY")
    return protocol
