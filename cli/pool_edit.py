"""Changes of a pool: read, compute what it shall consist of, write it unless somebody was faster."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from cli.errors import BadInput, CliError

if TYPE_CHECKING:
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import Cluster

Edit: TypeAlias = "Callable[[ipam_pb2.Pool, ipam_pb2.UpdatePoolRequest], None]"
_ATTEMPTS = 10


def update(cluster: Cluster, name: str, edit: Edit) -> ipam_pb2.Pool:
    """The pool after `edit` has changed the request that holds what it consists of now.

    Whoever changes the pool meanwhile is waited for and built upon. Raises BadInput and CliError.
    """
    from fimbria.ipam.v1 import ipam_pb2

    from cli.client import call

    changed: CliError | None = None
    for _ in range(_ATTEMPTS):
        pool = call(cluster.pools.GetPool, ipam_pb2.GetPoolRequest(name=name))
        request = request_of(pool)
        edit(pool, request)
        if request == request_of(pool):
            return pool
        try:
            return call(cluster.pools.UpdatePool, request)
        except CliError as error:
            if error.reason != "POOL_CHANGED":
                raise
            changed = error
    assert changed is not None
    raise changed


def request_of(pool: ipam_pb2.Pool) -> ipam_pb2.UpdatePoolRequest:
    """What leaves the pool as it is."""
    from fimbria.ipam.v1 import ipam_pb2

    request = ipam_pb2.UpdatePoolRequest(
        name=pool.name, cidrs=pool.cidrs, excluded=pool.excluded, expected_revision=pool.revision
    )
    if pool.HasField("pod_selector"):
        request.pod_selector.CopyFrom(pool.pod_selector)
    if pool.HasField("namespace_selector"):
        request.namespace_selector.CopyFrom(pool.namespace_selector)
    return request


def extend(cidrs: Sequence[str]) -> Edit:
    """Put `cidrs` into service, those that are draining too; the ones that are in service stay."""
    wanted = [_cidr(text) for text in cidrs]

    def edit(pool: ipam_pb2.Pool, request: ipam_pb2.UpdatePoolRequest) -> None:
        request.cidrs.extend(cidr for cidr in dict.fromkeys(wanted) if cidr not in pool.cidrs)

    return edit


def drain(cidrs: Sequence[str]) -> Edit:
    """Take `cidrs` out of service; those that are draining already stay so."""
    unwanted = [_cidr(text) for text in cidrs]

    def edit(pool: ipam_pb2.Pool, request: ipam_pb2.UpdatePoolRequest) -> None:
        draining = {each.cidr for each in pool.draining}
        for cidr in unwanted:
            if cidr not in pool.cidrs and cidr not in draining:
                raise BadInput(
                    f"pool {pool.name!r} has no CIDR {cidr}; it has {', '.join(pool.cidrs)}",
                    reason="CIDR_NOT_FOUND",
                )
        left = [cidr for cidr in pool.cidrs if cidr not in unwanted]
        if not left:
            raise BadInput(
                f"pool {pool.name!r} would have no CIDR in service; expected at least one to stay",
                hint=f"`fimbria pool extend {pool.name} CIDR` adds one; `fimbria pool delete {pool.name}`"
                " removes a pool of which no node holds a part",
            )
        request.cidrs[:] = left

    return edit


def exclude(texts: Sequence[str]) -> Edit:
    """Let nobody have the addresses that `texts` name: CIDRs, addresses, ranges FIRST-LAST."""
    wanted = {_span(text): text for text in texts}

    def edit(pool: ipam_pb2.Pool, request: ipam_pb2.UpdatePoolRequest) -> None:
        present = {_span(text) for text in pool.excluded}
        request.excluded.extend(text for span, text in wanted.items() if span not in present)

    return edit


def include(texts: Sequence[str]) -> Edit:
    """Undo exclusions, which `texts` name as they were made."""
    unwanted = {_span(text): text for text in texts}

    def edit(pool: ipam_pb2.Pool, request: ipam_pb2.UpdatePoolRequest) -> None:
        present = {_span(text) for text in pool.excluded}
        for span, text in unwanted.items():
            if span not in present:
                raise BadInput(
                    f"pool {pool.name!r} does not exclude {text}; it excludes"
                    f" {', '.join(pool.excluded) or 'nothing'}",
                    reason="EXCLUSION_NOT_FOUND",
                )
        request.excluded[:] = [text for text in pool.excluded if _span(text) not in unwanted]

    return edit


def select(
    pods: ipam_pb2.LabelSelector | None,
    namespaces: ipam_pb2.LabelSelector | None,
    *,
    no_pods: bool = False,
    no_namespaces: bool = False,
) -> Edit:
    """Say which pods the pool is for; None leaves a selector as it is, unless it is to go."""

    def edit(_: ipam_pb2.Pool, request: ipam_pb2.UpdatePoolRequest) -> None:
        if pods is not None:
            request.pod_selector.CopyFrom(pods)
        elif no_pods:
            request.ClearField("pod_selector")
        if namespaces is not None:
            request.namespace_selector.CopyFrom(namespaces)
        elif no_namespaces:
            request.ClearField("namespace_selector")

    return edit


def row(pool: ipam_pb2.Pool) -> dict[str, Any]:
    """The pool as JSON; `usage` is empty where the service did not fill it in."""
    from cli.selectors import selector_text

    return {
        "name": pool.name,
        "cidrs": list(pool.cidrs),
        "node_mask_size": pool.node_mask_size,
        "node_mask_size_ipv6": pool.node_mask_size_ipv6,
        "node_masks": [f"/{size}" for size in (pool.node_mask_size, pool.node_mask_size_ipv6) if size],
        "node_cidrs_total": pool.node_cidrs_total,
        "node_cidrs_used": pool.node_cidrs_used,
        "excluded": list(pool.excluded),
        "pod_selector": selector_text(pool.pod_selector) if pool.HasField("pod_selector") else None,
        "namespace_selector": selector_text(pool.namespace_selector)
        if pool.HasField("namespace_selector")
        else None,
        "draining": [
            {"cidr": each.cidr, "node_cidrs": each.node_cidrs, "addresses": each.addresses}
            for each in pool.draining
        ],
        "usage": [
            {
                "family": each.family,
                "node_cidrs_total": each.node_cidrs_total,
                "node_cidrs_used": each.node_cidrs_used,
                "capacity": each.capacity,
                "held": each.held,
                "on_hold": each.on_hold,
                "free": max(0, each.capacity - each.held - each.on_hold),
                "excluded": each.excluded,
            }
            for each in pool.usage
        ],
        "revision": pool.revision,
    }


def _cidr(text: str) -> str:
    """`text` in canonical form. Raises BadInput."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise BadInput(f"CIDR {text!r} is not valid: {_reason(error)}") from None


def _span(text: str) -> tuple[int, int, int]:
    """Family, first and last address of a CIDR, an address or a range. Raises BadInput."""
    try:
        first, last = _ends(text)
    except ValueError as error:
        raise BadInput(f"{text!r} names no addresses: {_reason(error)}") from None
    if first.version != last.version or int(first) > int(last):
        raise BadInput(
            f"{text!r} names no addresses: expected FIRST-LAST of one family, FIRST not above LAST"
        )
    return first.version, int(first), int(last)


_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def _ends(text: str) -> tuple[_Address, _Address]:
    if "-" in text:
        head, _, tail = text.partition("-")
        return ipaddress.ip_address(head.strip()), ipaddress.ip_address(tail.strip())
    network = ipaddress.ip_network(text)
    return network.network_address, network.broadcast_address


def _reason(error: ValueError) -> str:
    if "host bits" in str(error):
        return "it has host bits set; expected the network itself"
    return "expected one like 10.0.0.0/24, 10.0.0.7 or 10.0.0.4-10.0.0.9, or fd00::/64"
