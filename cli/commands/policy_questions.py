"""`fimbria policy explain`, `diff` and `status`: what policies decide, would change, and how far they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli import errors
from cli.commands import options
from cli.errors import BadInput, CliError
from cli.output import output_option, print_json
from cli.policy_files import read_files
from cli.policy_names import CLUSTERWIDE, find_keys, parse_ref

if TYPE_CHECKING:
    from fimbria.policy.v1 import policy_pb2

    from cli.client import Cluster


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.argument("port", metavar="PORT/PROTO")
@click.option("--family", type=click.Choice(["4", "6"]), help="Which addresses of pods count (default 4).")
@output_option()
@options.dir_option
def explain(source: str, target: str, port: str, family: str | None, output: str) -> None:
    """Would a connection be allowed (exit code 0) or denied (4), which rules decide it, and what would have
    to change for the other verdict?

    FROM and TO are NS/NAME of a pod, an address, labels (app=web,k8s:io.kubernetes.pod.namespace=shop),
    world or another reserved identity (host, remote-node, …, also as @host), or the number of an identity. A
    node that policies select by its labels is reserved:host with these
    (reserved:host,kubernetes.io/hostname=node-1). For ICMP the port is the type: 8/ICMP, 128/ICMPv6. No
    packet is sent.
    """
    from cli.client import Cluster
    from cli.explain import explain as ask
    from cli.explain import lines
    from cli.lab.syntax import parse_port_or_type
    from cli.peers import parse_peers

    number, protocol = parse_port_or_type(port)
    version = int(family) if family else 6 if protocol == "ICMPV6" else None
    with Cluster(options.targets()) as cluster:
        ends = parse_peers(cluster, source, target, version)
        answer = ask(cluster, ends[0], ends[1], protocol, number)
    if output == "json":
        print_json({"from": source, "to": target, "port": number, "protocol": protocol, **answer})
    else:
        verdict = "ALLOWED" if answer["allowed"] else "DENIED"
        click.echo(f"{source} → {target} {number}/{protocol}: {verdict}")
        for line in lines(answer):
            click.echo(line)
    if not answer["allowed"]:
        click.get_current_context().exit(errors.DENIED)


@click.command()
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    metavar="FILE",
    help="Manifests that would be applied: a file, a directory, or - for standard input; may be given again.",
)
@click.option(
    "--delete",
    "deletes",
    multiple=True,
    metavar="[KIND/]NS/NAME",
    help="A policy that would be deleted before that; may be given again.",
)
@click.option(
    "--flows", "age", metavar="AGE", help="Also which real flows would change: of the last 30s, 5m, 2h."
)
@click.option(
    "--max",
    "limit",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="At most so many changes.",
)
@click.option("--exit-code", is_flag=True, help="Exit with 5 if any verdict would change.")
@output_option()
@options.dir_option
def diff(
    files: tuple[str, ...],
    deletes: tuple[str, ...],
    age: str | None,
    limit: int,
    exit_code: bool,
    output: str,
) -> None:
    """What would change if policies were applied or deleted? Nothing is.

    Says for every identity that the policies select, in each direction, which peers would be allowed (+) or
    denied (-) on which ports that are not today. With --flows the observers of all nodes are asked for what
    they have seen, and each connection is judged as it is and as it would be.

    Exit code 0, whether anything would change or not; with --exit-code 5 if it would.
    """
    from cli.explain import key_text
    from cli.policy_apply import check_files
    from cli.policy_diff import ask, differs, lines
    from cli.recent_flows import parse_age, recent

    if not files and not deletes:
        raise BadInput("nothing was given to compare with", hint="give -f FILE, or --delete [KIND/]NS/NAME")
    if age is not None:
        parse_age(age)
    manifests = read_files(files)
    with options.cluster() as cluster:
        if len(manifests) > 1:
            # What is wrong is said by file.
            check_files(cluster, manifests, done="nothing was compared")
        keys = [key for ref in deletes for key in _existing(cluster, ref)]
        flows = recent(cluster, age) if age is not None else None
        text = "\n---\n".join(file.text for file in manifests)
        told = ask(cluster, text, keys, flows=flows, limit=limit)
    if output == "json":
        print_json(told)
    else:
        for line in lines(told, map(key_text, keys)):
            click.echo(line)
    if exit_code and differs(told):
        click.get_current_context().exit(errors.DIFFERENT)


@click.command()
@click.argument("ref", required=False, metavar="[[KIND/]NS/NAME]")
@output_option()
@options.dir_option
def status(ref: str | None, output: str) -> None:
    """Is each policy enforced on every node that has a pod it is about, and if not: who is late, since when
    and why? With a name: each subject of that policy on each node.
    """
    from cli.policy_status import details, overview, statuses

    with options.cluster() as cluster:
        keys = _existing(cluster, ref) if ref is not None else [None]
        found = [item for key in keys for item in statuses(cluster, key)]
    if output == "json":
        print_json(found[0] if ref is not None else found)
        return
    lines = overview(found) if ref is None else [line for item in found for line in details(item)]
    for line in lines:
        click.echo(line)


def _existing(cluster: Cluster, ref: str) -> list[policy_pb2.PolicyKey]:
    """The key of a policy that is there. CliError (POLICY_NOT_FOUND) if none is."""
    from fimbria.policy.v1 import policy_pb2

    from cli.client import call

    kind, namespace, _ = parse_ref(ref)
    keys = find_keys(cluster, ref)
    if kind and (namespace or kind in CLUSTERWIDE or kind == "Policy"):
        call(cluster.policies.GetPolicy, policy_pb2.GetPolicyRequest(key=keys[0]))
    if not keys:
        raise CliError(f"there is no policy {ref}", reason="POLICY_NOT_FOUND")
    return keys
