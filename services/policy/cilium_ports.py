# SPDX-License-Identifier: Apache-2.0
"""`toPorts` and `icmps` of a Cilium rule."""

from __future__ import annotations

from services.policy.fields import Node
from services.policy.icmp_types import read_type
from services.policy.names import port_name_problem
from services.policy.rules import (
    MAX_PORT,
    PORT_PROTOCOLS,
    PortMatch,
    PortName,
    PortRange,
    Protocol,
)

_PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP, "ANY": Protocol.ANY}
_ICMP_PROTOCOLS = ("ICMP", "ICMPv6", "ICMPV6")
_LATER_PROTOCOLS = ("VRRP", "IGMP", "GRE", "IPIP", "IPV6", "IPv6", "ESP", "AH")
_FAMILIES = {"IPv4": Protocol.ICMP, "IPv6": Protocol.ICMPV6}
_MAX_PORTS = 40
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


def read_ports(item: Node, names: bool) -> tuple[PortMatch, ...]:
    """The ports and ICMP types of a rule; `names`: whoever has the ports may declare them by name."""
    ports, icmps = item.child("toPorts"), item.child("icmps")
    if ports is not None and icmps is not None and ports.value and icmps.value:
        icmps.report.add(
            icmps.path, "got icmps beside toPorts, expected one of them in a rule; use two rules"
        )
        return ()
    found: list[PortMatch] = []
    for entry in ports.items() if ports is not None else ():
        found.extend(_port_rule(entry, names))
    for entry in icmps.items() if icmps is not None else ():
        found.extend(_icmp_rule(entry))
    return tuple(dict.fromkeys(found))


def has_ports(item: Node) -> bool:
    """Whether the rule says anything about ports or ICMP types."""
    return any((node := item.child(key)) is not None and node.value for key in ("toPorts", "icmps"))


def _port_rule(entry: Node, names: bool) -> list[PortMatch]:
    if not entry.only(("ports",), _LATER_PORT_RULE):
        return []
    ports = _filled(entry, "ports", "at least one port; leave toPorts out for every port")
    if ports is None:
        return []
    return [match for port in ports.elements(0, _MAX_PORTS, "ports") for match in _port(port, names)]


def _icmp_rule(entry: Node) -> list[PortMatch]:
    if not entry.only(("fields",)):
        return []
    fields = _filled(entry, "fields", "at least one ICMP type; leave icmps out for every type")
    if fields is None:
        return []
    found: list[PortMatch] = []
    for item in fields.elements(0, _MAX_PORTS, "ICMP types"):
        if not item.only(("family", "type")):
            continue
        family = item.child("family")
        protocol = Protocol.ICMP if family is None else family.choice(_FAMILIES, "IPv4 or IPv6")
        node = item.required("type", "an ICMP type, by number or name")
        if protocol is None or node is None:
            continue
        number = read_type(node, protocol)
        if number is not None:
            found.append(PortRange(protocol, number, number))
    return found


def _filled(entry: Node, key: str, what: str) -> Node | None:
    node = entry.child(key)
    if node is None or node.value == []:
        entry.report.add(entry.path_of(key), f"empty, expected {what}")
        return None
    return node


def _port(item: Node, names: bool) -> tuple[PortMatch, ...]:
    if not item.only(("port", "endPort", "protocol")):
        return ()
    protocol = _protocol(item)
    node = item.required("port", 'a port as a string, e.g. "80"')
    text = node.text("a port") if node is not None else None
    if node is None or text is None:
        return ()
    end_node = item.child("endPort")
    if end_node is not None and end_node.value == 0 and end_node.value is not False:
        end_node = None
    if not (text.isascii() and text.isdigit()):
        if problem := port_name_problem(text, lower_case=False):
            node.wrong(problem)
            return ()
        if not names:
            node.wrong("a port from 1 to 65535: nodes declare no port names")
            return ()
        if end_node is not None:
            end_node.wrong(f"no endPort with the named port {text}")
            return ()
        return () if protocol is None else (PortName(protocol, text.lower()),)
    found = _range(node, text, end_node)
    if protocol is None or found is None:
        return ()
    protocols = PORT_PROTOCOLS if protocol is Protocol.ANY else (protocol,)
    return tuple(PortRange(one, *found) for one in protocols)


def _range(node: Node, text: str, end_node: Node | None) -> tuple[int, int] | None:
    """First and last port. The port 0 stands for all of them."""
    first = int(text) if len(text) <= 5 else MAX_PORT + 1
    if first > MAX_PORT:
        node.wrong("a port name, a port from 1 to 65535, or 0 for every port")
        return None
    # Cilium reads "010" as 8.
    if str(first) != text and not node.report.stored:
        node.wrong("a port number without leading zeros")
        return None
    if end_node is None:
        return (first, first) if first else (0, MAX_PORT)
    if not first:
        end_node.wrong("no endPort with the port 0, which is every port")
        return None
    last = end_node.integer(first, MAX_PORT, "the last port of a range, not below port")
    return (first, last) if last is not None else None


def _protocol(item: Node) -> Protocol | None:
    node = item.child("protocol")
    if node is None:
        return Protocol.ANY
    if node.value in _ICMP_PROTOCOLS:
        node.refuse("not supported in toPorts; use icmps with the type")
        return None
    if node.value in _LATER_PROTOCOLS:
        node.refuse("this protocol is not supported yet in policies; expected TCP, UDP, SCTP or ANY")
        return None
    return node.choice(_PROTOCOLS, "TCP, UDP, SCTP or ANY")
