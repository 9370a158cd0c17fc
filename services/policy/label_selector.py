# SPDX-License-Identifier: Apache-2.0
"""`matchLabels` and `matchExpressions` to selectors, for Kubernetes' and for Cilium's keys."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from services.policy.fields import Node
from services.policy.names import (
    RESERVED_NAMES,
    WORLD_FAMILIES,
    label_key_problem,
    label_value_problem,
    namespace_problem,
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

_OPERATORS = {operator.value: operator for operator in Operator}
_SOURCES = (K8S, ANY_SOURCE, RESERVED, "container")


class KeyStyle(Enum):
    """How a key of a selector turns into a label's source and key."""

    POD = "pod"
    """Kubernetes podSelector: the pod's own labels."""
    NAMESPACE = "namespace"
    """Kubernetes namespaceSelector: the labels of the pod's namespace."""
    CILIUM = "cilium"
    """Cilium: `source:key`; without a source, any source."""


def read_selector(node: Node, style: KeyStyle) -> Selector | None:
    """The selector, or None after violations. An empty one matches everything: the caller confines it."""
    if not node.only(("matchLabels", "matchExpressions")):
        return None
    before = len(node.report.violations)
    requirements = [*_match_labels(node, style), *_match_expressions(node, style)]
    if len(node.report.violations) > before:
        return None
    return Selector.of(requirements)


def _match_labels(node: Node, style: KeyStyle) -> Iterator[Requirement]:
    labels = node.child("matchLabels")
    if labels is None or (pairs := labels.mapping()) is None:
        return
    for key, value in pairs.items():
        here = Node(value, labels.path_of(str(key)), labels.report)
        split = _split_key(Node(key, here.path, here.report), str(key), style)
        text = here.text("a label value")
        if split is None or text is None or not _legal_value(here, split, text):
            continue
        yield Requirement(split[0], split[1], Operator.IN, (text,))


def _match_expressions(node: Node, style: KeyStyle) -> Iterator[Requirement]:
    expressions = node.child("matchExpressions")
    if expressions is None:
        return
    for here in expressions.items():
        if not here.only(("key", "operator", "values")):
            continue
        key_node = here.required("key", "a label key")
        operator_node = here.required("operator", "one of In, NotIn, Exists, DoesNotExist")
        key = key_node.text("a label key") if key_node else None
        name = operator_node.text("an operator") if operator_node else None
        operator = _OPERATORS.get(name) if name is not None else None
        if operator_node and name is not None and operator is None:
            operator_node.wrong("one of In, NotIn, Exists, DoesNotExist")
        split = _split_key(key_node, key, style) if key_node and key is not None else None
        values = _values(here, operator, split)
        if split is not None and operator is not None and values is not None:
            yield Requirement(split[0], split[1], operator, values)


def _values(here: Node, operator: Operator | None, split: tuple[str, str] | None) -> tuple[str, ...] | None:
    if operator is None:
        return None
    node = here.child("values")
    if operator in (Operator.EXISTS, Operator.DOES_NOT_EXIST):
        if node is not None and node.value != []:
            node.wrong(f"no values with the operator {operator.value}")
            return None
        return ()
    if node is None or node.value == []:
        here.report.add(
            here.path_of("values"), f"empty, expected at least one value with the operator {operator.value}"
        )
        return None
    values: list[str] = []
    legal = True
    for item in node.items():
        text = item.text("a label value")
        if text is None or (split is not None and not _legal_value(item, split, text)):
            legal = False
        else:
            values.append(text)
    return tuple(sorted(set(values))) if legal and values else None


def _split_key(node: Node, key: str, style: KeyStyle) -> tuple[str, str] | None:
    """(source, key) of a selector's key, or None after a violation."""
    if style is not KeyStyle.CILIUM:
        if problem := label_key_problem(key):
            Node(key, node.path, node.report).wrong(problem)
            return None
        return K8S, (NAMESPACE_LABELS_PREFIX + key if style is KeyStyle.NAMESPACE else key)
    source, colon, bare = key.partition(":")
    if not colon:
        source, bare = ANY_SOURCE, key
    here = Node(key, node.path, node.report)
    if source not in _SOURCES:
        here.wrong(
            f"a label key with one of the sources {', '.join(s + ':' for s in _SOURCES)} or without one"
        )
        return None
    if source == RESERVED:
        if bare in WORLD_FAMILIES:
            here.refuse(f"not supported in label selectors; use the entity {bare}")
            return None
        if bare not in RESERVED_NAMES:
            names = (name for name in RESERVED_NAMES if name not in WORLD_FAMILIES)
            here.wrong(f"a reserved identity: {', '.join('reserved:' + name for name in names)}")
            return None
        return source, bare
    if problem := label_key_problem(bare.removeprefix(NAMESPACE_LABELS_PREFIX)):
        here.wrong(problem)
        return None
    return source, bare


def _legal_value(node: Node, split: tuple[str, str], value: str) -> bool:
    source, key = split
    if source == RESERVED:
        problem = "an empty value: reserved labels have none" if value else None
    elif key == NAMESPACE_KEY:
        problem = namespace_problem(value)
    else:
        problem = label_value_problem(value)
    if problem:
        node.wrong(problem)
    return problem is None
