# SPDX-License-Identifier: Apache-2.0
"""Rules and selectors in words, for people who list policies or ask for a verdict."""

from __future__ import annotations

from services.policy.icmp_types import TITLES, type_called
from services.policy.names import WORLD_FAMILIES
from services.policy.rules import (
    MAX_PORT,
    CidrGroupPeer,
    CidrPeer,
    Direction,
    Peer,
    Policy,
    PortMatch,
    PortRange,
    Protocol,
    Rule,
    RuleSpec,
)
from services.policy.selector import (
    ANY_SOURCE,
    K8S,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    RESERVED,
    Operator,
    Requirement,
    Selector,
)


def describe_subject(policy: Policy) -> str:
    """Whom the policy selects: "app=web in namespace shop", "nodes with role=edge"."""
    return " or ".join(dict.fromkeys(_subject(spec) for spec in policy.specs))


def _subject(spec: RuleSpec) -> str:
    if not spec.nodes:
        return _selector(spec.subject, "every pod")
    if spec.subject.matches_everything:
        return "every node"
    return f"nodes with {_selector(spec.subject, '')}"


def describe_action(rule: Rule) -> str:
    """What a rule does: "allow", "deny" or "pass"."""
    return "deny" if rule.deny else "pass" if rule.passes else "allow"


def describe_rule(rule: Rule) -> str:
    """What a rule matches: "from app=client in namespace shop to port 80/TCP"."""
    who = " or ".join(dict.fromkeys(describe_peer(peer) for peer in rule.peers)) or "nobody"
    side = "from" if rule.direction is Direction.INGRESS else "to"
    numbers = ", ".join(_port(port) for port in rule.ports if port.protocol not in TITLES)
    types = ", ".join(
        _icmp(port) for port in rule.ports if isinstance(port, PortRange) and port.protocol in TITLES
    )
    what = " or ".join([f"port {numbers}"] * bool(numbers) + [types] * bool(types))
    if not what:
        return f"{side} {who}"
    return f"{side} {who} {'to' if rule.direction is Direction.INGRESS else 'on'} {what}"


def describe_peer(peer: Peer) -> str:
    """Who is at the other end: "app=client in namespace shop", "10.0.0.0/8 outside the cluster"."""
    if isinstance(peer, CidrGroupPeer):
        return f"the CIDR group {peer.name}{_excepts(peer.excepts)}"
    if not isinstance(peer, CidrPeer):
        return _selector(peer, "everyone")
    if peer.by_address:
        return f"whoever has an address in {peer.cidr}{_excepts(peer.excepts)}"
    for name, cidr in WORLD_FAMILIES.items():
        if peer.cidr == cidr:
            return f"the world over {'IPv4' if name.endswith('4') else 'IPv6'}{_excepts(peer.excepts)}"
    return f"{peer.cidr}{_excepts(peer.excepts)} outside the cluster"


def _excepts(excepts: tuple[str, ...]) -> str:
    return f" except {' and '.join(excepts)}" if excepts else ""


def _icmp(match: PortRange) -> str:
    title = TITLES[match.protocol]
    if (match.first, match.last) == (0, MAX_PORT):
        return f"{title} of every type"
    if match.first != match.last:
        return f"{title} types {match.first}-{match.last}"
    name = type_called(match.protocol, match.first)
    return f"{title} type {match.first}{f' ({name})' if name else ''}"


def _port(match: PortMatch) -> str:
    protocol = "any protocol" if match.protocol is Protocol.ANY else match.protocol.name
    if not isinstance(match, PortRange):
        return f"{match.name}/{protocol}"
    if (match.first, match.last) == (0, MAX_PORT):
        return f"any/{protocol}"
    last = "" if match.first == match.last else f"-{match.last}"
    return f"{match.first}{last}/{protocol}"


def _selector(selector: Selector, nothing: str) -> str:
    if selector.matches_everything:
        return nothing
    own, where = [], ""
    for requirement in selector.requirements:
        if requirement.key == NAMESPACE_KEY and requirement.source in (K8S, ANY_SOURCE):
            if requirement.operator is Operator.EXISTS:
                continue
            where = f" in namespace {_condition(requirement, '')}"
        elif requirement.key.startswith(NAMESPACE_LABELS_PREFIX):
            name = requirement.key.removeprefix(NAMESPACE_LABELS_PREFIX)
            where += f" in namespaces with {_condition(requirement, name)}"
        elif (requirement.source, requirement.key) == (RESERVED, "world"):
            absent = requirement.operator is Operator.DOES_NOT_EXIST
            own.append("the cluster" if absent else "the world")
        else:
            shown = requirement.source in (K8S, ANY_SOURCE)
            name = requirement.key if shown else f"{requirement.source}:{requirement.key}"
            own.append(_condition(requirement, name))
    return (", ".join(own) or "every pod") + where


def _condition(requirement: Requirement, name: str) -> str:
    values = " or ".join(requirement.values)
    match requirement.operator:
        case Operator.IN:
            return f"{name}={values}" if name else values
        case Operator.NOT_IN:
            return f"{name} not {values}".strip()
        case Operator.EXISTS:
            return name
        case _:
            return f"no {name}".strip()
