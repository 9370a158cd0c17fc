"""`fimbria lab`: a cluster on this machine, and its pods."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click

from cli import errors
from cli.commands import options
from cli.errors import BadInput, CliError
from cli.output import output_option, print_json, print_rows, table

POD_COLUMNS = [
    ("namespace", "NAMESPACE"),
    ("name", "NAME"),
    ("node", "NODE"),
    ("ips", "IP"),
    ("identity", "IDENTITY"),
    ("endpoint_id", "ENDPOINT"),
    ("labels", "LABELS"),
    ("state", "STATE"),
]
PROCESS_COLUMNS = [
    ("name", "NAME"),
    ("state", "STATE"),
    ("pid", "PID"),
    ("addresses", "ADDRESSES"),
    ("log", "LOG"),
]


@click.group()
def lab() -> None:
    """A cluster on this machine: three services and N nodes, each a network namespace, with real BPF.

    \b
    fimbria lab up
    fimbria lab run shop/web --label app=web --port http:80/TCP
    fimbria lab run shop/client --label app=client
    fimbria lab probe shop/client shop/web 80/TCP
    fimbria lab down
    """


@lab.command()
@click.option("--nodes", type=int, help="How many nodes (default 2; a lab that exists keeps its own).")
@click.option(
    "--routing",
    type=click.Choice(["tunnel", "native"]),
    help="How packets get to the pods of other nodes: in VXLAN (default), or routed as they are.",
)
@click.option("--endpoint-routes", is_flag=True, help="Give each pod a route of its own on its node.")
@click.option("--no-masquerade", is_flag=True, help="Let pods reach the world with their own addresses.")
@click.option("--ipv4-only", is_flag=True, help="No IPv6 (default: both, if the kernel has it).")
@click.option(
    "--replicas",
    type=int,
    help="How many processes each service has (default 1, on SQLite; more share a PostgreSQL server of the"
    " lab's own; a lab that exists keeps its own).",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIMBRIA_NAME=VALUE",
    help="Another setting of the loaders, or of the service that it begins with the name of "
    "(FIMBRIA_IPAM_MODE), see docs/settings.md; may be given again.",
)
@output_option()
@options.dir_option
def up(
    nodes: int | None,
    routing: Any,
    endpoint_routes: bool,
    no_masquerade: bool,
    ipv4_only: bool,
    replicas: int | None,
    settings: tuple[str, ...],
    output: str,
) -> None:
    """Start the lab, or what of it has died, and return when it is ready.

    How the nodes are connected is said when the lab is made; a lab that exists keeps its own network.
    """
    from cli.lab.network import Asked, parse_settings

    started = time.monotonic()
    made = options.lab()
    asked = Asked(
        routing=routing,
        endpoint_routes=endpoint_routes or None,
        masquerade=False if no_masquerade else None,
        ipv6=False if ipv4_only else None,
        settings=parse_settings(settings),
    )
    state = made.up(nodes, asked, replicas)
    if output == "json":
        print_json({"directory": str(made.paths.directory), **state, "processes": made.status()})
        return
    count = len(state["nodes"])
    each = f"{state['replicas']} each of " if state.get("replicas", 1) > 1 else ""
    click.echo(
        f"lab {state['lab']} in {made.paths.directory}: {each}ipam, identity, policy and {count} node"
        f"{'s' if count > 1 else ''} serve ({time.monotonic() - started:.1f} s)"
    )


@lab.command()
@output_option()
@options.dir_option
def down(output: str) -> None:
    """Remove everything that the lab made: processes, namespaces, devices, BPF pins, files."""
    made = options.lab()
    swept = made.down()
    if output == "json":
        print_json(vars(swept))
        return
    if not swept.anything:
        click.echo(f"there is no lab in {made.paths.directory}")
        return
    click.echo(
        f"removed lab {made.paths.id}: {swept.processes} processes, {len(swept.namespaces)} namespaces"
        f"{', BPF pins' if swept.pins else ''}{', files' if swept.files else ''}"
        f"{', the PostgreSQL server' if swept.postgres else ''}"
    )
    if swept.kept:
        click.echo(f"kept what is not the lab's in {made.paths.directory}: {', '.join(swept.kept)}")


@lab.command()
@output_option()
@options.dir_option
def status(output: str) -> None:
    """The lab's processes: running, serving, where; exit code 3 when one is not."""
    rows = options.lab().status()
    print_rows(rows, PROCESS_COLUMNS, output)
    if any(row["state"] != "serving" for row in rows):
        click.get_current_context().exit(errors.UNAVAILABLE)


