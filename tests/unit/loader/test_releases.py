"""Releases are made in their order, in the end, and never while somebody still needs the address."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from services.chassis.errors import Unavailable
from services.loader.endpoints.publication import Publication
from services.loader.endpoints.records import StateDirectory
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.endpoints.releases import Releases
from tests.unit.loader.fakes import FakeServices
from tests.unit.loader.waiting import until


@pytest.fixture
def services() -> FakeServices:
    return FakeServices(owners={"c1/eth0": "10.0.0.2"}, published={"10.0.0.2/32": 256, "fd00::2/128": 256})


def releases(directory: Path, services: FakeServices) -> Releases:
    state = StateDirectory(directory)
    return Releases(state, services, Publication(services, EndpointRegistry(state)))


async def test_the_prefix_goes_before_the_address(tmp_path: Path, services: FakeServices) -> None:
    queue = releases(tmp_path, services)
    queue.add("c1/eth0", ["10.0.0.2/32", "fd00::2/128"])
    await queue.settle("c1/eth0")
    assert services.calls == ["withdraw", "release"]
    assert (services.owners, services.published) == ({}, {})
    await queue.settle("c1/eth0")
    assert len(services.calls) == 2


async def test_the_address_is_given_back_only_when_its_device_is_gone(
    tmp_path: Path, services: FakeServices
) -> None:
    queue = releases(tmp_path, services)
    gone = asyncio.Event()
    queue.add("c1/eth0", ["10.0.0.2/32", "fd00::2/128"])

    async def removal() -> None:
        await gone.wait()

    settling = asyncio.create_task(queue.settle("c1/eth0", removal()))
    await until(lambda: services.published == {})
    assert services.owners
    gone.set()
    await settling
    assert services.owners == {}


async def test_what_cannot_be_released_now_is_released_later(tmp_path: Path, services: FakeServices) -> None:
    queue = releases(tmp_path, services)
    services.down = True
    queue.add("c1/eth0", ["10.0.0.2/32", "fd00::2/128"])
    with pytest.raises(Unavailable):
        await queue.settle("c1/eth0")
    await queue.try_settle("c1/eth0")
    again = releases(tmp_path, services)
    assert len(again) == 1
    working = asyncio.create_task(again.run())
    await until(lambda: services.calls.count("withdraw") >= 3)
    services.down = False
    await until(lambda: services.owners == {})
    await until(lambda: len(again) == 0)
    assert StateDirectory(tmp_path).load_releases() == []
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working


async def test_nobody_else_makes_a_release_that_is_held(tmp_path: Path, services: FakeServices) -> None:
    queue = releases(tmp_path, services)
    working = asyncio.create_task(queue.run())
    with queue.hold("c1/eth0"):
        queue.add("c1/eth0", ["10.0.0.2/32", "fd00::2/128"])
        await asyncio.sleep(0.02)
        assert services.calls == []
    await until(lambda: services.owners == {})
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
