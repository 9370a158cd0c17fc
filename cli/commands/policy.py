"""`fimbria policy`: apply, delete, list and get; what asks questions is in policy_questions."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from cli.commands import options
from cli.commands.policy_questions import diff, explain, status
from cli.errors import BadInput, CliError
from cli.output import output_option, print_json, print_rows
from cli.policy_apply import apply_files, apply_manifests, document, wait_enforced
from cli.policy_files import read_files
from cli.policy_names import find_keys, list_all, title

GROUP = "CiliumCIDRGroup"

__all__ = ["apply_manifests", "policy", "wait_enforced"]


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
    if found["kind"] == GROUP:
        held = json.loads(found["manifest"]).get("spec", {}).get("externalCIDRs") or ["nothing"]
        click.echo(f"holds {', '.join(held)}")
        return
    click.echo(f"selects {found['subject']}")
    source = f", applied from {found['source']}" if found["source"] else ""
    click.echo(f"tier {_tier(found)}{', in audit mode' if found['audit'] else ''}{source}")
    columns = [("cookie", "RULE"), ("direction", "DIRECTION"), ("verdict", "DOES"), ("path", "PATH")]
    print_rows(found["rules"], [*columns, ("line", "LINE"), ("description", "MATCHES")], output)


def _tier(found: dict[str, Any]) -> str:
    """`admin 10`, `normal`."""
    return f"{found['tier']} {found['priority']}" if found["tier"] == "admin" else str(found["tier"])
