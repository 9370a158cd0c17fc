"""`fimbria status`: the whole cluster at a glance."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import click

from cli import errors
from cli.commands import options
from cli.errors import CliError
from cli.output import output_option, print_json, print_rows

if TYPE_CHECKING:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import Cluster

COLUMNS = [
    ("name", "NAME"),
    ("state", "STATE"),
    ("uptime", "UPTIME"),
    ("policy_revision", "POLICY"),
    ("policy_lag", "LAG"),
    ("identity_revision", "IDENTITY"),
    ("ipcache_revision", "IPCACHE"),
    ("node_revision", "NODES"),
    ("endpoints", "ENDPOINTS"),
    ("datapath", "DATAPATH"),
    ("target", "TARGET"),
    ("problem", "PROBLEM"),
]
_TIMEOUT = 3.0


@click.command()
@output_option()
@options.dir_option
def status(output: str) -> None:
    """Every service and loader: serving? since when, at which revisions, how far behind.

    LAG is how many policy revisions a node has not put into force yet. PROBLEM also tells of address pools
    and identities that are about to run out. Exit code 3 when something does not
    serve.
    """
    with options.cluster() as cluster:
        rows = cluster_status(cluster)
    if output == "json":
        print_json(rows)
    else:
        print_rows(rows, COLUMNS, output)
    if any(row["state"] != "serving" for row in rows):
        click.get_current_context().exit(errors.UNAVAILABLE)


def cluster_status(cluster: Cluster) -> list[dict[str, Any]]:
    """One row for each service and each node's loader."""
    targets = cluster.targets
    rows = [_probe(cluster, name, target) for name, target in targets.services.items()]
    by_name = {row["name"]: row for row in rows}
    current = _revisions(cluster, by_name)
    _add_capacity(cluster, by_name)
    for node, target in targets.loaders.items():
        row = _probe(cluster, node, target)
        if row["state"] == "serving":
            _add_loader(cluster, node, row, current)
        rows.append(row)
    return rows


def _probe(cluster: Cluster, name: str, target: str) -> dict[str, Any]:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from cli.client import call

    row: dict[str, Any] = {"name": name, "target": target, "state": "unreachable", "problem": ""}
    try:
        stub: Any = health_pb2_grpc.HealthStub(cluster.channel(target))
        answer = call(stub.Check, health_pb2.HealthCheckRequest(), timeout=_TIMEOUT)
        row["state"] = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status).lower()
    except CliError as error:
        row["problem"] = error.message
    return row


def _revisions(cluster: Cluster, rows: dict[str, dict[str, Any]]) -> int | None:
    """Put the services' own revisions into their rows; the policy revision that nodes should have."""
    from fimbria.identity.v1 import identity_pb2
    from fimbria.ipam.v1 import ipam_pb2
    from fimbria.policy.v1 import policy_pb2

    from cli.client import call

    def serving(name: str) -> bool:
        return name in rows and rows[name]["state"] == "serving"

    if serving("ipam"):
        nodes = call(cluster.nodes.ListNodes, ipam_pb2.ListNodesRequest(page_size=1), timeout=_TIMEOUT)
        rows["ipam"]["node_revision"] = nodes.revision
    if serving("identity"):
        identities = identity_pb2.ListIdentitiesRequest(page_size=1)
        listed = call(cluster.identities.ListIdentities, identities, timeout=_TIMEOUT)
        rows["identity"]["identity_revision"] = listed.revision
        entries = identity_pb2.ListIpCacheEntriesRequest(page_size=1)
        rows["identity"]["ipcache_revision"] = call(
            cluster.ipcache.ListIpCacheEntries, entries, timeout=_TIMEOUT
        ).revision
    if not serving("policy"):
        return None
    enforcement = call(
        cluster.policies.ListEnforcement, policy_pb2.ListEnforcementRequest(page_size=1), timeout=_TIMEOUT
    )
    rows["policy"]["policy_revision"] = enforcement.revision.policy
    rows["policy"]["identity_revision"] = enforcement.revision.identity
    return int(enforcement.revision.policy)


