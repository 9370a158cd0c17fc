"""IdentityService over a real socket."""

from __future__ import annotations

import asyncio
import itertools
from typing import TypeAlias

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.errors import InvalidArgument, NotFound, OutOfRange
from tests.service.identity.conftest import Place
from tests.service.processes import WATCH_SECONDS, ServiceProcess
from tests.service.refusals import refused
from tests.service.watches import next_events

Identities: TypeAlias = "identity_pb2_grpc.IdentityServiceAsyncStub"


def resolve(labels: list[str]) -> identity_pb2.ResolveRequest:
    return identity_pb2.ResolveRequest(labels=labels)


async def test_a_label_set_has_one_number_whatever_its_order(identities: Identities, place: Place) -> None:
    labels = place.labels("web")
    first = await identities.Resolve(resolve(labels))
    assert 256 <= first.id <= 65535
    assert list(first.labels) == sorted(labels)
    assert first.revision > 0
    assert first.name == ""
    for order in itertools.permutations(labels):
        assert await identities.Resolve(resolve(list(order))) == first
    assert await identities.Resolve(resolve([*labels, labels[0]])) == first
    assert await identities.GetIdentity(identity_pb2.GetIdentityRequest(id=first.id)) == first


async def test_other_labels_have_another_number(identities: Identities, place: Place) -> None:
    web = await identities.Resolve(resolve(place.labels("web")))
    db = await identities.Resolve(resolve(place.labels("db")))
    assert web.id != db.id
    assert db.revision > web.revision


async def test_concurrent_resolves_of_a_new_set_give_one_number(identities: Identities, place: Place) -> None:
    answers = await asyncio.gather(*(identities.Resolve(resolve(place.labels("new"))) for _ in range(50)))
    assert len({(answer.id, answer.revision) for answer in answers}) == 1


async def test_resolving_a_known_set_makes_no_event(identities: Identities, place: Place) -> None:
    await identities.Resolve(resolve(place.labels("web")))
    before = await identities.ListIdentities(identity_pb2.ListIdentitiesRequest(page_size=1))
    await identities.Resolve(resolve(place.labels("web")))
    after = await identities.ListIdentities(identity_pb2.ListIdentitiesRequest(page_size=1))
    assert before.revision == after.revision


@pytest.mark.parametrize(("number", "name"), [(1, "host"), (2, "world"), (6, "remote-node"), (8, "ingress")])
async def test_reserved_identities_resolve_by_their_label(
    identities: Identities, number: int, name: str
) -> None:
    expected = identity_pb2.Identity(id=number, labels=[f"reserved:{name}"], name=name)
    assert await identities.Resolve(resolve([f"reserved:{name}"])) == expected
    assert await identities.GetIdentity(identity_pb2.GetIdentityRequest(id=number)) == expected


@pytest.mark.parametrize(
    ("labels", "reason", "named"),
    [
        ([], "REQUEST_INVALID", "labels"),
        ([""], "REQUEST_INVALID", "labels[0]"),
        (["app=web"], "LABEL_INVALID", "app=web"),
        (["k8s:app=web", "k8s:app=db"], "LABEL_CONFLICT", "k8s:app"),
        (["k8s:app=" + "x" * 64], "LABEL_INVALID", "x" * 64),
        (["reserved:host", "k8s:app=web"], "LABEL_CONFLICT", "reserved:host"),
        (["reserved:unknown"], "LABEL_INVALID", "reserved:unknown"),
        (["cidr:10.0.0.0/8"], "LABEL_UNSUPPORTED", "cidr:10.0.0.0/8"),
    ],
)
async def test_illegal_labels_are_named(
    identities: Identities, labels: list[str], reason: str, named: str
) -> None:
    error = await refused(identities.Resolve(resolve(labels)), InvalidArgument, reason)
    violation = error.violations[0]
    assert violation.field.startswith("labels")
    assert named in violation.field + violation.description


async def test_an_unknown_number_is_not_found(identities: Identities) -> None:
    error = await refused(
        identities.GetIdentity(identity_pb2.GetIdentityRequest(id=60000)), NotFound, "IDENTITY_NOT_FOUND"
    )
    assert error.metadata == {"identity": "60000", "field": "id"}
    await refused(
        identities.GetIdentity(identity_pb2.GetIdentityRequest()), InvalidArgument, "REQUEST_INVALID"
    )


