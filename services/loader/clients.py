"""The three cluster services as the loader calls them."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, TypeVar

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    FimbriaError,
    ResourceExhausted,
    Unavailable,
    error_from_rpc,
)
from services.loader.endpoints.endpoint import EndpointRecord, EndpointSpec
from services.loader.endpoints.records import NodeRecord
from services.loader.interfaces import Allocation, ResolvedIdentity, UseReport

T = TypeVar("T")

ALLOCATION_CHANGED: Final = "ALLOCATION_CHANGED"

_PAGE: Final = 1000
# Of annotations, those that IPAM knows: pods have others, some of them as large as a manifest.
_ANNOTATIONS: Final = ("fimbria.io/", "ipam.cilium.io/")


async def call(pending: Awaitable[T], target: str) -> T:
    """The answer of an RPC. Raises FimbriaError."""
    try:
        return await pending
    except grpc.RpcError as error:
        raise error_from_rpc(error, target) from error


def passes(problem: FimbriaError) -> bool:
    """Whether the same call may succeed in a while without anybody doing something about it."""
    if isinstance(problem, ResourceExhausted):
        return problem.retry_after is not None
    return isinstance(problem, Unavailable | DeadlineExceeded | Aborted | Cancelled)


async def ready(channel: grpc.aio.Channel, target: str, timeout: float = 2.0) -> None:
    """Returns when a service says that it serves. Raises FimbriaError: Unavailable when it says that it does
    not.
    """
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await call(stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout), target)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise Unavailable(f"{target} is not ready", reason="SERVICE_NOT_READY", metadata={"target": target})


def workload_of(spec: EndpointSpec) -> ipam_pb2.Workload:
    """What IPAM is told of a pod: all labels, and of the annotations those that mean something to it."""
    of = spec.workload
    return ipam_pb2.Workload(
        namespace=spec.pod_namespace,
        name=spec.pod_name,
        labels=of.labels,
        annotations=_known(of.annotations),
        namespace_labels=of.namespace_labels,
        namespace_annotations=_known(of.namespace_annotations),
    )


def _known(annotations: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in annotations.items() if key.startswith(_ANNOTATIONS)}


class IpamClient:
    """IPAM on behalf of one node. ``timeout`` in seconds bounds each call."""

    def __init__(self, channel: grpc.aio.Channel, node: str, target: str, timeout: float = 5.0) -> None:
        self._addresses = ipam_pb2_grpc.AddressServiceStub(channel)
        self._nodes = ipam_pb2_grpc.NodeServiceStub(channel)
        self._node = node
        self._target = target
        self._timeout = timeout

    async def register(self, ipv4: str, ipv6: str, pool: str, pod_cidrs: Sequence[str] = ()) -> NodeRecord:
        """Registers the node; again is fine. ``ipv6`` may be empty; ``pod_cidrs`` are for mode kubernetes."""
        request = ipam_pb2.RegisterNodeRequest(
            name=self._node, ipv4=ipv4, ipv6=ipv6, pool=pool, pod_cidrs=pod_cidrs
        )
        node = await call(self._nodes.RegisterNode(request, timeout=self._timeout), self._target)
        return NodeRecord(
            node.name,
            node.ipv4,
            node.pool,
            tuple(node.pod_cidrs),
            node.router_ipv4,
            node.ipv6,
            node.router_ipv6,
        )

    async def node(self) -> ipam_pb2.Node:
        """The node as IPAM has it now."""
        request = ipam_pb2.GetNodeRequest(name=self._node)
        return await call(self._nodes.GetNode(request, timeout=self._timeout), self._target)

    async def allocate(self, spec: EndpointSpec) -> Allocation:
        """Addresses for the endpoint's owner; the same again for the same owner."""
        request = ipam_pb2.AllocateRequest(node=self._node, owner=spec.owner, workload=workload_of(spec))
        address = await call(self._addresses.Allocate(request, timeout=self._timeout), self._target)
        # A node has the routers of all its families, also when this owner's pool has not.
        return Allocation(
            address.address,
            address.router_ipv4 if address.address else "",
            address.ipv6,
            address.router_ipv6 if address.ipv6 else "",
            address.create_time.ToNanoseconds(),
        )

    async def release(self, owner: str, created_ns: int = 0) -> None:
        """Gives the owner's addresses back, if they are still those that were allocated at ``created_ns``."""
        request = ipam_pb2.ReleaseRequest(node=self._node, owner=owner)
        if created_ns:
            request.if_create_time.FromNanoseconds(created_ns)
        try:
            await call(self._addresses.Release(request, timeout=self._timeout), self._target)
        except Aborted as problem:
            if problem.reason != ALLOCATION_CHANGED:
                raise

    async def held(self) -> Mapping[str, tuple[str, ...]]:
        """All addresses that are held on this node, by owner."""
        found: dict[str, tuple[str, ...]] = {}
        request = ipam_pb2.ListAddressesRequest(node=self._node, page_size=_PAGE)
        while True:
            answer = await call(self._addresses.ListAddresses(request, timeout=self._timeout), self._target)
            for each in answer.addresses:
                found[each.owner] = tuple(address for address in (each.address, each.ipv6) if address)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token