@lab.group()
def namespace() -> None:
    """Kubernetes namespaces and their labels."""


@namespace.command("set")
@click.argument("name")
@click.argument("changes", nargs=-1, metavar="[K=V | K-]...")
@click.option(
    "--annotation",
    "annotations",
    multiple=True,
    metavar="K=V | K-",
    help="An annotation, for pods that are made from then on: fimbria.io/ip-pool names their address pool; "
    "may be given again.",
)
@output_option()
@options.dir_option
def namespace_set(name: str, changes: tuple[str, ...], annotations: tuple[str, ...], output: str) -> None:
    """Set or remove labels of a namespace; returns when every node has them in force."""
    made = options.lab()
    row: dict[str, Any] = {"name": name}
    if annotations:
        row["annotations"] = made.annotate_namespace(name, annotations)
    row["labels"] = made.set_namespace(name, changes)
    _print_namespaces([row], output)


@namespace.command("list")
@output_option()
@options.dir_option
def namespace_list(output: str) -> None:
    """Namespaces and their labels."""
    from cli.lab.pods import PodStore

    made = options.lab()
    made.nodes  # noqa: B018 - refuses a directory without a lab
    store = PodStore(made.paths)
    _print_namespaces(
        [{"name": name, "labels": store.namespace_labels(name)} for name in store.namespaces()], output
    )


def _print_namespaces(rows: list[dict[str, Any]], output: str) -> None:
    print_rows(rows, [("name", "NAMESPACE"), ("labels", "LABELS")], output)


@lab.command()
@click.argument("pod", metavar="NS/NAME")
@click.option("--node", default="", help="Node to run on (default: the one with the fewest pods).")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label; may be given again.")
@click.option(
    "--port", "ports", multiple=True, metavar="NAME:NUM/PROTO", help="A named port; may be given again."
)
@click.option(
    "--service-account",
    default="",
    metavar="NAME",
    help="Its service account: the label io.cilium.k8s.policy.serviceaccount of its identity.",
)
@click.option(
    "--annotation",
    "annotations",
    multiple=True,
    metavar="K=V",
    help="An annotation: fimbria.io/ip-pool names its address pool; may be given again.",
)
@output_option()
@options.dir_option
def run(
    pod: str,
    node: str,
    labels: tuple[str, ...],
    ports: tuple[str, ...],
    service_account: str,
    annotations: tuple[str, ...],
    output: str,
) -> None:
    """Make a pod through the CNI plugin; returns when it is reachable under its policy.

    Processes of the lab that have died are started again first.
    """
    row = options.lab().run(
        pod,
        node=node,
        labels=labels,
        ports=ports,
        service_account=service_account,
        annotations=annotations,
    )
    _print_pod(row, output)


@lab.command()
@click.argument("pod", metavar="NS/NAME")
@click.argument("changes", nargs=-1, required=True, metavar="K=V | K- ...")
@output_option()
@options.dir_option
def label(pod: str, changes: tuple[str, ...], output: str) -> None:
    """Set or remove labels of a pod; returns when every node has them in force."""
    _print_pod(options.lab().label(pod, changes), output)


