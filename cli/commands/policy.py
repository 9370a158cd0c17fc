"""`fimbria policy`: apply, delete, list and get; what asks questions is in policy_questions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from cli.commands import options
from cli.commands.policy_questions import diff, explain, status
from cli.errors import BadInput, CliError
from cli.output import output_option, print_json, print_rows
from cli.policy_files import ManifestFile, read_files
from cli.policy_names import find_keys, list_all, title
from cli.policy_status import TIERS

if TYPE_CHECKING:
    from fimbria.policy.v1 import policy_pb2

    from cli.client import Cluster

# The call has to outlast the wait that it asks the service for.
MARGIN = 5.0


@click.group()
def policy() -> None:
    """Network policies: manifests of Kubernetes (NetworkPolicy, AdminNetworkPolicy,
    BaselineAdminNetworkPolicy), Cilium (CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy,
    CiliumCIDRGroup), and Fimbria's own (Policy).

    A policy is named [KIND/]NAMESPACE/NAME; KIND is networkpolicy (netpol), ciliumnetworkpolicy (cnp) or
    policy, and may be left out where the name is unique. What belongs to no namespace is [KIND/]NAME:
    ciliumclusterwidenetworkpolicy (ccnp), adminnetworkpolicy (anp), baselineadminnetworkpolicy (banp),
    ciliumcidrgroup (cidrgroup), and a policy that has none.
    """


policy.add_command(explain)
policy.add_command(diff)
policy.add_command(status)


_wait = click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Return when every node enforces the change."
)
_timeout = click.option(
    "--timeout", type=float, default=30.0, show_default=True, help="Seconds to wait for the nodes."
)


@policy.command()
@click.option(
    "-f",
    "--file",
    "files",
    required=True,
    multiple=True,
    metavar="FILE",
    help="YAML or JSON, a directory of such files, or - for standard input; may be given again.",
)
@click.option("--dry-run", is_flag=True, help="Check and resolve, change nothing.")
@_wait
@_timeout
@output_option()
@options.dir_option
def apply(files: tuple[str, ...], dry_run: bool, wait: bool, timeout: float, output: str) -> None:
    """Add or change policies, all of a file's or none.

    Of several files nothing is applied if one of them is refused; then they are applied one after the other.
    """
    manifests = read_files(files)
    with options.cluster() as cluster:
        answer = apply_files(cluster, manifests, dry_run=dry_run, wait=wait, timeout=timeout)
    if output == "json":
        print_json(answer)
        return
    for item in answer["policies"]:
        note = " (dry run)" if dry_run else ""
        click.echo(f"{title(item)} {item['outcome']}{note}")
        for warning in item["warnings"]:
            click.echo(f"  warning: {warning}")
    _print_wait(answer)


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
        _check(cluster, files)
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


def _check(cluster: Cluster, files: Sequence[ManifestFile]) -> None:
    """Nothing of several files is applied if one of them is refused. BadInput with what is wrong in each."""
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
        raise BadInput("nothing was applied", reason=next(iter(reasons)), violations=refused)


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


def _print_wait(answer: dict[str, Any]) -> None:
    if "enforced" in answer:
        nodes = ", ".join(node["node"] for node in answer["enforced"]) or "no node: none is known yet"
        click.echo(
            f"revision {answer['revision']} enforced on {nodes} ({answer['seconds'] * 1000:.0f} ms, "
            f"trace {answer['trace_id']})"
        )


@policy.command()
@click.argument("refs", nargs=-1, metavar="[[KIND/]NS/NAME]...")
@click.option(
    "-f", "--file", "files", multiple=True, metavar="FILE", help="The policies that these manifests name."
)
@_wait
@_timeout
@output_option()
@options.dir_option
def delete(refs: tuple[str, ...], files: tuple[str, ...], wait: bool, timeout: float, output: str) -> None:
    """Remove policies, by name or as manifests name them; those that are not there are passed over."""
    from fimbria.policy.v1 import policy_pb2

    from cli import tracing
    from cli.client import call
    from services.chassis import names

    if not refs and not files:
        raise BadInput("nothing was named to delete", hint="give [KIND/]NAMESPACE/NAME or -f FILE")
    manifests = "\n---\n".join(each.text for each in read_files(files))
    started = time.monotonic()
    with options.cluster() as cluster, tracing.span(names.POLICY_DELETE) as span:
        keys = [key for ref in refs for key in find_keys(cluster, ref)]
        request = policy_pb2.DeletePoliciesRequest(keys=keys, manifests=manifests)
        deleted = call(cluster.policies.DeletePolicies, request, timeout=30)
        answer: dict[str, Any] = {
            "deleted": [
                {"kind": key.kind, "namespace": key.namespace, "name": key.name} for key in deleted.deleted
            ],
            "revision": deleted.revision,
            "trace_id": span.trace_id,
        }
        if wait:
            answer["enforced"] = wait_enforced(cluster, deleted.revision, timeout)
    answer["seconds"] = round(time.monotonic() - started, 6)
    if output == "json":
        print_json(answer)
        return
    for item in answer["deleted"]:
        click.echo(f"{title(item)} deleted")
    if not answer["deleted"]:
        click.echo("no policy of that name is there: nothing to delete")
    _print_wait(answer)


@policy.command("list")
@click.option("-n", "--namespace", default="", help="Only policies of this namespace.")
@output_option()
@options.dir_option
def list_policies(namespace: str, output: str) -> None:
    """The policies that are there."""
    with options.cluster() as cluster:
        rows = [document(item) for item in list_all(cluster, namespace)]
    columns = [
        ("kind", "KIND"),
        ("namespace", "NAMESPACE"),
        ("name", "NAME"),
        ("subject", "SELECTS"),
        ("rule_count", "RULES"),
        ("revision", "REVISION"),
        ("tier_text", "TIER"),
        ("mode", "MODE"),
    ]
    for row in rows:
        row["rule_count"] = len(row["rules"])
        row["tier_text"] = _tier(row)
        row["mode"] = "audit" if row["audit"] else "enforce"
    print_rows(rows, columns, output)


@policy.command()
@click.argument("ref", metavar="[KIND/]NS/NAME")
@output_option()
@options.dir_option
def get(ref: str, output: str) -> None:
    """One policy: whom it selects and its rules, as the service understood them."""
    from fimbria.policy.v1 import policy_pb2

    from cli.client import call

    with options.cluster() as cluster:
        keys = find_keys(cluster, ref)
        if not keys:
            raise CliError(f"there is no policy {ref}", reason="POLICY_NOT_FOUND")
        found = document(call(cluster.policies.GetPolicy, policy_pb2.GetPolicyRequest(key=keys[0])))
    if output == "json":
        print_json(found)
        return
    click.echo(f"{title(found)}, revision {found['revision']}")
    click.echo(f"selects {found['subject']}")
    source = f", applied from {found['source']}" if found["source"] else ""
    click.echo(f"tier {_tier(found)}{', in audit mode' if found['audit'] else ''}{source}")
    columns = [("cookie", "RULE"), ("direction", "DIRECTION"), ("verdict", "DOES"), ("path", "PATH")]
    print_rows(found["rules"], [*columns, ("line", "LINE"), ("description", "MATCHES")], output)


def _tier(found: dict[str, Any]) -> str:
    """`admin 10`, `normal`."""
    return f"{found['tier']} {found['priority']}" if found["tier"] == "admin" else str(found["tier"])


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