@pytest.mark.parametrize("reserved", [False, True])
async def test_identities_are_listed_by_number_in_pages(
    identities: Identities, place: Place, reserved: bool
) -> None:
    made = [await identities.Resolve(resolve(place.labels(f"app{number}"))) for number in range(5)]
    seen: list[identity_pb2.Identity] = []
    token = ""
    while True:
        page = await identities.ListIdentities(
            identity_pb2.ListIdentitiesRequest(include_reserved=reserved, page_size=3, page_token=token)
        )
        seen += page.identities
        token = page.next_page_token
        if not token:
            break
    numbers = [identity.id for identity in seen]
    assert numbers == sorted(set(numbers))
    assert all(identity in seen for identity in made)
    assert (numbers[:8] == [1, 2, 3, 4, 5, 6, 7, 8]) is reserved


async def test_a_watch_gives_the_state_then_new_identities(identities: Identities, place: Place) -> None:
    known = await identities.Resolve(resolve(place.labels("known")))
    watch = identities.WatchIdentities(identity_pb2.WatchIdentitiesRequest(), timeout=WATCH_SECONDS)
    present: list[identity_pb2.Identity] = []
    async for message in watch:
        if message.snapshot_complete:
            assert message.revision >= known.revision
            break
        assert message.revision == 0, "an unfinished snapshot cannot be resumed"
        present += [event.identity for event in message.events]
    assert known in present

    made = await identities.Resolve(resolve(place.labels("made")))
    message = await next_events(watch)
    assert message.revision == made.revision
    assert [event.identity for event in message.events] == [made]
    assert message.events[0].type == types_pb2.CHANGE_TYPE_PUT
    watch.cancel()


async def test_an_event_carries_the_trace_of_its_maker(
    identities: Identities, identity: ServiceProcess, place: Place
) -> None:
    before = await identities.Resolve(resolve(place.labels("before")))
    trace_id = f"{0xABCDEF00 + place.number:032x}"
    # gRPC's own channel: one that traces calls would put a context of its own in the place of this one.
    async with grpc.aio.insecure_channel(identity.target) as plain:
        await identity_pb2_grpc.IdentityServiceStub(plain).Resolve(
            resolve(place.labels("traced")),
            metadata=(("traceparent", f"00-{trace_id}-00000000000000aa-01"),),
        )
    watch = identities.WatchIdentities(
        identity_pb2.WatchIdentitiesRequest(from_revision=before.revision), timeout=WATCH_SECONDS
    )
    events: list[identity_pb2.IdentityEvent] = []
    while not any(f"k8s:io.kubernetes.pod.namespace={place.name}" in e.identity.labels for e in events):
        events += (await next_events(watch)).events
    version, traced, parent, flags = events[-1].trace.traceparent.split("-")
    assert (version, traced, flags) == ("00", trace_id, "01")
    assert parent != "00000000000000aa", "the parent is the server's span, not the caller's"
    watch.cancel()


async def test_a_watch_resumes_without_a_gap(identities: Identities, place: Place) -> None:
    first = await identities.Resolve(resolve(place.labels("first")))
    later = [await identities.Resolve(resolve(place.labels(f"later{number}"))) for number in range(3)]
    watch = identities.WatchIdentities(
        identity_pb2.WatchIdentitiesRequest(from_revision=first.revision), timeout=WATCH_SECONDS
    )
    seen: list[identity_pb2.Identity] = []
    while len(seen) < 3:
        seen += [event.identity for event in (await next_events(watch)).events]
    assert seen == later
    watch.cancel()


async def test_a_revision_that_has_not_happened_is_out_of_range(
    identities: Identities, identity: ServiceProcess
) -> None:
    watch = identities.WatchIdentities(
        identity_pb2.WatchIdentitiesRequest(from_revision=1 << 40), timeout=WATCH_SECONDS
    )
    error = await refused(anext(aiter(watch)), OutOfRange, "REVISION_UNKNOWN")
    assert "restart_revision" in error.metadata
