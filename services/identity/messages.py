"""Domain values as the messages of the API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fimbria.identity.v1 import identity_pb2
from fimbria.types.v1 import types_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.feed import FeedEvent
from services.identity.filter_preview import Preview
from services.identity.filter_store import StoredFilter
from services.identity.ipcache_store import decode_entry
from services.identity.model import Identity
from services.identity.status import SpaceUsage, Status
from services.identity.store import decode_identity
from services.identity.use_store import Holder

# How many changes, and how many bytes of them, an answer about a filter holds: clients take 4 MiB by default.
CHANGES = 10_000
CHANGES_BYTES = 3_500_000


def identity_message(identity: Identity) -> identity_pb2.Identity:
    """An identity as the API shows it."""
    return identity_pb2.Identity(
        id=identity.number, labels=identity.labels, revision=identity.revision, name=identity.name
    )


def entry_message(entry: Any) -> identity_pb2.IpCacheEntry:
    """An ipcache entry as the API shows it, from an `Entry` or from a row of the table."""
    return identity_pb2.IpCacheEntry(
        prefix=entry.prefix,
        identity=entry.identity,
        tunnel_endpoint=entry.tunnel,
        node=entry.node,
        owner=entry.owner,
        identity_revision=entry.identity_revision,
        revision=entry.revision,
    )


def present_identities(found: Sequence[Identity]) -> identity_pb2.WatchIdentitiesResponse:
    """A part of a snapshot of the identities."""
    put = types_pb2.CHANGE_TYPE_PUT
    return identity_pb2.WatchIdentitiesResponse(
        events=[
            identity_pb2.IdentityEvent(type=put, identity=identity_message(identity)) for identity in found
        ]
    )


def identity_event(event: FeedEvent) -> identity_pb2.WatchIdentitiesResponse:
    """An event of the identity feed, in a message of its own."""
    trace = types_pb2.TraceContext(traceparent=event.trace)
    if event.deleted:
        kind, identity = types_pb2.CHANGE_TYPE_DELETE, identity_pb2.Identity(id=int(event.key))
    else:
        kind = types_pb2.CHANGE_TYPE_PUT
        identity = identity_message(decode_identity(event.key, event.payload, event.revision))
    return identity_pb2.WatchIdentitiesResponse(
        events=[identity_pb2.IdentityEvent(type=kind, identity=identity, trace=trace)]
    )


def identities_end(revision: int, complete: bool) -> identity_pb2.WatchIdentitiesResponse:
    """The end of a message of the identities' watch."""
    return identity_pb2.WatchIdentitiesResponse(revision=revision, snapshot_complete=complete)


def present_entries(rows: Sequence[Any]) -> identity_pb2.WatchIpCacheResponse:
    """A part of a snapshot of the ipcache, from rows of its table."""
    put = types_pb2.CHANGE_TYPE_PUT
    return identity_pb2.WatchIpCacheResponse(
        events=[identity_pb2.IpCacheEvent(type=put, entry=entry_message(row)) for row in rows]
    )


def entry_event(event: FeedEvent) -> identity_pb2.WatchIpCacheResponse:
    """An event of the ipcache feed, in a message of its own."""
    trace = types_pb2.TraceContext(traceparent=event.trace)
    if event.deleted:
        kind, entry = types_pb2.CHANGE_TYPE_DELETE, identity_pb2.IpCacheEntry(prefix=event.key)
    else:
        kind = types_pb2.CHANGE_TYPE_PUT
        entry = entry_message(decode_entry(event.key, event.payload, event.revision))
    return identity_pb2.WatchIpCacheResponse(
        events=[identity_pb2.IpCacheEvent(type=kind, entry=entry, trace=trace)]
    )


def entries_end(revision: int, complete: bool) -> identity_pb2.WatchIpCacheResponse:
    """The end of a message of the ipcache's watch."""
    return identity_pb2.WatchIpCacheResponse(revision=revision, snapshot_complete=complete)


def filter_message(stored: StoredFilter) -> identity_pb2.LabelFilter:
    """A label filter as the API shows it."""
    return identity_pb2.LabelFilter(patterns=stored.filter.texts, revision=stored.revision)


def filter_answer(stored: StoredFilter, preview: Preview) -> identity_pb2.SetLabelFilterResponse:
    """What a filter changes: as many identities as one message has room for, and the number of all."""
    answer = identity_pb2.SetLabelFilterResponse(
        filter=filter_message(stored),
        changed=len(preview.changes),
        entries=preview.entries,
        merged=preview.merged,
    )
    size = 0
    for change in preview.changes[:CHANGES]:
        message = identity_pb2.FilterChange(
            identity=identity_message(change.identity),
            labels=change.labels,
            becomes=change.becomes,
            entries=change.entries,
        )
        size += message.ByteSize() + 4
        if size > CHANGES_BYTES:
            break
        answer.changes.append(message)
    return answer


def holder_message(holder: Holder) -> identity_pb2.Holder:
    """A holder as the API shows it."""
    return identity_pb2.Holder(
        name=holder.name, identities=holder.identities, report_time=_timestamp(holder.reported_ns)
    )


def status_message(status: Status) -> identity_pb2.IdentityStatus:
    """The status as the API shows it."""
    collection = status.collection
    return identity_pb2.IdentityStatus(
        spaces=map(_space_message, status.spaces),
        collection=identity_pb2.CollectionStatus(
            collected=collection.collected,
            rate=collection.rate,
            backlog=collection.backlog,
            lag_seconds=collection.lag,
            grace_seconds=round(collection.grace),
            sweep_time=_timestamp(collection.swept_ns) if collection.swept_ns else None,
        ),
        holders=status.holders,
    )


def _space_message(usage: SpaceUsage) -> identity_pb2.SpaceStatus:
    exhausted = usage.forecast.exhausted_ns
    return identity_pb2.SpaceStatus(
        name=usage.space.name,
        first=usage.space.first,
        last=usage.space.last,
        taken=usage.taken,
        unused=usage.unused,
        growth_per_hour=usage.forecast.growth_per_hour,
        exhausted_time=_timestamp(exhausted) if exhausted is not None else None,
    )


def _timestamp(unix_ns: int) -> Timestamp:
    found = Timestamp()
    found.FromNanoseconds(unix_ns)
    return found