def _add_capacity(cluster: Cluster, rows: dict[str, dict[str, Any]]) -> None:
    """Put what is about to run out into the problems of the services that give it."""
    from fimbria.identity.v1 import identity_pb2
    from fimbria.ipam.v1 import ipam_pb2

    from cli.capacity import pool_problems, space_problems
    from cli.client import call, pages

    def pools() -> list[str]:
        listed = pages(cluster.pools.ListPools, ipam_pb2.ListPoolsRequest(), "pools", timeout=_TIMEOUT)
        requests = [ipam_pb2.GetPoolRequest(name=pool.name) for pool in listed]
        return pool_problems(call(cluster.pools.GetPool, one, timeout=_TIMEOUT) for one in requests)

    def spaces() -> list[str]:
        request = identity_pb2.GetIdentityStatusRequest()
        return space_problems(call(cluster.identities.GetIdentityStatus, request, timeout=_TIMEOUT))

    for name, found in (("ipam", pools), ("identity", spaces)):
        if name in rows and rows[name]["state"] == "serving":
            # What cannot be said is no reason to say nothing of the rest.
            with contextlib.suppress(CliError):
                rows[name]["problem"] = "; ".join(found())


def _add_loader(cluster: Cluster, node: str, row: dict[str, Any], current: int | None) -> None:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import call, cause

    told = call(cluster.datapath(node).GetStatus, loader_pb2.GetStatusRequest(), timeout=_TIMEOUT)
    watches = {watch.name: watch for watch in told.watches}
    row["endpoints"] = told.endpoints
    row["uptime"] = _duration(time.time() - told.start_time.seconds)
    row["lost_events"] = told.lost_events
    row |= _datapath(told)
    for name, key in (
        ("policy", "policy_revision"),
        ("ipcache", "ipcache_revision"),
        ("nodes", "node_revision"),
    ):
        if name in watches:
            row[key] = watches[name].revision
    if "policy" in watches:
        row["identity_revision"] = watches["policy"].identity_revision
        if current is not None:
            row["policy_lag"] = max(0, current - watches["policy"].revision)
    row["synchronized"] = told.synchronized
    row["watches"] = [
        {
            "name": watch.name,
            "connected": watch.connected,
            "synchronized": watch.synchronized,
            "revision": watch.revision,
            "sync_time": watch.sync_time.ToJsonString() if watch.HasField("sync_time") else "",
            "error": cause(watch.error),
        }
        for watch in told.watches
    ]
    problems = [
        f"{watch.name}: {cause(watch.error) or 'not connected'}"
        for watch in told.watches
        if not watch.connected
    ]
    # What the node tells of its watches is said above, in fewer words.
    problems += [problem for problem in told.problems if not problem.startswith("the watch of ")]
    if not told.synchronized and not problems:
        problems.append("not synchronized yet")
    row["problem"] = "; ".join(problems)


def _datapath(told: loader_pb2.DatapathStatus) -> dict[str, Any]:
    """What the node's datapath was set to, field by field, and in a word for each that is not as usual."""
    from fimbria.loader.v1 import loader_pb2

    routing = loader_pb2.RoutingMode.Name(told.routing_mode).removeprefix("ROUTING_MODE_").lower()
    enforcement = loader_pb2.PolicyEnforcement.Name(told.policy_enforcement)
    enforcement = enforcement.removeprefix("POLICY_ENFORCEMENT_").lower()
    words = [routing]
    for word, applies in (
        ("endpoint-routes", told.endpoint_routes),
        ("no-host-routing", not told.host_routing),
        ("no-masquerade", not told.masquerade),
        ("no-ipv6", not told.router_ipv6),
        (f"policy-{enforcement}", enforcement != "default"),
        ("audit", told.policy_audit),
    ):
        words += [word] if applies else []
    return {
        "datapath": words,
        "node_ipv4": told.node_ipv4,
        "node_ipv6": told.node_ipv6,
        "routing_mode": routing,
        "endpoint_routes": told.endpoint_routes,
        "host_routing": told.host_routing,
        "masquerade": told.masquerade,
        "policy_enforcement": enforcement,
        "policy_audit": told.policy_audit,
        "devices": list(told.devices),
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
