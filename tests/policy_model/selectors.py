# SPDX-License-Identifier: Apache-2.0
"""Label selectors, evaluated on the labels themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.policy_model.cluster import NAMESPACE_LABEL, POD_NAMESPACE, End

LabelSelector = Mapping[str, Any]


def requirements(selector: LabelSelector) -> Iterator[tuple[str, str, list[str]]]:
    """(key, operator, values) of a selector; a label that must match is one with the operator In."""
    for key, value in (selector.get("matchLabels") or {}).items():
        yield key, "In", [value]
    for expression in selector.get("matchExpressions") or ():
        yield expression["key"], expression["operator"], list(expression.get("values") or ())


def _holds(found: list[str], operator: str, values: list[str]) -> bool:
    """`found` are the values under the requirement's key, none when there is no such label."""
    if operator == "Exists":
        return bool(found)
    if operator == "DoesNotExist":
        return not found
    among = any(value in values for value in found)
    return among if operator == "In" else not among


def kubernetes_matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """As Kubernetes selects objects by their labels: all requirements hold."""
    return all(
        _holds([labels[key]] if key in labels else [], operator, values)
        for key, operator, values in requirements(selector)
    )


def _values(end: End, key: str) -> list[str]:
    """The values of a key that may begin with a source, `k8s:app`; without one it is of any source."""
    source, colon, bare = key.partition(":")
    if not colon:
        source, bare = "any", key
    return [value for owner, name, value in end.labels if name == bare and source in ("any", owner)]


def cilium_matches(selector: LabelSelector, end: End) -> bool:
    return all(
        _holds(_values(end, key), operator, values) for key, operator, values in requirements(selector)
    )


def cilium_peer_matches(selector: LabelSelector, end: End, namespace: str) -> bool:
    """As Cilium selects peers: in the policy's namespace, unless the selector says something of namespaces
    or of reserved labels; those of a policy without a namespace are pods anywhere.
    """
    if not cilium_matches(selector, end):
        return False
    keys = [key for key, _, _ in requirements(selector)]
    if any(key.startswith("reserved:") for key in keys):
        return True
    bare = [key.removeprefix("k8s:").removeprefix("any:") for key in keys]
    if POD_NAMESPACE in bare:
        return True
    if not namespace:
        return end.pod is not None
    if any(key.startswith(NAMESPACE_LABEL) for key in bare):
        return True
    return end.pod is not None and end.pod.namespace == namespace
