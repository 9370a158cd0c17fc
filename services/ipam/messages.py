"""Values as the messages of the API show them, and what messages say as values."""

from __future__ import annotations

from typing import cast

from fimbria.ipam.v1 import ipam_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.ipam.family import Address, family_name
from services.ipam.model import LabelSelector, Node, Operator, Pool, Requirement, Workload
from services.ipam.selectors import check_selector

MAX_UINT64 = (1 << 64) - 1


def text(address: Address | None) -> str:
    """The address, empty when there is none."""
    return "" if address is None else str(address)


def timestamp(nanoseconds: int) -> Timestamp:
    """Unix time in nanoseconds."""
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


def node_message(node: Node) -> ipam_pb2.Node:
    """A node as the API shows it."""
    return ipam_pb2.Node(
        name=node.name,
        ipv4=str(node.ipv4),
        pool=node.pool,
        pod_cidrs=map(str, node.pod_cidrs),
        router_ipv4=text(node.router(4)),
        revision=node.revision,
        create_time=timestamp(node.created_ns),
        ipv6=text(node.ipv6),
        router_ipv6=text(node.router(6)),
        cidrs=[
            ipam_pb2.NodeCidr(cidr=str(one.network), pool=one.pool, draining=one.draining)
            for one in node.cidrs
        ],
    )


def pool_message(pool: Pool) -> ipam_pb2.Pool:
    """A pool as the API shows it."""
    return ipam_pb2.Pool(
        name=pool.name,
        cidrs=map(str, pool.cidrs),
        node_mask_size=pool.node_mask_size,
        node_cidrs_total=min(pool.capacity, MAX_UINT64),
        node_cidrs_used=pool.used,
        node_mask_size_ipv6=pool.node_mask_size_ipv6,
        excluded=[span.text for span in pool.excluded],
        pod_selector=_selector_message(pool.pod_selector),
        namespace_selector=_selector_message(pool.namespace_selector),
        draining=[
            ipam_pb2.DrainingCidr(cidr=str(one.network), node_cidrs=one.node_cidrs, addresses=one.addresses)
            for one in pool.draining
        ],
        usage=[
            ipam_pb2.PoolUsage(
                family=family_name(one.family),
                node_cidrs_total=min(one.node_cidrs_total, MAX_UINT64),
                node_cidrs_used=one.node_cidrs_used,
                capacity=min(one.capacity, MAX_UINT64),
                held=one.held,
                on_hold=one.on_hold,
                excluded=min(one.excluded, MAX_UINT64),
            )
            for one in pool.usage
        ],
        revision=pool.revision,
    )


def pod_selector(
    request: ipam_pb2.CreatePoolRequest | ipam_pb2.UpdatePoolRequest,
) -> LabelSelector | None:
    """What the request selects pods by; raises InvalidArgument (SELECTOR_INVALID)."""
    return _selector(request.pod_selector, "pod_selector") if request.HasField("pod_selector") else None


def namespace_selector(
    request: ipam_pb2.CreatePoolRequest | ipam_pb2.UpdatePoolRequest,
) -> LabelSelector | None:
    """What the request selects namespaces by; raises InvalidArgument (SELECTOR_INVALID)."""
    if not request.HasField("namespace_selector"):
        return None
    return _selector(request.namespace_selector, "namespace_selector")


def workload_of(message: ipam_pb2.Workload) -> Workload:
    """For whom an address is wanted."""
    return Workload(
        namespace=message.namespace,
        name=message.name,
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        namespace_labels=dict(message.namespace_labels),
        namespace_annotations=dict(message.namespace_annotations),
    )


def _selector(message: ipam_pb2.LabelSelector, field: str) -> LabelSelector:
    selector = LabelSelector(
        tuple(sorted(message.match_labels.items())),
        tuple(
            # The proto's own constraint leaves these operators only.
            Requirement(one.key, cast("Operator", one.operator), tuple(one.values))
            for one in message.match_expressions
        ),
    )
    return check_selector(selector, field)


def _selector_message(selector: LabelSelector | None) -> ipam_pb2.LabelSelector | None:
    if selector is None:
        return None
    return ipam_pb2.LabelSelector(
        match_labels=dict(selector.match_labels),
        match_expressions=[
            ipam_pb2.LabelRequirement(key=one.key, operator=one.operator, values=one.values)
            for one in selector.match_expressions
        ],
    )
