# SPDX-License-Identifier: Apache-2.0
"""What surrounds a policy's rules in a manifest: kind, version, name, labels and annotations."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from services.policy.documents import Document
from services.policy.fields import Node, Report, type_name
from services.policy.names import (
    label_key_problem,
    label_value_problem,
    namespace_problem,
    object_name_problem,
)
from services.policy.rules import PolicyRef

NETWORK_POLICY = "NetworkPolicy"
CILIUM = "CiliumNetworkPolicy"
CILIUM_CLUSTERWIDE = "CiliumClusterwideNetworkPolicy"
ADMIN = "AdminNetworkPolicy"
BASELINE = "BaselineAdminNetworkPolicy"
OWN = "Policy"
CIDR_GROUP = "CiliumCIDRGroup"

DEFAULT_NAMESPACE = "default"
BASELINE_NAME = "default"
OWN_PREFIX = "fimbria.io/"
AUDIT_ANNOTATION = f"{OWN_PREFIX}audit"


class Scope(Enum):
    """Whether objects of a kind are in a namespace."""

    NAMESPACED = "namespaced"
    CLUSTER = "cluster"
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of document: the API versions that mean the same, and its scope."""

    versions: tuple[str, ...]
    scope: Scope

    def default_namespace(self) -> str:
        """The namespace of an object that names none."""
        return DEFAULT_NAMESPACE if self.scope is Scope.NAMESPACED else ""


KINDS = {
    NETWORK_POLICY: Kind(("networking.k8s.io/v1",), Scope.NAMESPACED),
    CILIUM: Kind(("cilium.io/v2",), Scope.NAMESPACED),
    CILIUM_CLUSTERWIDE: Kind(("cilium.io/v2",), Scope.CLUSTER),
    ADMIN: Kind(("policy.networking.k8s.io/v1alpha1",), Scope.CLUSTER),
    BASELINE: Kind(("policy.networking.k8s.io/v1alpha1",), Scope.CLUSTER),
    OWN: Kind(("fimbria.io/v1",), Scope.EITHER),
    CIDR_GROUP: Kind(("cilium.io/v2", "cilium.io/v2alpha1"), Scope.CLUSTER),
}

# What kubectl prints along with an object. None of it changes what a policy means.
_METADATA = (
    "name",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "ownerReferences",
    "finalizers",
    "selfLink",
)


@dataclass(frozen=True, slots=True)
class Head:
    """A document with its name. `audit` is None when no annotation says anything about it.

    `named`: the name is legal. What else is wrong with the document is worth telling all the same.
    """

    node: Node
    ref: PolicyRef
    audit: bool | None
    named: bool


def read_head(document: Document, report: Report) -> Head | None:
    """The document's head; None when nobody can say what it is."""
    # Paths inside an element of a List are relative to it: what is printed is what its author wrote.
    node = Node(document.value, "", report)
    where = f"{document.path}: " if document.path else ""
    if not isinstance(document.value, dict):
        report.subject = document.path
        report.add("kind", f"got {type_name(document.value)}, expected an object with apiVersion and kind")
        return None
    name = _kind_name(node)
    if name is None:
        return None
    kind = KINDS[name]
    report.subject = where + name
    versions = " or ".join(kind.versions)
    version = node.required("apiVersion", versions)
    right_version = version is not None and version.value in kind.versions
    if version is not None and not right_version:
        version.wrong(f"{versions} for a {name}")
    found = namespace = audit = None
    metadata = node.required("metadata", "an object with a name")
    if metadata is not None and metadata.only(_METADATA):
        found, namespace = _name(metadata, name), _namespace(metadata, name, kind)
        audit = _audit(metadata, name)
        _check_labels(metadata)
    named = found is not None and namespace is not None
    ref = PolicyRef(name, kind.default_namespace() if namespace is None else namespace, found or "")
    if named:
        report.subject = where + str(ref)
    # Another version's fields may be others.
    return Head(node, ref, audit, named) if right_version else None


def _kind_name(node: Node) -> str | None:
    found = node.required("kind", f"one of {', '.join(KINDS)}")
    if found is None:
        return None
    if not isinstance(found.value, str) or found.value not in KINDS:
        found.wrong(f"one of {', '.join(KINDS)}")
        return None
    return found.value


def _name(metadata: Node, kind: str) -> str | None:
    node = metadata.required("name", "the policy's name")
    name = node.text("a name") if node is not None else None
    if node is None or name is None:
        return None
    problem = object_name_problem(name)
    if kind == BASELINE and name != BASELINE_NAME:
        problem = f"{BASELINE_NAME}: there is one {BASELINE} in a cluster, and that is its name"
    if problem:
        node.wrong(problem)
        return None
    return name


def _namespace(metadata: Node, name: str, kind: Kind) -> str | None:
    node = metadata.child("namespace")
    if kind.scope is Scope.CLUSTER:
        if node is not None and node.value != "":
            node.wrong(f"no namespace on a {name}")
            return None
        return ""
    if node is None or (kind.scope is Scope.EITHER and node.value == ""):
        return kind.default_namespace()
    namespace = node.text("a namespace")
    if namespace is not None and (problem := namespace_problem(namespace)):
        node.wrong(problem)
        return None
    return namespace


def _audit(metadata: Node, kind: str) -> bool | None:
    """What the annotation for audit mode says. Other annotations are free, but for our own prefix."""
    annotations = metadata.child("annotations")
    if annotations is None:
        return None
    if metadata.report.stored and not isinstance(annotations.value, dict):
        return None
    found: bool | None = None
    for key, value in (annotations.mapping() or {}).items():
        here = Node(value, annotations.path_of(key), annotations.report)
        if key == AUDIT_ANNOTATION:
            if kind == CIDR_GROUP:
                here.wrong(f"no such annotation on a {kind}: it decides nothing by itself")
            else:
                found = here.choice({"true": True, "false": False}, 'the string "true" or "false"')
        elif key.startswith(OWN_PREFIX):
            here.wrong(f"no such annotation; those of {OWN_PREFIX} are {AUDIT_ANNOTATION}")
        elif not metadata.report.stored:
            here.text("an annotation")
    return found


def _check_labels(metadata: Node) -> None:
    """A policy's own labels decide nothing; they must be labels all the same."""
    labels = metadata.child("labels")
    if labels is None or metadata.report.stored:
        return
    for key, value in (labels.mapping() or {}).items():
        here = Node(value, labels.path_of(key), labels.report)
        if problem := label_key_problem(key):
            Node(key, here.path, here.report).wrong(problem)
        text = here.text("a label value")
        if text is not None and (problem := label_value_problem(text)):
            here.wrong(problem)
