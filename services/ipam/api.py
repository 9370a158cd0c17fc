"""The gRPC side of nodes and pools: requests into domain values and back; nothing is decided here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeAlias

import grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.feed import Feed, FeedEvent
from services.chassis.paging import PageRequest
from services.chassis.telemetry import inject
from services.ipam.cidr import parse_cidr, parse_ipv4, parse_ipv6
from services.ipam.exclusions import parse_all
from services.ipam.family import Network
from services.ipam.messages import namespace_selector, node_message, pod_selector, pool_message
from services.ipam.model import DEFAULT_POOL, Node
from services.ipam.node_rows import decode_node
from services.ipam.node_store import NodeStore
from services.ipam.plan import PoolContent, plan_pool
from services.ipam.pool_store import PoolStore

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Events of one message while the present state is sent: cheap, and far below the message limit.
SNAPSHOT_EVENTS = 500


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
            pod_cidrs=_cidrs(request.pod_cidrs, "pod_cidrs"),
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
        pool = plan_pool(
            request.name,
            _cidrs(request.cidrs, "cidrs"),
            request.node_mask_size,
            request.node_mask_size_ipv6,
            excluded=parse_all(request.excluded, "excluded"),
            pod_selector=pod_selector(request),
            namespace_selector=namespace_selector(request),
        )
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

    async def UpdatePool(self, request: ipam_pb2.UpdatePoolRequest, context: Context) -> ipam_pb2.Pool:
        content = PoolContent(
            _cidrs(request.cidrs, "cidrs"),
            parse_all(request.excluded, "excluded"),
            pod_selector(request),
            namespace_selector(request),
        )
        pool = await self._store.update(
            request.name,
            content,
            expected_revision=request.expected_revision,
            trace=inject().traceparent,
        )
        return pool_message(pool)

    async def DeletePool(
        self, request: ipam_pb2.DeletePoolRequest, context: Context
    ) -> ipam_pb2.DeletePoolResponse:
        await self._store.delete(request.name)
        return ipam_pb2.DeletePoolResponse()


def _cidrs(texts: Iterable[str], field: str) -> tuple[Network, ...]:
    return tuple(parse_cidr(text, f"{field}[{at}]") for at, text in enumerate(texts))


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
