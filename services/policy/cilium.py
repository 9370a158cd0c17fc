# SPDX-License-Identifier: Apache-2.0
"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2) to the rule model.

What differs from Kubernetes: a rule without peers and without ports matches nobody (`ingress: [{}]` is
default deny), a peer list that is there but empty matches nobody, a rule with ports only matches every
peer, the world included; peers stay in the policy's namespace unless they name a namespace; without
`enableDefaultDeny` a direction is default deny when it has a rule, denying ones included. A cluster-wide
policy with `nodeSelector` is about nodes (the host firewall), which `endpointSelector` never selects.
"""

from __future__ import annotations

from services.policy.cidr_fields import read_prefix
from services.policy.cilium_peers import read_peers, read_subject
from services.policy.cilium_ports import read_ports
from services.policy.fields import Node
from services.policy.label_selector import KeyStyle, read_selector
from services.policy.rules import Direction, Rule, RuleSpec
from services.policy.selector import RESERVED, Selector

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
            rules.append(Rule(direction, deny, peers, read_ports(item, names), item.path))
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
            # What was stored by older versions may have anything here.
            if not spec.report.stored and item.only(("key", "value", "source")):
                for key in ("key", "value", "source"):
                    if (node := item.child(key)) is not None:
                        node.text(f"the label's {key}")


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
    return read_subject(node, namespace)


def _default_deny(spec: Node, counts: list[int]) -> tuple[bool, bool]:
    chosen = [counts[direction] > 0 for direction in Direction]
    node = spec.child("enableDefaultDeny")
    if node is not None and node.only(("ingress", "egress")):
        for direction in Direction:
            flag = node.child(direction.name.lower())
            if flag is not None and (value := flag.boolean()) is not None:
                chosen[direction] = value
    return chosen[0], chosen[1]


def read_cidr_group(spec: Node) -> tuple[str, ...]:
    """The prefixes of a CiliumCIDRGroup's `spec`."""
    if not spec.only(("externalCIDRs",)):
        return ()
    node = spec.required("externalCIDRs", "a list of CIDRs")
    if node is None:
        return ()
    prefixes = [read_prefix(item, bare_address=True) for item in node.items()]
    return tuple(dict.fromkeys(prefix for prefix in prefixes if prefix is not None))
