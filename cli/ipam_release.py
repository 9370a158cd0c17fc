"""Giving back what a report calls leaked, after a look whether it still is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cli.errors import CliError
from cli.ipam_check import LEAKED, Check, known_nodes, look, node_view
from cli.ipam_report import Leak

if TYPE_CHECKING:
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import Cluster

RELEASED = "released"
WOULD_RELEASE = "would be released"
GONE = "gone"
LEFT = "left"
FAILED = "failed"
UNVERIFIED = "unverified"
RACED = "released under an endpoint"

# As many as ReleaseBatch takes.
_BATCH = 4096
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of one leak of the report, and why."""

    leak: Leak
    outcome: str
    why: str = ""

    def document(self) -> dict[str, Any]:
        """The outcome as JSON."""
        leak = self.leak
        return {
            "outcome": self.outcome,
            "node": leak.node,
            "holder": leak.holder,
            "create_time": leak.create_time,
            "addresses": list(leak.addresses),
            "why": self.why,
        }


def release(cluster: Cluster, leaks: Sequence[Leak], *, dry_run: bool) -> list[Outcome]:
    """Release those of `leaks` that are leaks still, and say of each what became of it.

    Still a leak is what the same allocation holds, on a node whose loader answers and has no endpoint of the
    owner, and of which no endpoint of any node uses an address. Raises CliError when ipam does not answer.
    """
    if not leaks:
        return []
    # All nodes, whichever the report names: an address may be in use on another.
    seen = look(cluster, known_nodes(cluster), 0)
    # The addresses that are leaked now count, not those that the report lists.
    now: dict[tuple[str, str, str], list[str]] = {}
    for one in seen.findings:
        if one.kind == LEAKED:
            now.setdefault((one.node, one.holder, one.create_time), []).append(one.address)
    outcomes: list[Outcome] = []
    due: dict[str, list[Leak]] = {}
    held: dict[str, Mapping[str, str]] = {}
    for leak in leaks:
        addresses = now.get((leak.node, leak.holder, leak.create_time))
        if addresses is None:
            if leak.node not in held:
                held[leak.node] = holdings(cluster, leak.node)
            outcomes.append(_kept(leak, seen, held[leak.node].get(leak.holder)))
        elif dry_run:
            outcomes.append(Outcome(replace(leak, addresses=tuple(addresses)), WOULD_RELEASE))
        else:
            due.setdefault(leak.node, []).append(replace(leak, addresses=tuple(addresses)))
    for node, leaked in due.items():
        outcomes += _release_on(cluster, node, leaked)
    order = {(leak.node, leak.holder, leak.create_time): index for index, leak in enumerate(leaks)}
    return sorted(outcomes, key=lambda one: order[one.leak.node, one.leak.holder, one.leak.create_time])


def _kept(leak: Leak, seen: Check, held: str | None) -> Outcome:
    """Why a leak of the report is not one any more, or cannot be said to be. `held` is the time of what its
    owner holds now.
    """
    view = seen.nodes.get(leak.node)
    if held is None:
        return Outcome(leak, GONE, "nothing is held by this owner any more")
    if held != leak.create_time:
        return Outcome(leak, GONE, f"the owner holds a later allocation, of {held}")
    if view is None:
        return Outcome(leak, UNVERIFIED, "the node is not registered and has no loader")
    if view.problem:
        return Outcome(leak, UNVERIFIED, view.problem)
    if leak.holder in view.endpoints:
        return Outcome(leak, LEFT, "the node has an endpoint of this owner")
    return Outcome(leak, LEFT, "an endpoint uses one of its addresses")


def holdings(cluster: Cluster, node: str, owner: str = "") -> dict[str, str]:
    """Who holds addresses on `node`, with the time of the allocation; with `owner`, only that one."""
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import pages

    request = ipam_pb2.ListAddressesRequest(node=node, owner=owner)
    listed = pages(cluster.addresses.ListAddresses, request, "addresses")
    return {item.owner: item.create_time.ToJsonString() for item in listed}


def _release_on(cluster: Cluster, node: str, leaks: Sequence[Leak]) -> Iterator[Outcome]:
    """Release leaks of one node; an endpoint that was made meanwhile is found out afterwards."""
    from cli.client import call

    for start in range(0, len(leaks), _BATCH):
        batch = leaks[start : start + _BATCH]
        try:
            answer = call(cluster.addresses.ReleaseBatch, _request(node, batch), timeout=_TIMEOUT)
        except CliError as error:
            yield from (Outcome(leak, FAILED, error.message) for leak in batch)
            continue
        still: Mapping[str, str] = {}
        if answer.released != len(batch):
            still = holdings(cluster, node)
        # A runtime that repeats an ADD just now is given what its owner holds: then it must be told.
        present = node_view(cluster, node).endpoints
        for leak in batch:
            if leak.holder in still:
                yield Outcome(leak, GONE, f"the owner holds a later allocation, of {still[leak.holder]}")
            elif leak.holder in present and _was_in_use(cluster, leak, present[leak.holder]):
                yield Outcome(leak, RACED, "an endpoint of this owner was made at that moment: make it anew")
            else:
                yield Outcome(leak, RELEASED)


def _was_in_use(cluster: Cluster, leak: Leak, used: Sequence[str]) -> bool:
    """Whether an endpoint that has appeared has, or may yet be given, an address that was released."""
    if used:
        return not set(used).isdisjoint(leak.addresses)
    # It is being made: either it has asked for addresses since, or it may have been told the old ones.
    return not holdings(cluster, leak.node, leak.holder)


def _request(node: str, leaks: Iterable[Leak]) -> ipam_pb2.ReleaseBatchRequest:
    from fimbria.ipam.v1 import ipam_pb2

    request = ipam_pb2.ReleaseBatchRequest(node=node)
    for leak in leaks:
        holding = request.holdings.add(owner=leak.holder)
        holding.if_create_time.FromJsonString(leak.create_time)
    return request
