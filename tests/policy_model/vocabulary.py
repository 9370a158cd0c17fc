# SPDX-License-Identifier: Apache-2.0
"""The names, labels and prefixes that random manifests are made of: so few that they have to do with each
other. And what all kinds of manifests share: selectors, prefixes, ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from hypothesis import strategies as st

from tests.policy_model.cluster import CLUSTER, POD_NAMESPACE, SERVICE_ACCOUNT

Document = dict[str, Any]
# Values by key.
Vocabulary = Mapping[str, tuple[str, ...]]

NAMESPACES = ("bank", "shop")
LABELS = {"app": ("web", "db"), "tier": ("one", "two")}
NAMESPACE_LABELS = {"team": ("red", "blue"), "env": ("prod",)}
NODE_LABELS = {"role": ("edge", "core")}
ACCOUNTS = ("", "", "robot")
GROUPS = ("office", "partners")
NAMES = ("one", "two")
PORT_NAMES = ("http", "dns")
# Slots for pods; each has its addresses for good.
SLOTS = {
    f"{namespace}/p{number}": (f"10.0.{index}.{number}", f"fd00:{index}::{number}")
    for index, namespace in enumerate(NAMESPACES)
    for number in (1, 2)
}
# Prefixes that lie within each other, about pods, nodes and others.
CIDRS = (
    "192.0.2.0/24",
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.1/32",
    "172.31.0.0/24",
    "172.31.0.2/32",
    # Three that lie within each other, so often that policies differ about them.
    *(("192.0.2.0/24", "192.0.2.16/28", "192.0.2.17/32") * 3),
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "fd00::/16",
)
OUTSIDE = (
    "192.0.2.17",
    "192.0.2.18",
    "192.0.2.200",
    "198.51.100.7",
    "10.9.9.9",
    "2001:db8:1::7",
    "2001:db8:2::1",
    "2a00::1",
)
ENTITIES = (
    "all",
    "world",
    "world-ipv4",
    "world-ipv6",
    "cluster",
    "host",
    "remote-node",
    "health",
    "kube-apiserver",
    "ingress",
    "unmanaged",
    "init",
    "none",
)


def chosen(vocabulary: Vocabulary) -> st.SearchStrategy[dict[str, str]]:
    """Labels: each key with a value, or not at all."""
    return st.fixed_dictionaries(
        {}, optional={key: st.sampled_from(values) for key, values in vocabulary.items()}
    )


@st.composite
def expressions(draw: st.DrawFn, vocabulary: Vocabulary, prefix: str = "") -> Document:
    key = draw(st.sampled_from(sorted(vocabulary)))
    operator = draw(st.sampled_from(("In", "NotIn", "Exists", "DoesNotExist")))
    found: Document = {"key": prefix + key, "operator": operator}
    if operator in ("In", "NotIn"):
        values = st.lists(st.sampled_from(vocabulary[key]), min_size=1, max_size=2, unique=True)
        found["values"] = draw(values)
    return found


@st.composite
def selectors(draw: st.DrawFn, vocabulary: Vocabulary, prefix: str = "") -> Document:
    """A label selector on the vocabulary's keys with a prefix."""
    found: Document = {}
    shape = draw(st.integers(0, 4))
    if shape in (1, 2):
        labels = draw(chosen(vocabulary))
        found["matchLabels"] = {prefix + key: value for key, value in labels.items()}
    if shape in (2, 3):
        found["matchExpressions"] = draw(st.lists(expressions(vocabulary, prefix), max_size=2))
    return found


def merged(first: Document, second: Document) -> Document:
    return {
        "matchLabels": {**first.get("matchLabels", {}), **second.get("matchLabels", {})},
        "matchExpressions": [*first.get("matchExpressions", []), *second.get("matchExpressions", [])],
    }


@st.composite
def cilium_selectors(draw: st.DrawFn) -> Document:
    """Of endpoints as peers: by labels with and without a source, namespaces, their labels, reserved ones."""
    shape = draw(st.integers(0, 9))
    if shape == 0:
        return {"matchLabels": {f"reserved:{draw(st.sampled_from(('world', 'host', 'health')))}": ""}}
    if shape == 1:
        return {"matchExpressions": [draw(expressions({"host": ("",), "world": ("",)}, "reserved:"))]}
    found: Document = draw(selectors(LABELS, draw(st.sampled_from(("", "k8s:", "any:")))))
    if shape == 2:
        where: Document = {"matchLabels": {f"k8s:{POD_NAMESPACE}": draw(st.sampled_from(NAMESPACES))}}
        return merged(found, where)
    if shape == 3:
        found = merged(found, draw(selectors({POD_NAMESPACE: NAMESPACES}, "k8s:")))
    elif shape == 4:
        prefix = draw(st.sampled_from(("", "k8s:"))) + "io.cilium.k8s.namespace.labels."
        found = merged(found, draw(selectors(NAMESPACE_LABELS, prefix)))
    elif shape == 5:
        return merged(found, {"matchLabels": {SERVICE_ACCOUNT: "robot", CLUSTER: "default"}})
    return found


@st.composite
def clusterwide_subjects(draw: st.DrawFn) -> Document:
    """Pods of all namespaces, by what there is to say of them."""
    found: Document = draw(selectors(LABELS, draw(st.sampled_from(("", "k8s:")))))
    shape = draw(st.integers(0, 4))
    if shape == 0:
        return merged(found, draw(selectors({POD_NAMESPACE: NAMESPACES}, "k8s:")))
    if shape == 1:
        return merged(found, draw(selectors(NAMESPACE_LABELS, "io.cilium.k8s.namespace.labels.")))
    if shape == 2:
        return merged(found, {"matchExpressions": [{"key": SERVICE_ACCOUNT, "operator": "Exists"}]})
    return found


@st.composite
def cidrs(draw: st.DrawFn, *, excepts: bool) -> tuple[str, list[str]]:
    """A prefix, and some within it to be left out."""
    cidr = draw(st.sampled_from(CIDRS))
    if not excepts:
        return cidr, []
    there = ip_network(cidr)
    inside = [
        text
        for text in dict.fromkeys(CIDRS)
        if text != cidr and ip_network(text).version == there.version and ip_network(text).subnet_of(there)  # type: ignore[arg-type]
    ]
    if not inside:
        return cidr, []
    least = draw(st.sampled_from((1, 1, 0)))
    return cidr, draw(st.lists(st.sampled_from(inside), min_size=least, max_size=2, unique=True))


priorities = st.sampled_from((0, 1, 1, 7, 1000))
numbers = st.sampled_from((53, 80, 81, 83, 443))
protocols = st.sampled_from(("TCP", "UDP", "SCTP"))


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int]:
    first = draw(numbers)
    return first, draw(st.sampled_from((first, first + 1, first + 6, 65535)))


def maybe(draw: st.DrawFn, chance: int = 2) -> bool:
    return draw(st.integers(0, chance - 1)) == 0


def document_of(
    draw: st.DrawFn, version: str, kind: str, spec: Document, *, namespaced: bool = False, audit: bool = True
) -> Document:
    metadata: Document = {"name": draw(st.sampled_from(NAMES))}
    if namespaced:
        metadata["namespace"] = draw(st.sampled_from(NAMESPACES))
    if audit and maybe(draw, 5):
        metadata["annotations"] = {"fimbria.io/audit": draw(st.sampled_from(("true", "true", "false")))}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
