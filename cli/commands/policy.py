"""`fimbria policy`: apply, delete, list, get and explain."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import errors
from cli.commands import options
from cli.errors import BadInput, CliError
from cli.output import output_option, print_json, print_rows

if TYPE_CHECKING:
    from fimbria.policy.v1 import policy_pb2

    from cli.client import Cluster

KINDS = {
    "networkpolicy": "NetworkPolicy",
    "netpol": "NetworkPolicy",
    "ciliumnetworkpolicy": "CiliumNetworkPolicy",
    "cnp": "CiliumNetworkPolicy",
    "ciliumclusterwidenetworkpolicy": "CiliumClusterwideNetworkPolicy",
    "ccnp": "CiliumClusterwideNetworkPolicy",
}
LARGEST = 4 * 1024 * 1024
# The call has to outlast the wait that it asks the service for.
MARGIN = 5.0


@click.group()
def policy() -> None:
    """Network policies: Kubernetes NetworkPolicy, CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy
    manifests.

    A policy is named [KIND/]NAMESPACE/NAME, with networkpolicy (netpol) or ciliumnetworkpolicy (cnp) as
    KIND; it may be left out where the name is unique. A ciliumclusterwidenetworkpolicy (ccnp) has no
    namespace: [KIND/]NAME. One with a nodeSelector is about nodes themselves.
    """


def _manifests(file: str) -> str:
    try:
        data = sys.stdin.buffer.read(LARGEST + 1) if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}") from None
    if len(data) > LARGEST:
        raise BadInput(f"{file} is larger than {LARGEST >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 text: {error}") from None
    if not text.strip():
        raise BadInput(f"{file} is empty: expected at least one manifest")
    return text


_wait = click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Return when every node enforces the change."
)
_timeout = click.option(
    "--timeout", type=float, default=30.0, show_default=True, help="Seconds to wait for the nodes."
)


@policy.command()
@click.option(
    "-f", "--file", "file", required=True, metavar="FILE", help="YAML or JSON; - is standard input."
)
@click.option("--dry-run", is_flag=True, help="Check and resolve, change nothing.")
@_wait
@_timeout
@output_option()
@options.dir_option
def apply(file: str, dry_run: bool, wait: bool, timeout: float, output: str) -> None:
    """Add or change policies, all of the file's or none."""
    manifests = _manifests(file)
    with options.cluster() as cluster:
        answer = apply_manifests(cluster, manifests, dry_run=dry_run, wait=wait, timeout=timeout)
    if output == "json":
        print_json(answer)
        return
    for item in answer["policies"]:
        note = " (dry run)" if dry_run else ""
        click.echo(f"{_title(item)} {item['outcome']}{note}")
    _print_wait(answer)


def _title(policy: Mapping[str, Any]) -> str:
    name = f"{policy['namespace']}/{policy['name']}" if policy["namespace"] else policy["name"]
    return f"{policy['kind']} {name}"


def apply_manifests(
    cluster: Cluster, manifests: str, *, dry_run: bool = False, wait: bool = True, timeout: float = 30.0
) -> dict[str, Any]:
    """Apply policies under a root span `policy.apply`; what became of them, revision, trace id and times."""
    from fimbria.policy.v1 import policy_pb2

    from cli import tracing
    from cli.client import call
    from services.chassis import names

    started = time.monotonic()
    with tracing.span(names.POLICY_APPLY) as span:
        request = policy_pb2.ApplyPoliciesRequest(manifests=manifests, validate_only=dry_run)
        applied = call(cluster.policies.ApplyPolicies, request, timeout=30)
        span.attributes[names.POLICY_REVISION] = applied.revision
        outcomes = policy_pb2.AppliedPolicy.Outcome
        answer: dict[str, Any] = {
            "policies": [
                {
                    **document(item.policy),
                    "outcome": outcomes.Name(item.outcome).removeprefix("OUTCOME_").lower(),
                }
                for item in applied.policies
            ],
            "revision": applied.revision,
            "dry_run": dry_run,
            "trace_id": span.trace_id,
        }
        if wait and not dry_run:
            answer["enforced"] = wait_enforced(cluster, applied.revision, timeout)
    answer["seconds"] = round(time.monotonic() - started, 6)
    return answer


def wait_enforced(cluster: Cluster, revision: int, timeout: float) -> list[dict[str, Any]]:
    """Wait until every node enforces the revision; how far each is. CliError when one is late."""
    from fimbria.policy.v1 import policy_pb2

    from cli.client import call

    request = policy_pb2.WaitEnforcedRequest(revision=revision)
    request.timeout.FromNanoseconds(round(timeout * 1e9))
    try:
        answer = call(cluster.policies.WaitEnforced, request, timeout=timeout + MARGIN)
    except CliError as error:
        if error.reason == "NODES_BEHIND":
            error.hint = "the policy is stored and will be enforced; `fimbria status` shows the nodes"
        raise
    return [
        {"node": node.node, "policy_revision": node.acknowledged.policy, "subscribed": node.subscribed}
        for node in answer.nodes
    ]


def _print_wait(answer: dict[str, Any]) -> None:
    if "enforced" in answer:
        nodes = ", ".join(node["node"] for node in answer["enforced"]) or "no node: none is known yet"
        click.echo(
            f"revision {answer['revision']} enforced on {nodes} ({answer['seconds'] * 1000:.0f} ms, "
            f"trace {answer['trace_id']})"
        )


