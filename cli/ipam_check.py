"""Who holds which address against who uses it, over all nodes: what `fimbria ipam check` finds.

The nodes' loaders say which endpoints they have, the ipam service compares each node's with what is held
there. A node that cannot be asked, or does not know all that it has, is unverified: nothing of it is called
leaked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cli.errors import BadInput, CliError

if TYPE_CHECKING:
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import Cluster

LEAKED = "leaked"
SEVERAL_NODES = "used_on_several_nodes"
KINDS = (LEAKED, "not_held", "held_by_another", "used_twice", SEVERAL_NODES)

# What is found is looked at again after this long: a pod that was going just then is gone by then.
SETTLE_SECONDS = 0.5
_AT_ONCE = 8
_CHECK_TIMEOUT = 60.0
_UNITS = {"s": 1, "m": 60, "h": 3600}
T = TypeVar("T")


@dataclass(frozen=True)
class NodeView:
    """What a node's loader says: the addresses of each owner. `problem` says why that may not be all."""

    node: str
    endpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problem: str = ""
    checked: int = 0
    """How many owners' allocations were compared."""


@dataclass(frozen=True)
class Finding:
    """One difference; `users` are (node, owner) of the endpoints that use the address."""

    kind: str
    address: str
    node: str
    holder: str = ""
    holder_node: str = ""
    create_time: str = ""
    users: tuple[tuple[str, str], ...] = ()

    def document(self) -> dict[str, Any]:
        """The finding as JSON."""
        users = [{"node": node, "owner": owner} for node, owner in self.users]
        return {**vars(self), "users": users}


@dataclass(frozen=True)
class Check:
    """Nodes by name, and what was found."""

    nodes: Mapping[str, NodeView]
    findings: Sequence[Finding] = ()

    @property
    def unverified(self) -> list[NodeView]:
        """Nodes of which not all is known."""
        return [view for view in self.nodes.values() if view.problem]

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "nodes": [
                {
                    "node": view.node,
                    "verified": not view.problem,
                    "problem": view.problem,
                    "endpoints": len(view.endpoints),
                    "checked": view.checked,
                }
                for view in self.nodes.values()
            ],
            "findings": [finding.document() for finding in self.findings],
        }


def parse_seconds(text: str, option: str) -> int:
    """`60s`, `5m`, `1h` or `0` in seconds. Raises BadInput."""
    match = re.fullmatch(r"(\d{1,7})([smh])|0", text)
    seconds = 0 if match is None or match[1] is None else int(match[1]) * _UNITS[match[2]]
    if match is None or seconds > 31_536_000:
        raise BadInput(
            f"{option} {text!r} is not valid: expected a number and s, m or h (60s), a year at most"
        )
    return seconds


def check(cluster: Cluster, nodes: Sequence[str], min_age: int, *, settle: float | None = None) -> Check:
    """Check `nodes`, all of them if none is named; what is found was there twice, `settle` seconds apart.

    Allocations younger than `min_age` seconds are not called leaked. Raises BadInput for a node that nobody
    knows, CliError when the ipam service does not answer.
    """
    first = look(cluster, known_nodes(cluster, nodes), min_age)
    if not first.findings:
        return first
    time.sleep(SETTLE_SECONDS if settle is None else settle)
    concerned = {finding.node for finding in first.findings}
    concerned |= {node for finding in first.findings for node, _ in finding.users}
    second = look(cluster, [node for node in first.nodes if node in concerned], min_age)
    still = set(second.findings)
    return Check({**first.nodes, **second.nodes}, [one for one in first.findings if one in still])


def known_nodes(cluster: Cluster, named: Sequence[str] = ()) -> list[str]:
    """The nodes that are registered or have a loader; of those, the named ones. Raises BadInput."""
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import pages

    registered = pages(cluster.nodes.ListNodes, ipam_pb2.ListNodesRequest(), "nodes")
    known = list(dict.fromkeys([*(node.name for node in registered), *cluster.targets.loaders]))
    for node in named:
        if node not in known:
            raise BadInput(
                f"node {node!r} is not known; the cluster's nodes: {', '.join(known) or 'none'}",
                reason="NODE_NOT_FOUND",
            )
    return list(dict.fromkeys(named)) or known


