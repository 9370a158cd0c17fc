"""The gRPC side of nodes and pools: requests into domain values and back; nothing is decided here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.feed import Feed, FeedEvent
from services.chassis.paging import PageRequest
from services.chassis.telemetry import inject
from services.ipam.cidr import parse_cidr, parse_ipv4, parse_ipv6
from services.ipam.messages import text, timestamp
from services.ipam.model import Node, Pool
from services.ipam.node_store import NodeStore, decode_node
from services.ipam.plan import plan_pool
from services.ipam.pool_store import PoolStore

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

DEFAULT_POOL = "default"
# Events of one message while the present state is sent: cheap, and far below the message limit.
SNAPSHOT_EVENTS = 500
MAX_UINT64 = (1 << 64) - 1


class NodeApi(ipam_pb2_grpc.NodeServiceServicer):
    """fimbria.ipam.v1.NodeService."""

    def __init__(self, store: NodeStore, feed: Feed) -> None:
        self._store = store
        self._feed = feed

    async def RegisterNode(self, request: ipam_pb2.RegisterNodeRequest, context: Context) -> ipam_pb2.Node:
        node = await self._store.register(
            request.name,
            parse_ipv4(request.ipv4, "ipv4"),
            request.pool or DEFAULT_POOL,
            ipv6=parse_ipv6(request.ipv6, "ipv6") if request.ipv6 else None,
            trace=inject().traceparent,
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
        pool = plan_pool(request.name, cidrs, request.node_mask_size, request.node_mask_size_ipv6)
        return pool_message(await self._store.create(pool))

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
