"""Identities of prefixes, over gRPC and in the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.db import Database
from services.chassis.errors import InvalidArgument, NotFound, ResourceExhausted
from services.chassis.feed import Feed
from services.identity.prefix_store import PrefixStore
from services.identity.reserved import PREFIX_FIRST, PREFIX_LAST
from services.identity.schema import prefix_cursor, prefixes
from tests.service.identity.conftest import Place
from tests.service.processes import WATCH_SECONDS
from tests.service.refusals import refused

Stub: TypeAlias = "identity_pb2_grpc.IdentityServiceAsyncStub"


async def resolve(identities: Stub, *wanted: str) -> list[identity_pb2.Identity]:
    answer = await identities.ResolvePrefixes(identity_pb2.ResolvePrefixesRequest(prefixes=wanted))
    return list(answer.identities)


async def every_identity(identities: Stub) -> dict[int, identity_pb2.Identity]:
    found: dict[int, identity_pb2.Identity] = {}
    token = ""
    while True:
        page = await identities.ListIdentities(
            identity_pb2.ListIdentitiesRequest(include_reserved=True, page_size=7, page_token=token)
        )
        found.update((identity.id, identity) for identity in page.identities)
        token = page.next_page_token
        if not token:
            return found


async def test_a_prefix_has_one_number_and_the_labels_of_the_world(identities: Stub, place: Place) -> None:
    v4, v6 = f"10.{place.number}.0.0/16", f"2001:db8:{place.number}::/48"
    first, second, again = await resolve(identities, v4, v6, v4)
    assert PREFIX_FIRST <= first.id <= PREFIX_LAST and first == again and first.id != second.id
    assert set(first.labels) == {f"cidr:{v4}", "reserved:world", "reserved:world-ipv4"}
    assert set(second.labels) == {f"cidr:{v6}", "reserved:world", "reserved:world-ipv6"}
    assert await resolve(identities, v6, v4) == [second, first]
    assert await identities.GetIdentity(identity_pb2.GetIdentityRequest(id=second.id)) == second


async def test_whole_families_are_reserved_identities(identities: Stub) -> None:
    v4, v6 = await resolve(identities, "0.0.0.0/0", "::/0")
    assert [(v4.id, v4.name), (v6.id, v6.name)] == [(9, "world-ipv4"), (10, "world-ipv6")]
    assert set(v4.labels) == {"cidr:0.0.0.0/0", "reserved:world", "reserved:world-ipv4"}
    assert await identities.GetIdentity(identity_pb2.GetIdentityRequest(id=9)) == v4


async def test_listing_has_prefixes_after_all_others(identities: Stub, place: Place) -> None:
    await identities.Resolve(identity_pb2.ResolveRequest(labels=place.labels("web")))
    (made,) = await resolve(identities, f"10.{place.number}.8.0/24")
    found = await every_identity(identities)
    assert list(found) == sorted(found)
    assert found[made.id] == made
    assert {number: found[number].name for number in (9, 10)} == {9: "world-ipv4", 10: "world-ipv6"}


async def test_a_watch_tells_of_new_prefixes_and_starts_with_those_there_are(
    identities: Stub, place: Place
) -> None:
    (before,) = await resolve(identities, f"10.{place.number}.1.0/24")
    call = identities.WatchIdentities(identity_pb2.WatchIdentitiesRequest())
    snapshot: dict[int, identity_pb2.Identity] = {}
    async with asyncio.timeout(WATCH_SECONDS):
        async for message in call:
            snapshot.update((event.identity.id, event.identity) for event in message.events)
            if message.snapshot_complete:
                break
        assert snapshot[before.id] == before
        made = await resolve(identities, f"10.{place.number}.2.0/24", f"10.{place.number}.3.0/24")
        seen: list[identity_pb2.Identity] = []
        async for message in call:
            seen += [event.identity for event in message.events if event.identity in made]
            if len(seen) == 2:
                break
    assert seen == made
    call.cancel()


async def test_one_bad_prefix_refuses_all(identities: Stub, place: Place) -> None:
    good = f"10.{place.number}.9.0/24"
    error = await refused(
        resolve(identities, good, f"10.{place.number}.9.1/24"), InvalidArgument, "PREFIX_INVALID"
    )
    assert error.metadata["expected"] == good
    assert error.violations[0].field == "prefixes[1]"
    assert f"cidr:{good}" not in {
        label for identity in (await every_identity(identities)).values() for label in identity.labels
    }


async def test_labels_of_prefixes_are_refused_by_resolve(identities: Stub) -> None:
    request = identity_pb2.ResolveRequest(labels=["cidr:10.0.0.0/8", "reserved:world"])
    await refused(identities.Resolve(request), InvalidArgument, "LABEL_UNSUPPORTED")


async def test_a_number_that_no_prefix_has_is_not_found(identities: Stub) -> None:
    request = identity_pb2.GetIdentityRequest(id=PREFIX_LAST)
    await refused(identities.GetIdentity(request), NotFound, "IDENTITY_NOT_FOUND")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/identity.db"
    async with await Database.open(url, "services.identity.migrations") as database:
        yield database


def store_over(database: Database) -> PrefixStore:
    return PrefixStore(database, Feed(database, "identities"), time.time_ns)


async def fill(database: Database, *, free: set[int], cursor: int) -> None:
    """Uses every number but `free`, and puts the cursor where it would stand."""

    async def operation(connection: AsyncConnection) -> None:
        rows = [
            {"id": number, "prefix": f"2001:db8:{number:x}::/48", "revision": 1, "created_ns": 0}
            for number in range(PREFIX_FIRST, PREFIX_LAST + 1)
            if number not in free
        ]
        await connection.execute(insert(prefixes), rows)
        await connection.execute(update(prefix_cursor).values(next_id=cursor))

    await database.write(operation)


async def test_the_last_free_numbers_are_found_in_rotation_all_or_none(database: Database) -> None:
    low, high = PREFIX_FIRST + 3, PREFIX_LAST - 1
    await fill(database, free={low, low + 2000, high}, cursor=low + 1)
    store = store_over(database)
    wanted = [f"10.0.{n}.0/24" for n in range(4)]
    with pytest.raises(ResourceExhausted) as caught:
        await store.resolve(wanted, trace="")
    assert caught.value.reason == "IDENTITIES_EXHAUSTED"
    # Nothing was taken: three are there for who asks for three.
    made = await store.resolve(wanted[:3], trace="")
    assert [identity.number for identity in made] == [low + 2000, high, low]
    assert await store_over(database).resolve(wanted[:3], trace="") == made


async def test_two_stores_over_one_file_agree(database: Database) -> None:
    stores = [store_over(database) for _ in range(4)]
    wanted = ["10.0.0.0/8", "192.0.2.0/24"]
    answers = await asyncio.gather(*(store.resolve(wanted, trace="") for store in stores * 5))
    assert {tuple(identity.number for identity in answer) for answer in answers} == {
        (PREFIX_FIRST, PREFIX_FIRST + 1)
    }


async def test_numbers_go_on_after_the_last_one_and_revisions_follow_the_feed(database: Database) -> None:
    feed = Feed(database, "identities")
    store = PrefixStore(database, feed, time.time_ns)
    many = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(1500)]
    made = await store.resolve(many, trace="")
    assert [identity.number for identity in made] == list(range(PREFIX_FIRST, PREFIX_FIRST + 1500))
    assert [identity.revision for identity in made] == list(range(1, 1501))
    assert feed.revision == 1500
    (later,) = await store_over(database).resolve(["172.16.0.0/12"], trace="")
    assert later.number == PREFIX_FIRST + 1500