def look(cluster: Cluster, nodes: Sequence[str], min_age: int) -> Check:
    """One look at `nodes`: what they say, and where that differs from what is held."""
    views = at_once(lambda node: node_view(cluster, node), nodes)
    compared = at_once(lambda view: _compared(cluster, view, min_age), views)
    found = [finding for _, findings in compared for finding in findings]
    checked = {view.node: view for view, _ in compared}
    users = users_of(checked.values())
    used = {address for address, using in users.items() if using}
    # Releasing what an owner has would take it from under whoever uses a part of it, on whichever node.
    contested = {(one.node, one.holder) for one in found if one.kind == LEAKED and one.address in used}
    found = [
        one
        for one in found
        if one.kind != LEAKED or ((one.node, one.holder) not in contested and not checked[one.node].problem)
    ]
    found += _on_several_nodes(users, found)
    return Check(checked, sorted(found, key=lambda one: KINDS.index(one.kind)))


def node_view(cluster: Cluster, node: str) -> NodeView:
    """What the loader of `node` says; why it does not, as the view's problem."""
    from fimbria.loader.v1 import loader_pb2

    from cli.client import call, pages

    if node not in cluster.targets.loaders:
        return NodeView(node, problem="its loader's address is not known")
    try:
        status = call(cluster.datapath(node).GetStatus, loader_pb2.GetStatusRequest())
        if status.node != node:
            return NodeView(node, problem=f"its loader's address leads to the loader of {status.node!r}")
        listed = pages(cluster.endpoints(node).ListEndpoints, loader_pb2.ListEndpointsRequest(), "endpoints")
    except CliError as error:
        return NodeView(node, problem=f"its loader does not answer: {error.message}")
    endpoints = {
        f"{item.container_id}/{item.ifname}": tuple(filter(None, (item.ipv4, item.ipv6))) for item in listed
    }
    # A record that is set aside may be that of a pod that runs.
    damaged = next((problem for problem in status.problems if "cannot be read" in problem), "")
    return NodeView(node, endpoints, damaged and f"it may have endpoints that it does not show: {damaged}")


def users_of(views: Iterable[NodeView]) -> dict[str, list[tuple[str, str]]]:
    """(node, owner) of every endpoint that uses an address."""
    users: dict[str, list[tuple[str, str]]] = {}
    for view in views:
        for owner, addresses in view.endpoints.items():
            for address in addresses:
                users.setdefault(address, []).append((view.node, owner))
    return users


def at_once(action: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
    """What `action` returns for each item; several are worked on at a time."""
    if len(items) < 2:
        return [action(item) for item in items]
    with ThreadPoolExecutor(min(_AT_ONCE, len(items))) as workers:
        return list(workers.map(action, items))


def _compared(cluster: Cluster, view: NodeView, min_age: int) -> tuple[NodeView, list[Finding]]:
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import call

    if view.problem and not view.endpoints:
        return view, []
    request = ipam_pb2.CheckAddressesRequest(node=view.node, min_age_seconds=min_age)
    for owner, addresses in view.endpoints.items():
        request.endpoints.add(owner=owner, addresses=addresses)
    try:
        answer = call(cluster.addresses.CheckAddresses, request, timeout=_CHECK_TIMEOUT)
    except CliError as error:
        if error.reason != "NODE_NOT_FOUND":
            raise
        return replace(view, problem="it is not registered with the ipam service"), []
    return replace(view, checked=answer.checked), [_finding(view.node, one) for one in answer.findings]


def _finding(node: str, message: ipam_pb2.AddressFinding) -> Finding:
    from fimbria.ipam.v1 import ipam_pb2

    return Finding(
        ipam_pb2.AddressFinding.Kind.Name(message.kind).removeprefix("KIND_").lower(),
        message.address,
        node,
        message.holder,
        message.holder_node,
        message.create_time.ToJsonString() if message.HasField("create_time") else "",
        tuple(sorted((node, owner) for owner in message.users)),
    )


def _on_several_nodes(
    users: Mapping[str, Sequence[tuple[str, str]]], found: Iterable[Finding]
) -> list[Finding]:
    """Addresses that endpoints of more than one node use, with their holder where it was found."""
    doubled = {address: using for address, using in users.items() if len({node for node, _ in using}) > 1}
    if not doubled:
        return []
    holders = {one.address: one for one in found if one.holder}
    result = []
    for address, using in sorted(doubled.items()):
        held = holders.get(address)
        node = min(using)[0]
        result.append(
            Finding(
                SEVERAL_NODES,
                address,
                held.holder_node if held else node,
                held.holder if held else "",
                held.holder_node if held else "",
                held.create_time if held else "",
                tuple(sorted(using)),
            )
        )
    return result
