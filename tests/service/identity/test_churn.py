"""Holders, garbage collection and status over a real process whose periods are short."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.channel import open_channel
from services.chassis.errors import InvalidArgument, NotFound
from tests.service.processes import WATCH_SECONDS, ServiceProcess, start
from tests.service.refusals import refused

Identities: TypeAlias = "identity_pb2_grpc.IdentityServiceAsyncStub"


@pytest.fixture(scope="module")
def short_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("identity")
    service = start("identity", directory, "--identity-lease-seconds=3", "--identity-grace-seconds=1")
    yield service
    assert service.terminate() == 0


@pytest.fixture
async def identities(short_lived: ServiceProcess) -> AsyncIterator[Identities]:
    async with open_channel(short_lived.target) as channel:
        yield identity_pb2_grpc.IdentityServiceStub(channel)


async def resolve(identities: Identities, app: str, holder: str = "") -> int:
    request = identity_pb2.ResolveRequest(labels=[f"k8s:app={app}"], holder=holder)
    return (await identities.Resolve(request)).id


async def report(identities: Identities, holder: str, *numbers: int) -> identity_pb2.ReportUseResponse:
    return await identities.ReportUse(identity_pb2.ReportUseRequest(holder=holder, identities=numbers))


async def gone(identities: Identities, numbers: set[int]) -> None:
    """Waits until all of them have been deleted."""
    left = set(numbers)
    watch = identities.WatchIdentities(
        identity_pb2.WatchIdentitiesRequest(from_revision=1), timeout=WATCH_SECONDS
    )
    async for message in watch:
        for event in message.events:
            if event.type == types_pb2.CHANGE_TYPE_DELETE:
                assert event.identity == identity_pb2.Identity(id=event.identity.id)
                left.discard(event.identity.id)
        if not left:
            watch.cancel()
            return


async def test_churn_is_collected_as_fast_as_it_comes(identities: Identities) -> None:
    kept = await resolve(identities, "kept", "node/kept")
    made: dict[str, int] = {}
    started = time.monotonic()

    async def churn(node: str) -> None:
        """Pods that come, and go when the next ones come, each a label set of its own."""
        for turn in itertools.count():
            numbers = [await resolve(identities, f"{node}-{turn}-{pod}", f"node/{node}") for pod in range(10)]
            made.update((f"{node}-{turn}-{pod}", number) for pod, number in enumerate(numbers))
            assert not (await report(identities, f"node/{node}", *numbers)).unknown
            if time.monotonic() - started > 2.5:
                break
        await identities.EndUse(identity_pb2.EndUseRequest(holder=f"node/{node}"))

    async def keep() -> None:
        while True:
            assert not (await report(identities, "node/kept", kept)).unknown
            await asyncio.sleep(0.5)

    keeping = asyncio.create_task(keep())
    await asyncio.gather(*(churn(f"n{number}") for number in range(4)))
    rate = len(made) / (time.monotonic() - started)
    # Pods came faster than a cluster makes them, and none got another's number while both were there.
    assert rate > 40
    assert len({*made.values(), kept}) == len(made) + 1
    ended = time.monotonic()
    await gone(identities, {*made.values()})
    drained = len(made) / (time.monotonic() - ended)
    assert drained > 40
    status = await identities.GetIdentityStatus(identity_pb2.GetIdentityStatusRequest())
    assert status.collection.collected >= len(made)
    assert status.collection.rate > 0
    assert status.collection.backlog == 0
    assert await resolve(identities, "kept", "node/kept") == kept
    keeping.cancel()
    # The numbers rest: a new set gets one that has not been given out before.
    assert await resolve(identities, "after") not in made.values()


async def test_a_holder_that_falls_silent_loses_what_it_used(identities: Identities) -> None:
    silent = await resolve(identities, "silent", "node/silent")
    published = await resolve(identities, "published", "node/silent")
    async with asyncio.timeout(WATCH_SECONDS):
        holders = await identities.ListHolders(identity_pb2.ListHoldersRequest(page_size=1000))
        (holder,) = [each for each in holders.holders if each.name == "node/silent"]
        assert holder.identities == 2
        assert abs(holder.report_time.seconds - time.time()) < WATCH_SECONDS
        await gone(identities, {silent, published})
    await refused(
        identities.GetIdentity(identity_pb2.GetIdentityRequest(id=silent)), NotFound, "IDENTITY_NOT_FOUND"
    )
    holders = await identities.ListHolders(identity_pb2.ListHoldersRequest(page_size=1000))
    assert "node/silent" not in {each.name for each in holders.holders}
    answer = await report(identities, "node/silent", silent, published)
    assert {*answer.unknown} == {silent, published}


async def test_a_report_is_answered_with_the_lease_and_what_is_unknown(identities: Identities) -> None:
    web = await resolve(identities, "web")
    answer = await report(identities, "node/r", 1, 9, web, 60_000, 16_777_215)
    assert (answer.lease_seconds, {*answer.unknown}) == (3, {60_000, 16_777_215})
    assert answer.label_filter_revision > 0
    await identities.EndUse(identity_pb2.EndUseRequest(holder="node/r"))
    await identities.EndUse(identity_pb2.EndUseRequest(holder="node/r"))
    error = await refused(report(identities, ""), InvalidArgument, "REQUEST_INVALID")
    assert error.violations[0].field == "holder"
    error = await refused(report(identities, "node/r", 0), InvalidArgument, "REQUEST_INVALID")
    assert error.violations[0].field == "identities[0]"


async def test_holders_are_listed_in_pages(identities: Identities) -> None:
    names = [f"node/page-{number}" for number in range(5)]
    for name in names:
        await report(identities, name)
    seen: list[str] = []
    token = ""
    while True:
        request = identity_pb2.ListHoldersRequest(page_size=2, page_token=token)
        page = await identities.ListHolders(request)
        seen += [holder.name for holder in page.holders]
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted(seen)
    assert {*names} <= {*seen}
    request = identity_pb2.ListHoldersRequest(page_token="other")
    await refused(identities.ListHolders(request), InvalidArgument, "PAGE_INVALID")


async def test_the_status_tells_of_spaces_and_foretells_nothing_yet(tmp_path: Path) -> None:
    service = start("identity", tmp_path)
    try:
        async with open_channel(service.target) as channel:
            identities = identity_pb2_grpc.IdentityServiceStub(channel)
            numbers = [await resolve(identities, f"s{number}", "node/a") for number in range(3)]
            await report(identities, "node/a", *numbers[:2])
            request = identity_pb2.ResolvePrefixesRequest(prefixes=["10.0.0.0/8"], holder="policy")
            await identities.ResolvePrefixes(request)
            status = await identities.GetIdentityStatus(identity_pb2.GetIdentityStatusRequest())
    finally:
        assert service.terminate() == 0
    cluster, prefixes = status.spaces
    assert (cluster.name, cluster.first, cluster.last) == ("cluster", 256, 65535)
    assert (cluster.taken, cluster.unused) == (3, 1)
    assert (prefixes.name, prefixes.first, prefixes.last) == ("prefixes", 0xFF0000, 0xFFFFFF)
    assert (prefixes.taken, prefixes.unused) == (1, 0)
    for space in status.spaces:
        assert space.growth_per_hour == 0
        assert not space.HasField("exhausted_time")
    assert status.holders == 2
    assert (status.collection.grace_seconds, status.collection.collected) == (300, 0)
    assert status.collection.HasField("sweep_time")
