"""The gRPC side of ipam: requests into domain values and back; nothing is decided here."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from fimbria.types.v1 import types_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.feed import Feed, FeedEvent
from services.chassis.paging import PageRequest
from services.chassis.telemetry import inject
from services.ipam.address_store import AddressStore
from services.ipam.cidr import capacity_of, check_node_mask, parse_address, parse_cidr
from services.ipam.model import Allocation, Node, Pool
from services.ipam.store import NodeStore, PoolStore, decode_node

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

DEFAULT_POOL = "default"
# Events of one message while the present state is sent: cheap, and far below the message limit.
SNAPSHOT_EVENTS = 500


class NodeApi(ipam_pb2_grpc.NodeServiceServicer):
    """fimbria.ipam.v1.NodeService."""

    def __init__(self, store: NodeStore, feed: Feed) -> None:
        self._store = store
        self._feed = feed

    async def RegisterNode(self, request: ipam_pb2.RegisterNodeRequest, context: Context) -> ipam_pb2.Node:
        ipv4 = parse_address(request.ipv4, "ipv4")
        node = await self._store.register(
            request.name, ipv4, request.pool or DEFAULT_POOL, trace=inject().traceparent
        )
        return node_message(node)

    async def GetNode(self, request: ipam_pb2.GetNodeRequest, context: Context) -> ipam_pb2.Node:
        return node_message(await self._store.get(request.name))

    async def ListNodes(
        self, request: ipam_pb2.ListNodesRequest, context: Context
    ) -> ipam_pb2.ListNodesResponse:
        wanted = PageRequest.parse(request.page_size, request.page_token, scope="nodes")
        after = str(wanted.after[0]) if wanted.after else ""
        nodes, revision = await self._store.list(after=after, limit=wanted.limit)
        page = wanted.page(nodes, lambda node: node.name)
        return ipam_pb2.ListNodesResponse(
            nodes=map(node_message, page.items), next_page_token=page.next_page_token, revision=revision
        )

    async def DeleteNode(
        self, request: ipam_pb2.DeleteNodeRequest, context: Context
    ) -> ipam_pb2.DeleteNodeResponse:
        await self._store.delete(request.name, force=request.force, trace=inject().traceparent)
        return ipam_pb2.DeleteNodeResponse()

    async def WatchNodes(
        self, request: ipam_pb2.WatchNodesRequest, context: Context
    ) -> AsyncIterator[ipam_pb2.WatchNodesResponse]:
        revision = request.from_revision
        if revision == 0:
            nodes, revision = await self._store.list(after="", limit=None)
            for start in range(0, len(nodes), SNAPSHOT_EVENTS):
                yield ipam_pb2.WatchNodesResponse(
                    events=map(_present, nodes[start : start + SNAPSHOT_EVENTS])
                )
            yield ipam_pb2.WatchNodesResponse(revision=revision, snapshot_complete=True)
        async for batch in self._feed.watch(revision, announce=request.from_revision > 0):
            yield ipam_pb2.WatchNodesResponse(events=map(_node_event, batch.events), revision=batch.revision)


class PoolApi(ipam_pb2_grpc.PoolServiceServicer):
    """fimbria.ipam.v1.PoolService."""

    def __init__(self, store: PoolStore) -> None:
        self._store = store

    async def CreatePool(self, request: ipam_pb2.CreatePoolRequest, context: Context) -> ipam_pb2.Pool:
        cidrs = tuple(parse_cidr(text, f"cidrs[{at}]") for at, text in enumerate(request.cidrs))
        for cidr in cidrs:
            check_node_mask(cidr, request.node_mask_size, "node_mask_size")
        return pool_message(await self._store.create(Pool(request.name, cidrs, request.node_mask_size)))

    async def GetPool(self, request: ipam_pb2.GetPoolRequest, context: Context) -> ipam_pb2.Pool:
        return pool_message(await self._store.get(request.name))

    async def ListPools(
        self, request: ipam_pb2.ListPoolsRequest, context: Context
    ) -> ipam_pb2.ListPoolsResponse:
        wanted = PageRequest.parse(request.page_size, request.page_token, scope="pools")
        after = str(wanted.after[0]) if wanted.after else ""
        page = wanted.page(await self._store.list(after=after, limit=wanted.limit), lambda pool: pool.name)
        return ipam_pb2.ListPoolsResponse(
            pools=map(pool_message, page.items), next_page_token=page.next_page_token
        )

    async def DeletePool(
        self, request: ipam_pb2.DeletePoolRequest, context: Context
    ) -> ipam_pb2.DeletePoolResponse:
        await self._store.delete(request.name)
        return ipam_pb2.DeletePoolResponse()


class AddressApi(ipam_pb2_grpc.AddressServiceServicer):
    """fimbria.ipam.v1.AddressService."""

    def __init__(self, store: AddressStore) -> None:
        self._store = store

    async def Allocate(self, request: ipam_pb2.AllocateRequest, context: Context) -> ipam_pb2.Address:
        wanted = parse_address(request.address, "address") if request.address else None
        return address_message(await self._store.allocate(request.node, request.owner, wanted))

    async def Release(self, request: ipam_pb2.ReleaseRequest, context: Context) -> ipam_pb2.ReleaseResponse:
        released = await self._store.release(request.node, request.owner)
        return ipam_pb2.ReleaseResponse(address=str(released) if released else "")

    async def ListAddresses(
        self, request: ipam_pb2.ListAddressesRequest, context: Context
    ) -> ipam_pb2.ListAddressesResponse:
        scope = f"addresses\0{request.node}\0{request.owner}"
        wanted = PageRequest.parse(request.page_size, request.page_token, scope=scope)
        after = None
        if wanted.after:
            after = (str(wanted.after[0]), ipaddress.IPv4Address(wanted.after[1]))
        found = await self._store.list(
            node=request.node, owner=request.owner, after=after, limit=wanted.limit
        )
        page = wanted.page(found, lambda allocation: (allocation.node, int(allocation.address)))
        return ipam_pb2.ListAddressesResponse(
            addresses=map(address_message, page.items), next_page_token=page.next_page_token
        )


def node_message(node: Node) -> ipam_pb2.Node:
    """A node as the API shows it."""
    return ipam_pb2.Node(
        name=node.name,
        ipv4=str(node.ipv4),
        pool=node.pool,
        pod_cidrs=map(str, node.pod_cidrs),
        router_ipv4=str(node.router_ipv4),
        revision=node.revision,
        create_time=_timestamp(node.created_ns),
    )


def pool_message(pool: Pool) -> ipam_pb2.Pool:
    """A pool as the API shows it."""
    return ipam_pb2.Pool(
        name=pool.name,
        cidrs=map(str, pool.cidrs),
        node_mask_size=pool.node_mask_size,
        node_cidrs_total=capacity_of(pool.cidrs, pool.node_mask_size),
        node_cidrs_used=pool.used,
    )


def address_message(allocation: Allocation) -> ipam_pb2.Address:
    """An address as the API shows it."""
    return ipam_pb2.Address(
        address=str(allocation.address),
        node=allocation.node,
        owner=allocation.owner,
        cidr=str(allocation.cidr),
        router_ipv4=str(allocation.router_ipv4),
        create_time=_timestamp(allocation.created_ns),
    )


def _present(node: Node) -> ipam_pb2.NodeEvent:
    return ipam_pb2.NodeEvent(type=types_pb2.CHANGE_TYPE_PUT, node=node_message(node))


def _node_event(event: FeedEvent) -> ipam_pb2.NodeEvent:
    trace = types_pb2.TraceContext(traceparent=event.trace)
    if event.deleted:
        return ipam_pb2.NodeEvent(
            type=types_pb2.CHANGE_TYPE_DELETE, node=ipam_pb2.Node(name=event.key), trace=trace
        )
    node = decode_node(event.key, event.payload, event.revision)
    return ipam_pb2.NodeEvent(type=types_pb2.CHANGE_TYPE_PUT, node=node_message(node), trace=trace)


def _timestamp(nanoseconds: int) -> Timestamp:
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)
