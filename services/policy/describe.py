# SPDX-License-Identifier: Apache-2.0
"""Rules and selectors in words, for people who list policies or ask for a verdict."""

from __future__ import annotations

from services.policy.rules import (
    MAX_PORT,
    Direction,
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


def describe_rule(rule: Rule) -> str:
    """What a rule matches: "from app=client in namespace shop to port 80/TCP"."""
    who = " or ".join(dict.fromkeys(_selector(peer, "everyone") for peer in rule.peers)) or "nobody"
    ports = ", ".join(_port(port) for port in rule.ports)
    side = "from" if rule.direction is Direction.INGRESS else "to"
    if not ports:
        return f"{side} {who}"
    return f"{side} {who} {'to' if rule.direction is Direction.INGRESS else 'on'} port {ports}"


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
