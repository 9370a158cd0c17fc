"""`fimbria endpoint list|get|regenerate`: the pods' interfaces that the nodes' datapaths serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.commands import options
from cli.errors import BadInput, CliError
from cli.output import cell, output_option, print_json, print_rows, table

if TYPE_CHECKING:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import Cluster

# A rebuild compiles and verifies the node's programs.
_REGENERATE_SECONDS = 120.0
_LEVELS = ("policy", "reload", "rebuild")


@click.group()
def endpoint() -> None:
    """Endpoints: the pods' interfaces that the nodes' datapaths serve."""


@endpoint.command("list")
@click.option("--node", "nodes", multiple=True, help="Only endpoints of this node; may be given again.")
@output_option()
@options.dir_option
def list_endpoints(nodes: tuple[str, ...], output: str) -> None:
    """The endpoints of every node; one whose loader does not answer is passed over with a warning."""
    from fimbria.loader.v1 import loader_pb2

    from cli.client import pages

    rows: list[dict[str, Any]] = []
    failed: CliError | None = None
    with options.cluster() as cluster:
        for node in nodes or tuple(cluster.targets.loaders):
            stub = cluster.endpoints(node)
            try:
                listed = pages(stub.ListEndpoints, loader_pb2.ListEndpointsRequest(), "endpoints")
            except CliError as error:
                failed = error
                click.echo(f"warning: the loader of {node} does not answer: {error.message}", err=True)
                continue
            rows += [_endpoint_row(item) for item in listed]
    columns = [
        ("node", "NODE"),
        ("id", "ENDPOINT"),
        ("pod", "POD"),
        ("ipv4", "IP"),
        ("ipv6", "IPV6"),
        ("identity", "IDENTITY"),
        ("state", "STATE"),
        ("policy_revision", "POLICY"),
        ("host_device", "DEVICE"),
        ("last_error", "ERROR"),
    ]
    print_rows(rows, columns, output)
    if failed is not None:
        click.get_current_context().exit(failed.exit_code)


def _endpoint_row(item: loader_pb2.Endpoint) -> dict[str, Any]:
    from fimbria.loader.v1 import loader_pb2

    return {
        "node": item.node,
        "id": item.id,
        "pod": f"{item.pod_namespace}/{item.pod_name}",
        "ipv4": item.ipv4,
        "ipv6": item.ipv6,
        "mac": item.mac,
        "identity": item.identity,
        "subject": item.subject,
        "labels": list(item.labels),
        "state": loader_pb2.EndpointState.Name(item.state).removeprefix("ENDPOINT_STATE_").lower(),
        "last_error": item.last_error,
        "policy_revision": item.policy_revision,
        "ipcache_revision": item.ipcache_revision,
        "host_device": item.host_device,
        "ifindex": item.ifindex,
        "ifname": item.ifname,
        "netns": item.netns,
        "container_id": item.container_id,
        "create_time": item.create_time.ToJsonString(),
        "rate": item.rate,
    }


@endpoint.command("get")
@click.argument("endpoint", metavar="ID|NAMESPACE/NAME")
@click.option("--node", "nodes", multiple=True, help="Only look on this node; may be given again.")
@output_option()
@options.dir_option
def get_endpoint(endpoint: str, nodes: tuple[str, ...], output: str) -> None:
    """All of one endpoint, and its last regenerations.

    A number names an endpoint of one node: give --node where several nodes have one of that number.
    """
    with options.cluster() as cluster:
        _, found = _find(cluster, endpoint, nodes)
    row = _endpoint_row(found) | {"regenerations": [_regeneration_row(each) for each in found.regenerations]}
    if output == "json":
        print_json(row)
        return
    history = row.pop("regenerations")
    width = max(map(len, row))
    for name, value in row.items():
        click.echo(f"{name.replace('_', ' '):<{width}}  {cell(value)}")
    click.echo("")
    for line in table(history, _HISTORY):
        click.echo(line)


@endpoint.command("regenerate")
@click.argument("endpoint", metavar="ID|NAMESPACE/NAME")
@click.option(
    "--level",
    type=click.Choice(_LEVELS),
    default="reload",
    show_default=True,
    help="policy: map entries only. reload: programs from the cache too. rebuild: the node's programs are "
    "compiled anew, and every device of the node is moved to them.",
)
@click.option("--node", "nodes", multiple=True, help="Only look on this node; may be given again.")
@output_option()
@options.dir_option
def regenerate_endpoint(endpoint: str, level: str, nodes: tuple[str, ...], output: str) -> None:
    """Write an endpoint's kernel state anew, and say what that took."""
    from fimbria.loader.v1 import loader_pb2

    from cli.client import call

    with options.cluster() as cluster:
        node, found = _find(cluster, endpoint, nodes)
        request = loader_pb2.RegenerateEndpointRequest(
            id=found.id, level=loader_pb2.RegenerationLevel.Value(f"REGENERATION_LEVEL_{level.upper()}")
        )
        stub = cluster.endpoints(node)
        answer = call(stub.RegenerateEndpoint, request, timeout=_REGENERATE_SECONDS)
    rows = [
        {"node": node, "id": answer.id, "pod": f"{answer.pod_namespace}/{answer.pod_name}"}
        | _regeneration_row(each)
        for each in answer.regenerations
        if "operator" in each.cause
    ][:1]
    print_rows(rows, [("node", "NODE"), ("id", "ENDPOINT"), ("pod", "POD"), *_HISTORY], output)


