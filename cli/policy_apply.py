"""Applies policies, and waits until they are enforced."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cli.errors import BadInput, CliError
from cli.policy_files import ManifestFile
from cli.policy_names import title
from cli.policy_status import TIERS

if TYPE_CHECKING:
    from fimbria.policy.v1 import policy_pb2

    from cli.client import Cluster

# The call has to outlast the wait that it asks the service for.
MARGIN = 5.0


def apply_manifests(
    cluster: Cluster,
    manifests: str,
    *,
    dry_run: bool = False,
    wait: bool = True,
    timeout: float = 30.0,
    source: str = "",
) -> dict[str, Any]:
    """Apply policies under a root span `policy.apply`; what became of them, revision, trace id and times."""
    file = ManifestFile(source, manifests)
    return apply_files(cluster, [file], dry_run=dry_run, wait=wait, timeout=timeout)


def apply_files(
    cluster: Cluster, files: Sequence[ManifestFile], *, dry_run: bool, wait: bool, timeout: float
) -> dict[str, Any]:
    """As `apply_manifests`, for several files."""
    from cli import tracing
    from services.chassis import names

    if len(files) > 1:
        check_files(cluster, files)
    started = time.monotonic()
    with tracing.span(names.POLICY_APPLY) as span:
        answers = [_apply(cluster, file, dry_run=dry_run) for file in files]
        revision = max(applied.revision for applied in answers)
        span.attributes[names.POLICY_REVISION] = revision
        items = [item for applied in answers for item in applied.policies]
        answer: dict[str, Any] = {
            "policies": [_outcome(item) for item in items],
            "revision": revision,
            "dry_run": dry_run,
            "trace_id": span.trace_id,
        }
        if wait and not dry_run:
            keys = [item.policy.key for item in items]
            answer["enforced"] = wait_enforced(cluster, revision, timeout, keys)
    answer["seconds"] = round(time.monotonic() - started, 6)
    return answer


def _apply(cluster: Cluster, file: ManifestFile, *, dry_run: bool) -> policy_pb2.ApplyPoliciesResponse:
    from fimbria.policy.v1 import policy_pb2

    from cli.client import call

    request = policy_pb2.ApplyPoliciesRequest(
        manifests=file.text, validate_only=dry_run, source=file.name[:1024]
    )
    return call(cluster.policies.ApplyPolicies, request, timeout=30)


def check_files(cluster: Cluster, files: Sequence[ManifestFile], done: str = "nothing was applied") -> None:
    """BadInput with what is wrong in each of the files, if anything is."""
    refused: list[tuple[str, str]] = []
    reasons: dict[str, None] = {}
    for file in files:
        try:
            _apply(cluster, file, dry_run=True)
        except BadInput as error:
            found = error.violations or [("", error.message)]
            refused += [(f"{file.name}: {field}" if field else file.name, told) for field, told in found]
            reasons[error.reason] = None
    if refused:
        raise BadInput(done, reason=next(iter(reasons)), violations=refused)


def _outcome(item: policy_pb2.AppliedPolicy) -> dict[str, Any]:
    from fimbria.policy.v1 import policy_pb2

    outcome = policy_pb2.AppliedPolicy.Outcome.Name(item.outcome)
    return {
        **document(item.policy),
        "outcome": outcome.removeprefix("OUTCOME_").lower(),
        "warnings": list(item.warnings),
    }


def wait_enforced(
    cluster: Cluster, revision: int, timeout: float, keys: Sequence[policy_pb2.PolicyKey] = ()
) -> list[dict[str, Any]]:
    """Wait until every node enforces the revision; how far each is. CliError when one is late, which says
    why, and which of the policies `keys` are late there.
    """
    from fimbria.policy.v1 import policy_pb2

    from cli.client import call

    request = policy_pb2.WaitEnforcedRequest(revision=revision)
    request.timeout.FromNanoseconds(round(timeout * 1e9))
    try:
        answer = call(cluster.policies.WaitEnforced, request, timeout=timeout + MARGIN)
    except CliError as error:
        if error.reason == "NODES_BEHIND":
            error.violations = tuple(_late(cluster, revision, keys))
            error.hint = (
                "the change is stored and will be enforced; `fimbria policy status` shows who is late"
            )
        raise
    return [
        {"node": node.node, "policy_revision": node.acknowledged.policy, "subscribed": node.subscribed}
        for node in answer.nodes
    ]


def _late(cluster: Cluster, revision: int, keys: Sequence[policy_pb2.PolicyKey]) -> list[tuple[str, str]]:
    """(policy on node, why it is late) for each of the policies; also nodes that have nobody of theirs."""
    from fimbria.policy.v1 import policy_pb2

    from cli.client import pages
    from cli.policy_status import late_nodes, seconds, statuses

    found: list[tuple[str, str]] = []
    named: set[str] = set()
    try:
        for key in keys:
            for status in statuses(cluster, key):
                for node, (why, since) in late_nodes(status).items():
                    named.add(node)
                    found.append((f"{title(status)} on {node}", f"{why} (late for {seconds(since)})"))
        request = policy_pb2.ListEnforcementRequest()
        for node in pages(cluster.policies.ListEnforcement, request, "nodes"):
            if node.acknowledged.policy < revision and node.node not in named:
                why = node.error or ("" if node.subscribed else "its loader is not subscribed")
                at = f"it has acknowledged revision {node.acknowledged.policy} of {revision}"
                none = "; it has nobody whom these policies select" if keys else ""
                found.append((node.node, f"{why + '; ' if why else ''}{at}{none}"))
    except CliError as error:
        found.append(("policy service", error.message))
    return found


def document(item: policy_pb2.Policy) -> dict[str, Any]:
    """A policy as JSON."""
    return {
        "kind": item.key.kind,
        "namespace": item.key.namespace,
        "name": item.key.name,
        "revision": item.revision,
        "effective_revision": item.effective_revision,
        "subject": item.subject,
        "tier": TIERS.get(item.tier, "normal"),
        "priority": item.priority,
        "audit": item.audit,
        "source": item.source,
        "update_time": item.update_time.ToJsonString(),
        "rules": [
            {
                "cookie": rule.cookie,
                "direction": {1: "ingress", 2: "egress"}.get(rule.direction, ""),
                "path": rule.path,
                "line": rule.line,
                "verdict": {1: "allow", 2: "deny", 3: "pass"}.get(
                    rule.action, "deny" if rule.deny else "allow"
                ),
                "description": rule.description,
            }
            for rule in item.rules
        ],
        "manifest": item.manifest,
    }