@policy.command()
@click.argument("refs", nargs=-1, metavar="[[KIND/]NS/NAME]...")
@click.option("-f", "--file", "file", metavar="FILE", help="The policies that these manifests name.")
@_wait
@_timeout
@output_option()
@options.dir_option
def delete(refs: tuple[str, ...], file: str | None, wait: bool, timeout: float, output: str) -> None:
    """Remove policies, by name or as manifests name them; those that are not there are passed over."""
    from fimbria.policy.v1 import policy_pb2

    from cli import tracing
    from cli.client import call
    from services.chassis import names

    if not refs and file is None:
        raise BadInput("nothing was named to delete", hint="give [KIND/]NAMESPACE/NAME or -f FILE")
    manifests = _manifests(file) if file else ""
    started = time.monotonic()
    with options.cluster() as cluster, tracing.span(names.POLICY_DELETE) as span:
        keys = [key for ref in refs for key in _keys(cluster, ref)]
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
        click.echo(f"{_title(item)} deleted")
    if not answer["deleted"]:
        click.echo("no policy of that name is there: nothing to delete")
    _print_wait(answer)


def _keys(cluster: Cluster, ref: str) -> list[policy_pb2.PolicyKey]:
    """The keys that a reference stands for; none where the kind is not said and nothing is there."""
    from fimbria.policy.v1 import policy_pb2

    first, _, rest = ref.partition("/")
    kind = KINDS.get(first.lower(), "") if rest else ""
    namespace, slash, name = (rest if kind else ref).partition("/")
    if not slash:
        namespace, name = "", namespace
    if not name or "/" in name:
        raise BadInput(f"policy {ref!r} is not valid: expected [KIND/]NAMESPACE/NAME")
    if kind:
        return [policy_pb2.PolicyKey(kind=kind, namespace=namespace, name=name)]
    found = [
        item.key
        for item in _all(cluster, namespace)
        if (item.key.namespace, item.key.name) == (namespace, name)
    ]
    if len(found) > 1:
        kinds = ", ".join(key.kind for key in found)
        raise BadInput(
            f"policy {ref!r} is ambiguous: there is one of each kind {kinds}", hint="say KIND/NS/NAME"
        )
    return found


def _all(cluster: Cluster, namespace: str = "") -> list[policy_pb2.Policy]:
    from fimbria.policy.v1 import policy_pb2

    from cli.client import pages

    request = policy_pb2.ListPoliciesRequest(namespace=namespace)
    return list(pages(cluster.policies.ListPolicies, request, "policies"))


@policy.command("list")
@click.option("-n", "--namespace", default="", help="Only policies of this namespace.")
@output_option()
@options.dir_option
def list_policies(namespace: str, output: str) -> None:
    """The policies that are there."""
    with options.cluster() as cluster:
        rows = [document(item) for item in _all(cluster, namespace)]
    columns = [
        ("kind", "KIND"),
        ("namespace", "NAMESPACE"),
        ("name", "NAME"),
        ("subject", "SELECTS"),
        ("rule_count", "RULES"),
        ("revision", "REVISION"),
    ]
    for row in rows:
        row["rule_count"] = len(row["rules"])
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
        keys = _keys(cluster, ref)
        if not keys:
            raise CliError(f"there is no policy {ref}", reason="POLICY_NOT_FOUND")
        found = document(call(cluster.policies.GetPolicy, policy_pb2.GetPolicyRequest(key=keys[0])))
    if output == "json":
        print_json(found)
        return
    click.echo(f"{_title(found)}, revision {found['revision']}")
    click.echo(f"selects {found['subject']}")
    columns = [("cookie", "RULE"), ("direction", "DIRECTION"), ("verdict", "DOES"), ("path", "PATH")]
    print_rows(found["rules"], [*columns, ("description", "MATCHES")], output)


def document(item: policy_pb2.Policy) -> dict[str, Any]:
    """A policy as JSON."""
    return {
        "kind": item.key.kind,
        "namespace": item.key.namespace,
        "name": item.key.name,
        "revision": item.revision,
        "subject": item.subject,
        "update_time": item.update_time.ToJsonString(),
        "rules": [
            {
                "cookie": rule.cookie,
                "direction": {1: "ingress", 2: "egress"}.get(rule.direction, ""),
                "path": rule.path,
                "verdict": "deny" if rule.deny else "allow",
                "description": rule.description,
            }
            for rule in item.rules
        ],
        "manifest": item.manifest,
    }


@policy.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.argument("port", metavar="PORT/PROTO")
@output_option()
@options.dir_option
def explain(source: str, target: str, port: str, output: str) -> None:
    """Would a connection be allowed (exit code 0) or denied (4), and which rules decide it?

    FROM and TO are NS/NAME of a pod, labels (app=web,k8s:io.kubernetes.pod.namespace=shop), a reserved
    identity (@host, @world) or the number of an identity. A node that policies select by its labels is
    reserved:host with these (reserved:host,kubernetes.io/hostname=node-1). No packet is sent.
    """
    from cli.explain import explain as ask
    from cli.lab.syntax import parse_port
    from cli.peers import parse_peer

    number, protocol = parse_port(port)
    where = options.targets()
    from cli.client import Cluster

    with Cluster(where) as cluster:
        ends = [parse_peer(cluster, text, name) for text, name in ((source, "FROM"), (target, "TO"))]
        answer = ask(cluster, ends[0], ends[1], protocol, number)
    if output == "json":
        print_json({"from": source, "to": target, "port": number, "protocol": protocol, **answer})
    else:
        verdict = "ALLOWED" if answer["allowed"] else "DENIED"
        click.echo(f"{source} → {target} {number}/{protocol}: {verdict}")
        for direction in ("egress", "ingress"):
            click.echo(f"  {direction:8} {answer[direction]['reason']}")
    if not answer["allowed"]:
        click.get_current_context().exit(errors.DENIED)