_HISTORY = [
    ("level", "LEVEL"),
    ("state", "STATE"),
    ("cause", "CAUSE"),
    ("attempt", "ATTEMPT"),
    ("start_time", "BEGUN"),
    ("milliseconds", "MS"),
    ("retry_time", "RETRY"),
    ("trace_id", "TRACE"),
    ("error", "ERROR"),
]


def _find(cluster: Cluster, name: str, nodes: tuple[str, ...]) -> tuple[str, loader_pb2.Endpoint]:
    """The one endpoint of a number or a pod's name. Raises BadInput when there is none, or more than one."""
    from fimbria.loader.v1 import loader_pb2

    from cli.client import pages

    found = [
        (node, item)
        for node in nodes or tuple(cluster.targets.loaders)
        for item in pages(
            cluster.endpoints(node).ListEndpoints, loader_pb2.ListEndpointsRequest(), "endpoints"
        )
        if name in (str(item.id), f"{item.pod_namespace}/{item.pod_name}")
    ]
    if not found:
        raise BadInput(
            f"there is no endpoint {name!r}",
            reason="ENDPOINT_NOT_FOUND",
            hint="`fimbria endpoint list` shows all",
        )
    if len(found) > 1:
        where = ", ".join(f"{item.id} on {node}" for node, item in found)
        raise BadInput(
            f"{name!r} is more than one endpoint: {where}", hint="name one with --node, or its number"
        )
    return found[0]


def _regeneration_row(item: loader_pb2.Regeneration) -> dict[str, Any]:
    from fimbria.loader.v1 import loader_pb2

    level = loader_pb2.RegenerationLevel.Name(item.level).removeprefix("REGENERATION_LEVEL_").lower()
    state = loader_pb2.RegenerationState.Name(item.state).removeprefix("REGENERATION_STATE_").lower()
    return {
        "level": level,
        "state": state,
        "cause": item.cause,
        "attempt": item.attempt,
        "start_time": item.start_time.ToJsonString() if item.HasField("start_time") else "",
        "milliseconds": round(item.duration.ToNanoseconds() / 1e6, 3),
        "retry_time": item.retry_time.ToJsonString() if item.HasField("retry_time") else "",
        "trace_id": item.trace_id,
        "error": item.error,
    }
