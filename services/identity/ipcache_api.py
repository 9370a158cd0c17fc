"""The gRPC side of the ipcache: requests into domain values and back; nothing is decided here."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc

from services.chassis.feed import Feed
from services.chassis.paging import PageRequest
from services.chassis.telemetry import inject
from services.identity.ipcache import Entry, normalise_prefix
from services.identity.ipcache_store import IpCacheStore
from services.identity.messages import entries_end, entry_event, entry_message, present_entries
from services.identity.streams import SNAPSHOT_EVENTS, Snapshot, WatchStream, encode_pages, serve_encoded

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

log = logging.getLogger(__name__)

add_ipcache_service = serve_encoded(identity_pb2_grpc.add_IpCacheServiceServicer_to_server, ("WatchIpCache",))


class IpCacheApi(identity_pb2_grpc.IpCacheServiceServicer):
    """fimbria.identity.v1.IpCacheService; registered by `add_ipcache_service`."""

    def __init__(self, store: IpCacheStore, feed: Feed) -> None:
        self._store = store
        self._watches = WatchStream(feed, self._snapshot, entry_event, entries_end)

    async def Publish(
        self, request: identity_pb2.PublishRequest, context: Context
    ) -> identity_pb2.PublishResponse:
        entries = [
            Entry(
                prefix=normalise_prefix(entry.prefix, f"entries[{at}].prefix"),
                identity=entry.identity,
                node=request.node,
                tunnel=entry.tunnel_endpoint,
                owner=entry.owner,
            )
            for at, entry in enumerate(request.entries)
        ]
        revision, taken_over = await self._store.publish(
            request.node, entries, replace_node=request.replace_node, trace=inject().traceparent
        )
        for entry in taken_over:
            log.warning(
                "ipcache entry %s of node %s was taken over by node %s",
                entry.prefix,
                entry.node,
                request.node,
            )
        return identity_pb2.PublishResponse(revision=revision)

    async def Withdraw(
        self, request: identity_pb2.WithdrawRequest, context: Context
    ) -> identity_pb2.WithdrawResponse:
        prefixes = [normalise_prefix(text, f"prefixes[{at}]") for at, text in enumerate(request.prefixes)]
        revision = await self._store.withdraw(request.node, prefixes, trace=inject().traceparent)
        return identity_pb2.WithdrawResponse(revision=revision)

    async def ListIpCacheEntries(
        self, request: identity_pb2.ListIpCacheEntriesRequest, context: Context
    ) -> identity_pb2.ListIpCacheEntriesResponse:
        scope = f"ipcache\0{request.node}"
        wanted = PageRequest.parse(request.page_size, request.page_token, scope=scope)
        after = str(wanted.after[0]) if wanted.after else ""
        found, revision = await self._store.list(node=request.node, after=after, limit=wanted.limit)
        page = wanted.page(found, lambda entry: entry.prefix)
        return identity_pb2.ListIpCacheEntriesResponse(
            entries=map(entry_message, page.items), next_page_token=page.next_page_token, revision=revision
        )

    async def WatchIpCache(  # type: ignore[override]  # encoded messages, see add_ipcache_service
        self, request: identity_pb2.WatchIpCacheRequest, context: Context
    ) -> AsyncIterator[bytes]:
        async for message in self._watches.watch(request.from_revision):
            yield message

    async def _snapshot(self) -> Snapshot:
        async with self._store.snapshot(SNAPSHOT_EVENTS) as (revision, pages):
            return Snapshot(tuple(await encode_pages(pages, present_entries)), revision)
