# SPDX-License-Identifier: Apache-2.0
"""Manifests to policies: every document, every violation, all or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.policy.admin import read_admin_spec
from services.policy.cilium import read_cidr_group, read_cilium_spec
from services.policy.documents import Document, DocumentError, check_value, read_documents
from services.policy.fields import Node, Report, Violation
from services.policy.head import (
    ADMIN,
    BASELINE,
    CIDR_GROUP,
    CILIUM,
    CILIUM_CLUSTERWIDE,
    DEFAULT_NAMESPACE,
    KINDS,
    NETWORK_POLICY,
    OWN,
    Head,
    Scope,
    read_head,
)
from services.policy.kubernetes import read_network_policy
from services.policy.own import document_of, field_of, read_own_spec
from services.policy.rules import Policy, PolicyRef, RuleSpec, Tier

__all__ = [
    "ADMIN",
    "BASELINE",
    "CIDR_GROUP",
    "CILIUM",
    "CILIUM_CLUSTERWIDE",
    "DEFAULT_NAMESPACE",
    "KINDS",
    "NETWORK_POLICY",
    "OWN",
    "Manifest",
    "ManifestError",
    "Scope",
    "canonical",
    "load_stored",
    "load_stored_manifest",
    "parse_definitions",
    "parse_manifests",
    "parse_refs",
]


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

    `group` has the prefixes of a CiliumCIDRGroup, whose `policy` has a name only; None for every other kind.
    """

    policy: Policy
    text: str
    group: tuple[str, ...] | None = None


def parse_manifests(text: str) -> list[Manifest]:
    """All policies and CIDR groups of the text. Raises ManifestError when anything at all in it is wrong or
    unsupported.
    """
    return _parse(_documents(text))


def parse_definitions(definitions: Sequence[Mapping[str, Any]]) -> list[Manifest]:
    """Policies that came as messages, each a PolicyDefinition in its JSON form. Paths of violations begin
    with `policies[i].`; otherwise as `parse_manifests`.
    """
    for index, definition in enumerate(definitions):
        try:
            check_value(definition)
        except DocumentError as error:
            where = f"policies[{index}].{error.where}".rstrip(".")
            raise ManifestError([Violation(index, "", where, error.problem)]) from None
    documents = [Document(document_of(definition), "") for definition in definitions]
    try:
        return _parse(documents)
    except ManifestError as error:
        raise ManifestError(
            [
                replace(each, field=f"policies[{each.document}].{field_of(each.field)}")
                for each in error.violations
            ]
        ) from None


def parse_refs(text: str) -> list[PolicyRef]:
    """Only the names of the policies in the text, each once; nothing else of them is read."""
    violations: list[Violation] = []
    refs: list[PolicyRef] = []
    for index, document in enumerate(_documents(text)):
        report = Report(index)
        head = read_head(document, report)
        violations.extend(report.violations)
        if head is not None:
            refs.append(head.ref)
    if violations:
        raise ManifestError(violations)
    return list(dict.fromkeys(refs))


def load_stored(text: str) -> Policy:
    """The policy in a manifest that was accepted before, without lines: those of the text that it came from
    are not in it. Raises ManifestError if it no longer parses.
    """
    return load_stored_manifest(text).policy


def load_stored_manifest(text: str) -> Manifest:
    """As `load_stored`, with the prefixes of a CIDR group."""
    (manifest,) = _parse(_documents(text), stored=True)
    return manifest


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


def _parse(documents: Iterable[Document], *, stored: bool = False) -> list[Manifest]:
    violations: list[Violation] = []
    manifests: list[Manifest] = []
    seen: dict[PolicyRef, int] = {}
    for index, document in enumerate(documents):
        report = Report(index, stored=stored)
        head = read_head(document, report)
        manifest = _read(head, document, stored) if head is not None else None
        if head is not None and head.named and head.ref in seen:
            report.add(
                "metadata.name",
                f"{head.ref} stands in these manifests already, as document {seen[head.ref]}",
            )
        elif head is not None and head.named:
            seen[head.ref] = index
        violations.extend(report.violations)
        if manifest is not None and not report.violations:
            manifests.append(manifest)
    if violations:
        raise ManifestError(violations)
    return manifests


def _read(head: Head, document: Document, stored: bool) -> Manifest | None:
    """What the document says; None after violations, and it may be wrong when there are some."""
    node, ref = head.node, head.ref
    specs = ("spec", "specs") if ref.kind in (CILIUM, CILIUM_CLUSTERWIDE) else ("spec",)
    node.only(("apiVersion", "kind", "metadata", *specs, "status"))
    policy: Policy | None
    group: tuple[str, ...] | None = None
    if ref.kind in (CILIUM, CILIUM_CLUSTERWIDE):
        policy = _cilium_policy(head)
    else:
        spec = node.required("spec", "what it says")
        if spec is None:
            return None
        if ref.kind == CIDR_GROUP:
            policy, group = Policy(ref, ()), read_cidr_group(spec)
        else:
            policy = _policy(head, spec)
    if policy is None:
        return None
    if not stored:
        found = ((rule.path, document.line(rule.path)) for rule in policy.rules())
        policy = replace(policy, lines={path: line for path, line in found if line is not None})
    return Manifest(policy, canonical(document.value), group)


def _cilium_policy(head: Head) -> Policy | None:
    node, namespace = head.node, head.ref.namespace
    found: list[RuleSpec | None] = []
    single, several = node.child("spec"), node.child("specs")
    if single is not None:
        found.append(read_cilium_spec(single, namespace))
    if several is not None:
        found.extend(read_cilium_spec(item, namespace) for item in several.items())
    if not found and not node.report.violations:
        node.report.add(node.path_of("spec"), "missing, expected the policy's rules in spec or specs")
    specs = tuple(spec for spec in found if spec is not None)
    return Policy(head.ref, specs, audit=bool(head.audit)) if specs else None


def _policy(head: Head, spec: Node) -> Policy | None:
    ref, audit = head.ref, bool(head.audit)
    if ref.kind == NETWORK_POLICY:
        read = read_network_policy(spec, ref.namespace)
        return Policy(ref, (read,), audit=audit) if read is not None else None
    if ref.kind == OWN:
        own = read_own_spec(spec, ref.namespace)
        if own is None:
            return None
        if own.audit is not None and head.audit is not None and own.audit is not head.audit:
            spec.report.add(
                spec.path_of("audit"), "does not say the same as the annotation, expected one of the two only"
            )
        return Policy(ref, (own.spec,), own.tier, own.priority, audit or bool(own.audit))
    admin = read_admin_spec(spec, baseline=ref.kind == BASELINE)
    if admin is None:
        return None
    tier = Tier.BASELINE if ref.kind == BASELINE else Tier.ADMIN
    return Policy(ref, (admin[0],), tier, admin[1], audit)
