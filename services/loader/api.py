"""The loader's gRPC services: convert, delegate, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, nullcontext
from itertools import islice
from typing import Any, Final, TypeAlias

import grpc
from fimbria.loader.v1 import loader_pb2 as pb
from fimbria.loader.v1 import loader_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.errors import Aborted, DeadlineExceeded, Internal
from services.chassis.paging import page
from services.loader.endpoints.endpoint import Endpoint, State
from services.loader.flows.flow import Lost
from services.loader.flows.messages import flow_message, query_of
from services.loader.interfaces import DatapathError
from services.loader.loader import Loader
from services.loader.messages import (
    ENFORCEMENTS,
    ROUTING_MODES,
    connection_message,
    endpoint_message,
    entry_message,
    level_of,
    map_message,
    program_message,
    refusal,
    regeneration_message,
    reload_message,
    row_message,
    timestamp,
    traffic_message,
    watch_message,
)
from services.loader.node import NodeRuntime
from services.loader.policy.entries import EGRESS, INGRESS

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

WAIT_SECONDS: Final = 30.0
DEFAULT_CONNECTIONS: Final = 100
# Entries of a map that are read at once: a few milliseconds' worth, in a thread.
_ENTRIES: Final = 1024


class EndpointApi(loader_pb2_grpc.EndpointServiceServicer):
    """fimbria.loader.v1.EndpointService."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    async def GetEndpoint(self, request: pb.GetEndpointRequest, context: Context) -> pb.Endpoint:
        node = self._loader.node()
        return _endpoint(node, node.registry.get(request.id))

    async def ListEndpoints(
        self, request: pb.ListEndpointsRequest, context: Context
    ) -> pb.ListEndpointsResponse:
        node = self._loader.node()
        found = page(
            node.registry,
            key=lambda endpoint: endpoint.record.id,
            page_size=request.page_size,
            page_token=request.page_token,
            scope="endpoints",
        )
        return pb.ListEndpointsResponse(
            endpoints=[_endpoint(node, endpoint) for endpoint in found.items],
            next_page_token=found.next_page_token,
        )

    async def UpdateEndpointLabels(
        self, request: pb.UpdateEndpointLabelsRequest, context: Context
    ) -> pb.Endpoint:
        node = self._loader.node()
        endpoint = await node.manager.update_labels(request.id, request.labels)
        return _endpoint(node, endpoint)

    async def DeleteEndpoint(
        self, request: pb.DeleteEndpointRequest, context: Context
    ) -> pb.DeleteEndpointResponse:
        await self._loader.node().manager.delete_endpoint(request.id)
        return pb.DeleteEndpointResponse()

    async def RegenerateEndpoint(
        self, request: pb.RegenerateEndpointRequest, context: Context
    ) -> pb.Endpoint:
        node = self._loader.node()
        level = level_of(request.level)
        return _endpoint(node, await node.manager.regenerate(request.id, level))

    async def WatchEndpoints(
        self, request: pb.WatchEndpointsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEndpointsResponse]:
        node = self._loader.node()
        async for change in node.registry.watch():
            if change is None:
                yield pb.WatchEndpointsResponse(snapshot_complete=True)
                continue
            if change.endpoint is None:
                event = pb.EndpointEvent(
                    type=types_pb2.CHANGE_TYPE_DELETE, endpoint=pb.Endpoint(id=change.id)
                )
            else:
                event = pb.EndpointEvent(
                    type=types_pb2.CHANGE_TYPE_PUT,
                    endpoint=_endpoint(node, change.endpoint),
                )
            yield pb.WatchEndpointsResponse(events=[event])
        raise Aborted("the watcher is too slow to follow; watch again", reason="WATCH_TOO_SLOW")