def _print_pod(row: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json(row)
    else:
        print_rows([row], POD_COLUMNS, output)


@lab.command()
@click.argument("pod", metavar="NS/NAME")
@options.dir_option
def delete(pod: str) -> None:
    """Remove a pod and what runs in it."""
    options.lab().delete(pod)
    click.echo(f"pod {pod} removed")


@lab.command("list")
@output_option()
@options.dir_option
def list_pods(output: str) -> None:
    """The lab's pods."""
    print_rows(options.lab().pods(), POD_COLUMNS, output)


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@options.dir_option
@click.argument("pod", metavar="NS/NAME")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def exec_(pod: str, command: tuple[str, ...]) -> None:
    """Run a command in a pod's network namespace; its exit code is the exit code.

    Only the network is the pod's: files, /sys and bpffs stay as they are. The command ends with the pod.
    """
    from cli.lab import netns
    from cli.lab.runtime import environment
    from cli.lab.syntax import parse_pod

    if command[0] == "--":
        command = command[1:]
    if not command:
        raise BadInput("no command was given", hint="fimbria lab exec NS/NAME -- COMMAND...")
    made = options.lab()
    made.nodes  # noqa: B018 - refuses a directory without a lab
    found = made.store.get(parse_pod(pod))
    netns.enter_path(found.netns_path)
    sys.stdout.flush()
    try:
        os.execvpe(command[0], list(command), environment(made.paths, found.ref))
    except FileNotFoundError:
        errors.report(CliError(f"{command[0]}: command not found"))
        click.get_current_context().exit(127)
    except PermissionError:
        errors.report(CliError(f"{command[0]}: cannot be executed"))
        click.get_current_context().exit(126)


@lab.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.argument("port", metavar="PORT/PROTO|TYPE/ICMP")
@click.option(
    "--family", type=click.Choice(["4", "6"]), help="IP version (default 4, or that of an address given)."
)
@click.option("--timeout", type=float, default=0.5, show_default=True, help="Seconds to wait for an answer.")
@output_option()
@options.dir_option
def probe(source: str, target: str, port: str, family: str | None, timeout: float, output: str) -> None:
    """Open one connection: allowed (exit code 0) or denied (4), and why.

    FROM and TO are NS/NAME, @host (the node of the other end), @remote-node (another one), @outside (a host
    that has no route to pods) or an address. When nothing listens on the port in TO, a listener is opened for
    the probe. Addresses of 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, 198.18.0.0/15 and 2001:db8::/32
    stand for the world outside the cluster. 8/ICMP and 128/ICMPv6 are echo requests; a message of a type that
    no kernel answers is allowed when it arrives.
    """
    from cli.lab.syntax import parse_port_or_type

    number, protocol = parse_port_or_type(port)
    if not 0 < timeout <= 60:
        raise BadInput(f"--timeout {timeout:g} is not valid: expected more than 0 and at most 60 seconds")
    version = int(family) if family else None
    result = options.lab().probe(source, target, number, protocol, family=version, timeout=timeout)
    if output == "json":
        print_json(result.document())
    else:
        for line in describe(result.document()):
            click.echo(line)
    if not result.allowed:
        click.get_current_context().exit(errors.DENIED)


def describe(result: dict[str, Any]) -> list[str]:
    """A probe's result for people."""
    shown = f"{result['from']} → {result['to']} {result['port']}/{result['protocol']}"
    lines = [f"{shown}: {result['verdict'].upper()} — {result['how']} ({result['seconds'] * 1000:.1f} ms)"]
    facts = []
    if result["reason"]:
        facts.append(("reason", f"{result['reason']} ({result['direction']}, seen by {result['node']})"))
    if result["rule"]:
        facts.append(("rule", result["rule"]))
    explain = result["explain"]
    if explain is not None:
        facts += [("egress", explain["egress"]["reason"]), ("ingress", explain["ingress"]["reason"])]
    facts += [("note", note) for note in result["notes"]]
    rows = [{"name": f"  {name}", "text": text} for name, text in facts]
    return lines + table(rows, [("name", ""), ("text", "")])[1:]
