"""The gRPC side of identity: requests into domain values and back; nothing is decided here."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.feed import Feed, FeedEvent
from services.chassis.paging import PageRequest
from services.chassis.telemetry import inject
from services.identity.ipcache import Entry, normalise_prefix
from services.identity.ipcache_store import IpCacheStore, decode_entry
from services.identity.labelset import normalise
from services.identity.model import Identity, reserved_identities
from services.identity.prefix_store import PrefixStore
from services.identity.prefixes import check_prefix
from services.identity.store import IdentityStore, decode_identity

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Events of one message while the present state is sent: cheap, and far below the message limit.
SNAPSHOT_EVENTS = 1000

log = logging.getLogger(__name__)


class IdentityApi(identity_pb2_grpc.IdentityServiceServicer):
    """fimbria.identity.v1.IdentityService."""

    def __init__(self, store: IdentityStore, prefixes: PrefixStore, feed: Feed) -> None:
        self._store = store
        self._prefixes = prefixes
        self._feed = feed

    async def Resolve(self, request: identity_pb2.ResolveRequest, context: Context) -> identity_pb2.Identity:
        labels = normalise(request.labels)
        return identity_message(await self._store.resolve(labels, trace=inject().traceparent))

    async def ResolvePrefixes(
        self, request: identity_pb2.ResolvePrefixesRequest, context: Context
    ) -> identity_pb2.ResolvePrefixesResponse:
        wanted = [check_prefix(text, f"prefixes[{at}]") for at, text in enumerate(request.prefixes)]
        found = await self._prefixes.resolve(wanted, trace=inject().traceparent)
        return identity_pb2.ResolvePrefixesResponse(identities=map(identity_message, found))

    async def GetIdentity(
        self, request: identity_pb2.GetIdentityRequest, context: Context
    ) -> identity_pb2.Identity:
        return identity_message(await self._store.get(request.id, "id"))

    async def ListIdentities(
        self, request: identity_pb2.ListIdentitiesRequest, context: Context
    ) -> identity_pb2.ListIdentitiesResponse:
        scope = f"identities\0{request.include_reserved}"
        wanted = PageRequest.parse(request.page_size, request.page_token, scope=scope)
        after = int(wanted.after[0]) if wanted.after else 0
        found, revision = await self._store.list(after=after, limit=wanted.limit)
        if request.include_reserved:
            reserved = [identity for identity in reserved_identities() if identity.number > after]
            found = [*reserved, *found][: wanted.limit]
        page = wanted.page(found, lambda identity: identity.number)
        return identity_pb2.ListIdentitiesResponse(
            identities=map(identity_message, page.items),
            next_page_token=page.next_page_token,
            revision=revision,
        )

    async def WatchIdentities(
        self, request: identity_pb2.WatchIdentitiesRequest, context: Context
    ) -> AsyncIterator[identity_pb2.WatchIdentitiesResponse]:
        revision = request.from_revision
        if revision == 0:
            found, revision = await self._store.list(after=0, limit=None)
            for start in range(0, len(found), SNAPSHOT_EVENTS):
                yield identity_pb2.WatchIdentitiesResponse(
                    events=map(_present_identity, found[start : start + SNAPSHOT_EVENTS])
                )
            yield identity_pb2.WatchIdentitiesResponse(revision=revision, snapshot_complete=True)
        async for batch in self._feed.watch(revision, announce=request.from_revision > 0):
            yield identity_pb2.WatchIdentitiesResponse(
                events=map(_identity_event, batch.events), revision=batch.revision
            )


class IpCacheApi(identity_pb2_grpc.IpCacheServiceServicer):
    """fimbria.identity.v1.IpCacheService."""

    def __init__(self, store: IpCacheStore, feed: Feed) -> None:
        self._store = store
        self._feed = feed

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

    async def WatchIpCache(
        self, request: identity_pb2.WatchIpCacheRequest, context: Context
    ) -> AsyncIterator[identity_pb2.WatchIpCacheResponse]:
        revision = request.from_revision
        if revision == 0:
            found, revision = await self._store.list(node="", after="", limit=None)
            for start in range(0, len(found), SNAPSHOT_EVENTS):
                yield identity_pb2.WatchIpCacheResponse(
                    events=map(_present_entry, found[start : start + SNAPSHOT_EVENTS])
                )
            yield identity_pb2.WatchIpCacheResponse(revision=revision, snapshot_complete=True)
        async for batch in self._feed.watch(revision, announce=request.from_revision > 0):
            yield identity_pb2.WatchIpCacheResponse(
                events=map(_entry_event, batch.events), revision=batch.revision
            )


def identity_message(identity: Identity) -> identity_pb2.Identity:
    """An identity as the API shows it."""
    return identity_pb2.Identity(
        id=identity.number, labels=identity.labels, revision=identity.revision, name=identity.name
    )


def entry_message(entry: Entry) -> identity_pb2.IpCacheEntry:
    """An ipcache entry as the API shows it."""
    return identity_pb2.IpCacheEntry(
        prefix=entry.prefix,
        identity=entry.identity,
        tunnel_endpoint=entry.tunnel,
        node=entry.node,
        owner=entry.owner,
        identity_revision=entry.identity_revision,
        revision=entry.revision,
    )


def _present_identity(identity: Identity) -> identity_pb2.IdentityEvent:
    return identity_pb2.IdentityEvent(type=types_pb2.CHANGE_TYPE_PUT, identity=identity_message(identity))


def _identity_event(event: FeedEvent) -> identity_pb2.IdentityEvent:
    trace = types_pb2.TraceContext(traceparent=event.trace)
    if event.deleted:
        return identity_pb2.IdentityEvent(
            type=types_pb2.CHANGE_TYPE_DELETE, identity=identity_pb2.Identity(id=int(event.key)), trace=trace
        )
    identity = decode_identity(event.key, event.payload, event.revision)
    return identity_pb2.IdentityEvent(
        type=types_pb2.CHANGE_TYPE_PUT, identity=identity_message(identity), trace=trace
    )


def _present_entry(entry: Entry) -> identity_pb2.IpCacheEvent:
    return identity_pb2.IpCacheEvent(type=types_pb2.CHANGE_TYPE_PUT, entry=entry_message(entry))


def _entry_event(event: FeedEvent) -> identity_pb2.IpCacheEvent:
    trace = types_pb2.TraceContext(traceparent=event.trace)
    if event.deleted:
        return identity_pb2.IpCacheEvent(
            type=types_pb2.CHANGE_TYPE_DELETE, entry=identity_pb2.IpCacheEntry(prefix=event.key), trace=trace
        )
    entry = decode_entry(event.key, event.payload, event.revision)
    return identity_pb2.IpCacheEvent(type=types_pb2.CHANGE_TYPE_PUT, entry=entry_message(entry), trace=trace)