class DatapathApi(loader_pb2_grpc.DatapathServiceServicer):
    """fimbria.loader.v1.DatapathService."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.DatapathStatus:
        node = self._loader.node()
        # Counting large maps takes milliseconds each, and so does asking what is on a hundred devices.
        maps = await asyncio.to_thread(node.kernel.maps)
        programs = await asyncio.to_thread(node.kernel.programs)
        return pb.DatapathStatus(
            node=node.record.name,
            node_ipv4=node.record.ipv4,
            pod_cidrs=node.record.pod_cidrs,
            router_ipv4=node.record.router_ipv4,
            pin_directory=node.pin_directory,
            programs=[program_message(program) for program in programs],
            maps=[map_message(found) for found in maps],
            watches=[
                watch_message(node.nodes.state),
                watch_message(node.ipcache.state),
                watch_message(node.policy.state, node.policy.identity_revision.value),
            ],
            endpoints=len(node.registry),
            synchronized=node.synchronized,
            problems=node.problems(),
            metrics=[traffic_message(count) for count in node.kernel.traffic()],
            start_time=timestamp(int(node.start_time * 1e9)),
            lost_events=node.kernel.lost_events(),
            node_ipv6=node.record.ipv6,
            router_ipv6=node.record.router_ipv6,
            routing_mode=ROUTING_MODES[node.settings.routing_mode],
            devices=[name for name, _ in node.devices.nics],
            endpoint_routes=node.settings.endpoint_routes,
            host_routing=node.settings.host_routing,
            masquerade=node.settings.masquerade,
            policy_enforcement=ENFORCEMENTS[node.settings.policy_enforcement],
            policy_audit=node.settings.policy_audit,
        )

    async def ListPolicyEntries(
        self, request: pb.ListPolicyEntriesRequest, context: Context
    ) -> pb.ListPolicyEntriesResponse:
        node = self._loader.node()
        record = node.registry.get(request.endpoint_id).record
        try:
            head = node.kernel.subjects().get(record.subject)
            # No row: the endpoint passes nothing.
            if head is None:
                return pb.ListPolicyEntriesResponse(ingress_enforced=True, egress_enforced=True)
            entries = node.kernel.policy_counts(head.instance)
        except DatapathError as problem:
            raise refusal(problem) from problem
        entries.sort(key=lambda entry: entry.key)
        return pb.ListPolicyEntriesResponse(
            entries=[
                entry_message(entry, node.policy.rules.get(entry.value.cookie, "")) for entry in entries
            ],
            ingress_enforced=head.ingress_enforced,
            egress_enforced=head.egress_enforced,
            instance=head.instance,
            epoch=head.epoch,
            revision=head.revision,
            ingress_audit_enforced=head.audit_enforced[INGRESS],
            egress_audit_enforced=head.audit_enforced[EGRESS],
        )

    async def ListIpCache(self, request: pb.ListIpCacheRequest, context: Context) -> pb.ListIpCacheResponse:
        node = self._loader.node()
        try:
            found = page(
                node.kernel.ipcache().items(),
                key=lambda item: item[0],
                page_size=request.page_size,
                page_token=request.page_token,
                scope="ipcache",
            )
        except DatapathError as problem:
            raise refusal(problem) from problem
        return pb.ListIpCacheResponse(
            entries=[
                pb.KernelIpCacheEntry(
                    prefix=prefix, identity=meaning.identity, tunnel_endpoint=meaning.tunnel
                )
                for prefix, meaning in found.items
            ],
            next_page_token=found.next_page_token,
        )

    async def ListConnections(
        self, request: pb.ListConnectionsRequest, context: Context
    ) -> pb.ListConnectionsResponse:
        node = self._loader.node()
        limit = request.limit or DEFAULT_CONNECTIONS
        try:
            connections, total = await asyncio.to_thread(node.kernel.connections, limit)
        except DatapathError as problem:
            raise refusal(problem) from problem
        return pb.ListConnectionsResponse(
            connections=[connection_message(connection) for connection in connections], total=total
        )

    async def CollectOrphans(
        self, request: pb.CollectOrphansRequest, context: Context
    ) -> pb.CollectOrphansResponse:
        node = self._loader.node()
        try:
            found, skipped = await node.orphans.collect(remove=not request.dry_run)
        except (DatapathError, OSError) as problem:
            raise Internal(str(problem), reason="DATAPATH_FAILED") from problem
        return pb.CollectOrphansResponse(
            orphans=[
                pb.Orphan(
                    kind=each.orphan.kind,
                    name=each.orphan.name,
                    detail=each.orphan.detail,
                    removed=each.removed,
                    error=each.error,
                )
                for each in found
            ],
            skipped=skipped,
        )

    async def ListMapEntries(
        self, request: pb.ListMapEntriesRequest, context: Context
    ) -> AsyncIterator[pb.MapEntry]:
        kernel = self._loader.node().kernel
        try:
            rows = await asyncio.to_thread(kernel.map_entries, request.map, request.limit)
            while chunk := await asyncio.to_thread(lambda: list(islice(rows, _ENTRIES))):
                for row in chunk:
                    yield row_message(row)
        except DatapathError as problem:
            raise refusal(problem) from problem

    async def ResizeMap(self, request: pb.ResizeMapRequest, context: Context) -> pb.MapStatus:
        kernel = self._loader.node().kernel
        try:
            # It is done to its end even if the caller goes away.
            resized = await asyncio.shield(
                asyncio.to_thread(kernel.resize_map, request.map, request.max_entries)
            )
        except DatapathError as problem:
            raise refusal(problem) from problem
        return map_message(resized)

    async def Reload(self, request: pb.ReloadRequest, context: Context) -> pb.ReloadResponse:
        kernel = self._loader.node().kernel
        rebuild = request.level == pb.REGENERATION_LEVEL_REBUILD
        try:
            report = await asyncio.shield(asyncio.to_thread(kernel.reload, rebuild=rebuild))
        except DatapathError as problem:
            raise refusal(problem) from problem
        return reload_message(report)

    async def WaitApplied(self, request: pb.WaitAppliedRequest, context: Context) -> pb.WaitAppliedResponse:
        node = self._loader.node()
        timeout = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else WAIT_SECONDS
        reached = await asyncio.gather(
            node.ipcache.applied.wait(request.ipcache_revision, timeout),
            node.policy.policy_revision.wait(request.policy_revision, timeout),
            node.nodes.applied.wait(request.node_revision, timeout),
        )
        applied = _applied(node)
        if not all(reached):
            raise DeadlineExceeded(
                f"node {node.record.name} has not come so far within {timeout:g} seconds; it is at "
                + ", ".join(f"{name} {value}" for name, value in applied.items()),
                reason="REVISION_NOT_APPLIED",
                metadata=applied,
            )
        return pb.WaitAppliedResponse(**applied)


class ObserverApi(loader_pb2_grpc.ObserverServiceServicer):
    """fimbria.loader.v1.ObserverService."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    async def GetFlows(
        self, request: pb.GetFlowsRequest, context: Context
    ) -> AsyncIterator[pb.GetFlowsResponse]:
        node = self._loader.node()
        query = query_of(request)
        async with aclosing(node.flows.get(query)) as items:
            try:
                with node.reader.tracing() if query.traces else nullcontext():
                    async for item in items:
                        if isinstance(item, Lost):
                            yield pb.GetFlowsResponse(lost=item.count)
                        else:
                            flow = flow_message(item, node.record.name, node.labels.get)
                            yield pb.GetFlowsResponse(flow=flow)
            except DatapathError as problem:
                raise refusal(problem) from problem


def _endpoint(node: NodeRuntime, endpoint: Endpoint) -> pb.Endpoint:
    message = endpoint_message(endpoint, node.record.name)
    message.regenerations.extend(
        regeneration_message(each) for each in node.manager.regenerations(endpoint.record.id)
    )
    if endpoint.status.state is State.READY:
        # What the node has acknowledged is in force for every endpoint, also where it changed nothing.
        message.policy_revision = max(message.policy_revision, node.policy.policy_revision.value)
    return message


def _applied(node: NodeRuntime) -> dict[str, int]:
    return {
        "ipcache_revision": node.ipcache.applied.value,
        "policy_revision": node.policy.policy_revision.value,
        "node_revision": node.nodes.applied.value,
    }
