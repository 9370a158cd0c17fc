# SPDX-License-Identifier: Apache-2.0
"""Manifests to policies: every document, every violation, all or nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from services.policy.cilium import read_cilium_spec
from services.policy.documents import Document, DocumentError, read_documents
from services.policy.fields import Node, Report, Violation, type_name
from services.policy.kubernetes import read_network_policy
from services.policy.names import namespace_problem, object_name_problem
from services.policy.rules import Policy, PolicyRef, RuleSpec

NETWORK_POLICY = "NetworkPolicy"
CILIUM = "CiliumNetworkPolicy"
CILIUM_CLUSTERWIDE = "CiliumClusterwideNetworkPolicy"

API_VERSIONS = {
    NETWORK_POLICY: "networking.k8s.io/v1",
    CILIUM: "cilium.io/v2",
    CILIUM_CLUSTERWIDE: "cilium.io/v2",
}
DEFAULT_NAMESPACE = "default"

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


class ManifestError(Exception):
    """The manifests are refused; `violations` has all that is wrong with all of them, at least one."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        subject = f"{first.subject}: " if first.subject else ""
        super().__init__(f"{subject}{first.field}: {first.description}{more}")
        self.violations = tuple(violations)

    @property
    def unsupported_only(self) -> bool:
        """Every violation is about something legal that is not supported yet."""
        return all(violation.unsupported for violation in self.violations)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A document with what it says. `text` is the document as canonical JSON: equal text means an equal
    policy.
    """

    policy: Policy
    text: str


def parse_manifests(text: str) -> list[Manifest]:
    """All policies of the text. Raises ManifestError when anything at all in it is wrong or unsupported."""
    documents = _documents(text)
    violations: list[Violation] = []
    manifests: list[Manifest] = []
    seen: dict[PolicyRef, int] = {}
    for index, document in enumerate(documents):
        report = Report(index)
        policy = _read(document, report)
        violations.extend(report.violations)
        if policy is None or report.violations:
            continue
        if policy.ref in seen:
            report.add(
                "metadata.name",
                f"{policy.ref} stands in these manifests already, as document {seen[policy.ref]}",
            )
            violations.extend(report.violations)
            continue
        seen[policy.ref] = index
        manifests.append(Manifest(policy, canonical(document.value)))
    if violations:
        raise ManifestError(violations)
    return manifests


def parse_refs(text: str) -> list[PolicyRef]:
    """Only the names of the policies in the text, each once; nothing else of them is read."""
    violations: list[Violation] = []
    refs: list[PolicyRef] = []
    for index, document in enumerate(_documents(text)):
        report = Report(index)
        head = _head(document, report)
        violations.extend(report.violations)
        if head is not None:
            refs.append(head[1])
    if violations:
        raise ManifestError(violations)
    return list(dict.fromkeys(refs))


def load_stored(text: str) -> Policy:
    """The policy in a manifest that was accepted before. Raises ManifestError if it no longer parses."""
    (manifest,) = parse_manifests(text)
    return manifest.policy


def canonical(value: object) -> str:
    """A document as JSON with sorted keys and without what the cluster, not its author, wrote into it."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key != "status"}
        metadata = kept.get("metadata")
        if isinstance(metadata, dict):
            kept["metadata"] = {
                key: metadata[key]
                for key in ("name", "namespace", "labels", "annotations")
                if metadata.get(key)
            }
        value = kept
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _documents(text: str) -> list[Document]:
    try:
        return read_documents(text)
    except DocumentError as error:
        raise ManifestError([Violation(0, "", "manifests", str(error))]) from None


def _read(document: Document, report: Report) -> Policy | None:
    head = _head(document, report)
    if head is None:
        return None
    node, ref = head
    if ref.kind == NETWORK_POLICY:
        node.only(("apiVersion", "kind", "metadata", "spec", "status"))
        spec = node.required("spec", "the policy's rules")
        read = read_network_policy(spec, ref.namespace) if spec is not None else None
        return Policy(ref, (read,)) if read is not None else None
    node.only(("apiVersion", "kind", "metadata", "spec", "specs", "status"))
    found: list[RuleSpec | None] = []
    single, several = node.child("spec"), node.child("specs")
    if single is not None:
        found.append(read_cilium_spec(single, ref.namespace))
    if several is not None:
        found.extend(read_cilium_spec(item, ref.namespace) for item in several.items())
    if not found and not report.violations:
        report.add(node.path_of("spec"), "missing, expected the policy's rules in spec or specs")
    specs = tuple(spec for spec in found if spec is not None)
    return Policy(ref, specs) if specs else None


def _head(document: Document, report: Report) -> tuple[Node, PolicyRef] | None:
    """The document and its name; None after violations."""
    # Paths inside an element of a List are relative to it: what is printed is what its author wrote.
    node = Node(document.value, "", report)
    where = f"{document.path}: " if document.path else ""
    if not isinstance(document.value, dict):
        report.subject = where.rstrip(": ")
        report.add("kind", f"got {type_name(document.value)}, expected an object with apiVersion and kind")
        return None
    kind_node = node.required("kind", f"one of {', '.join(API_VERSIONS)}")
    kind = kind_node.value if kind_node is not None else None
    if kind_node is not None and (not isinstance(kind, str) or kind not in API_VERSIONS):
        kind_node.wrong(f"one of {', '.join(API_VERSIONS)}")
        return None
    if not isinstance(kind, str):
        return None
    report.subject = where + kind
    version = node.required("apiVersion", API_VERSIONS[kind])
    if version is not None and version.value != API_VERSIONS[kind]:
        version.wrong(f"{API_VERSIONS[kind]} for a {kind}")
    metadata = node.required("metadata", "an object with a name")
    if metadata is None or not metadata.only(_METADATA):
        return None
    name = _name(metadata)
    namespace = _namespace(metadata, kind)
    if name is None or namespace is None:
        return None
    ref = PolicyRef(kind, namespace, name)
    report.subject = where + str(ref)
    if version is None or version.value != API_VERSIONS[kind]:
        return None
    return node, ref


def _name(metadata: Node) -> str | None:
    node = metadata.required("name", "the policy's name")
    name = node.text("a name") if node is not None else None
    if node is not None and name is not None and (problem := object_name_problem(name)):
        node.wrong(problem)
        return None
    return name


def _namespace(metadata: Node, kind: str) -> str | None:
    node = metadata.child("namespace")
    if kind == CILIUM_CLUSTERWIDE:
        if node is not None and node.value != "":
            node.wrong(f"no namespace on a {kind}")
            return None
        return ""
    if node is None:
        return DEFAULT_NAMESPACE
    name = node.text("a namespace")
    if name is not None and (problem := namespace_problem(name)):
        node.wrong(problem)
        return None
    return name