class IdentityServiceClient:
    """The identity service on behalf of one node."""

    def __init__(
        self, channel: grpc.aio.Channel, node: str, node_ipv4: str, target: str, timeout: float = 5.0
    ) -> None:
        self._identities = identity_pb2_grpc.IdentityServiceStub(channel)
        self._ipcache = identity_pb2_grpc.IpCacheServiceStub(channel)
        self._node = node
        self._holder = f"node/{node}"
        self._node_ipv4 = node_ipv4
        self._target = target
        self._timeout = timeout

    async def resolve(self, labels: Sequence[str]) -> ResolvedIdentity:
        """The number of a label set, which this node uses from then on."""
        request = identity_pb2.ResolveRequest(labels=labels, holder=self._holder)
        identity = await call(self._identities.Resolve(request, timeout=self._timeout), self._target)
        return ResolvedIdentity(identity.id, identity.revision)

    async def report(self, identities: Sequence[int]) -> UseReport:
        """Says that this node uses these identities, and no others."""
        request = identity_pb2.ReportUseRequest(holder=self._holder, identities=identities)
        answer = await call(self._identities.ReportUse(request, timeout=self._timeout), self._target)
        return UseReport(answer.lease_seconds, frozenset(answer.unknown), answer.label_filter_revision)

    async def labels(self, identity: int) -> tuple[str, ...]:
        """The labels of a number."""
        request = identity_pb2.GetIdentityRequest(id=identity)
        found = await call(self._identities.GetIdentity(request, timeout=self._timeout), self._target)
        return tuple(found.labels)

    async def publish(self, records: Sequence[EndpointRecord], *, replace: bool = False) -> int:
        """Tells the cluster of endpoints; with ``replace`` there are no others here. Returns the feed's
        revision.
        """
        entries = [
            identity_pb2.IpCacheEntry(
                prefix=prefix,
                identity=record.identity,
                tunnel_endpoint=self._node_ipv4,
                owner=record.spec.pod,
            )
            for record in records
            for prefix in record.prefixes
        ]
        request = identity_pb2.PublishRequest(node=self._node, entries=entries, replace_node=replace)
        answer = await call(self._ipcache.Publish(request, timeout=self._timeout), self._target)
        return answer.revision

    async def withdraw(self, prefixes: Sequence[str]) -> None:
        """Takes prefixes back."""
        request = identity_pb2.WithdrawRequest(node=self._node, prefixes=prefixes)
        await call(self._ipcache.Withdraw(request, timeout=self._timeout), self._target)

    async def published_here(self) -> Mapping[str, str]:
        """Every prefix that this node has published, with its owner's name."""
        found: dict[str, str] = {}
        request = identity_pb2.ListIpCacheEntriesRequest(node=self._node, page_size=_PAGE)
        while True:
            answer = await call(
                self._ipcache.ListIpCacheEntries(request, timeout=self._timeout), self._target
            )
            found.update((entry.prefix, entry.owner) for entry in answer.entries)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token
