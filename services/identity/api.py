"""The gRPC side of identity: requests into domain values and back; nothing is decided here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc

from services.chassis.feed import Feed
from services.chassis.paging import PageRequest
from services.chassis.telemetry import inject
from services.identity import messages
from services.identity.filter_store import FilterStore, StoredFilter, check_revision
from services.identity.label_filter import LabelFilter
from services.identity.messages import identity_message
from services.identity.model import reserved_identities
from services.identity.prefix_store import PrefixStore
from services.identity.prefixes import check_prefix
from services.identity.status import StatusReader
from services.identity.store import IdentityStore
from services.identity.streams import SNAPSHOT_EVENTS, Snapshot, WatchStream, encode_pages, serve_encoded
from services.identity.use_store import UseStore

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

add_identity_service = serve_encoded(
    identity_pb2_grpc.add_IdentityServiceServicer_to_server, ("WatchIdentities",)
)


class IdentityApi(identity_pb2_grpc.IdentityServiceServicer):
    """fimbria.identity.v1.IdentityService; registered by `add_identity_service`."""

    def __init__(
        self,
        store: IdentityStore,
        prefixes: PrefixStore,
        uses: UseStore,
        filters: FilterStore,
        status: StatusReader,
        feed: Feed,
        lease_seconds: float,
    ) -> None:
        self._store = store
        self._prefixes = prefixes
        self._uses = uses
        self._filters = filters
        self._status = status
        self._lease_seconds = lease_seconds
        self._watches = WatchStream(feed, self._snapshot, messages.identity_event, messages.identities_end)

    async def Resolve(self, request: identity_pb2.ResolveRequest, context: Context) -> identity_pb2.Identity:
        labels = self._filters.relevant(request.labels)
        known = self._store.memory.find(labels, request.holder)
        if known is None:
            trace = inject().traceparent
            known = await self._store.resolve(labels, holder=request.holder, trace=trace)
        return identity_message(known)

    async def ResolvePrefixes(
        self, request: identity_pb2.ResolvePrefixesRequest, context: Context
    ) -> identity_pb2.ResolvePrefixesResponse:
        wanted = [check_prefix(text, f"prefixes[{at}]") for at, text in enumerate(request.prefixes)]
        found = await self._prefixes.resolve(wanted, holder=request.holder, trace=inject().traceparent)
        return identity_pb2.ResolvePrefixesResponse(identities=map(identity_message, found))

    async def ReportUse(
        self, request: identity_pb2.ReportUseRequest, context: Context
    ) -> identity_pb2.ReportUseResponse:
        # Before the report is taken: a filter that changes meanwhile shows as new with the next one.
        filter_revision = self._filters.revision
        reported = await self._uses.report(request.holder, request.identities)
        self._forget_uses(request.holder, reported.ended)
        return identity_pb2.ReportUseResponse(
            # What is left of a second is no promise.
            lease_seconds=max(int(self._lease_seconds), 1),
            unknown=reported.unknown,
            label_filter_revision=filter_revision,
        )

    async def EndUse(
        self, request: identity_pb2.EndUseRequest, context: Context
    ) -> identity_pb2.EndUseResponse:
        self._forget_uses(request.holder, await self._uses.end(request.holder))
        return identity_pb2.EndUseResponse()

    async def ListHolders(
        self, request: identity_pb2.ListHoldersRequest, context: Context
    ) -> identity_pb2.ListHoldersResponse:
        wanted = PageRequest.parse(request.page_size, request.page_token, scope="holders")
        after = str(wanted.after[0]) if wanted.after else ""
        found = await self._uses.list(after=after, limit=wanted.limit)
        page = wanted.page(found, lambda holder: holder.name)
        return identity_pb2.ListHoldersResponse(
            holders=map(messages.holder_message, page.items), next_page_token=page.next_page_token
        )

    async def GetLabelFilter(
        self, request: identity_pb2.GetLabelFilterRequest, context: Context
    ) -> identity_pb2.LabelFilter:
        return messages.filter_message(await self._filters.get())

    async def SetLabelFilter(
        self, request: identity_pb2.SetLabelFilterRequest, context: Context
    ) -> identity_pb2.SetLabelFilterResponse:
        wanted = LabelFilter.parse(request.patterns)
        present = await self._filters.get()
        check_revision(present, request.expected_revision)
        preview = await self._filters.preview(wanted)
        if request.validate_only:
            changed = wanted != present.filter
            stored = StoredFilter(wanted, present.revision + 1 if changed else present.revision)
        else:
            stored = await self._filters.set(
                wanted, expected_revision=request.expected_revision, trace=inject().traceparent
            )
        return messages.filter_answer(stored, preview)

    async def GetIdentityStatus(
        self, request: identity_pb2.GetIdentityStatusRequest, context: Context
    ) -> identity_pb2.IdentityStatus:
        return messages.status_message(await self._status.read())

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

    async def WatchIdentities(  # type: ignore[override]  # encoded messages, see add_identity_service
        self, request: identity_pb2.WatchIdentitiesRequest, context: Context
    ) -> AsyncIterator[bytes]:
        async for message in self._watches.watch(request.from_revision):
            yield message

    async def _snapshot(self) -> Snapshot:
        async with self._store.snapshot(SNAPSHOT_EVENTS) as (revision, pages):
            return Snapshot(tuple(await encode_pages(pages, messages.present_identities)), revision)

    def _forget_uses(self, holder: str, numbers: tuple[int, ...]) -> None:
        for memory in (self._store.memory, self._prefixes.memory):
            memory.forget_uses(holder, numbers)
