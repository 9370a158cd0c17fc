"""The pool that the settings describe, beside what the store has."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.chassis.errors import AlreadyExists
from services.ipam import default_pool
from services.ipam.default_pool import ensure_default_pool
from services.ipam.settings import IpamSettings
from tests.service.ipam.stores import World, nets

SETTINGS = IpamSettings(ipam_default_pool_cidr=("10.244.0.0/16",))


@pytest.fixture
async def world(url: str) -> AsyncIterator[World]:
    async with World.open(url) as world:
        yield world


class Log:
    """Takes down what is warned of."""

    def __init__(self) -> None:
        self.lines: list[dict[str, str]] = []

    def warning(self, event: str, **fields: str) -> None:
        self.lines.append(fields)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    monkeypatch.setattr(default_pool, "log", log)
    return log


async def test_it_is_made_once(world: World) -> None:
    for _ in range(2):
        await ensure_default_pool(world.pools, SETTINGS)
    pool = await world.pools.get("default")
    assert (pool.cidrs, pool.node_mask_size, pool.revision) == (nets("10.244.0.0/16"), 24, 1)


async def test_mode_kubernetes_has_none(world: World, log: Log) -> None:
    settings = IpamSettings(ipam_mode="kubernetes", ipam_default_pool_cidr=("10.244.0.0/16",))
    await ensure_default_pool(world.pools, settings)
    assert [line["cidrs"] for line in log.lines] == ["10.244.0.0/16"]
    assert await world.pools.list(after="", limit=9) == []


@pytest.mark.parametrize(
    "settings",
    [
        IpamSettings(ipam_default_pool_cidr=("10.99.0.0/16",)),
        IpamSettings(ipam_default_pool_cidr=("10.244.0.0/16", "10.99.0.0/16")),
        IpamSettings(ipam_default_pool_cidr=("10.244.0.0/16", "fd00::/48")),
        IpamSettings(ipam_default_pool_cidr=("10.244.0.0/16",), ipam_default_pool_mask_size=25),
    ],
)
async def test_one_of_an_earlier_start_with_other_settings_is_refused(
    world: World, settings: IpamSettings
) -> None:
    await ensure_default_pool(world.pools, SETTINGS)
    with pytest.raises(AlreadyExists, match=r"10\.244\.0\.0/16, node mask /24") as caught:
        await ensure_default_pool(world.pools, settings)
    assert caught.value.reason == "POOL_EXISTS"


async def test_one_that_was_changed_since_stays_and_the_log_names_both(world: World, log: Log) -> None:
    await ensure_default_pool(world.pools, SETTINGS)
    await world.node(1, "default")
    changed = await world.update("default", "10.99.0.0/16", excluded=["10.99.0.7"])
    await ensure_default_pool(world.pools, SETTINGS)
    assert await world.pools.get("default") == changed
    assert [(line["cidrs"], line["draining"], line["settings"]) for line in log.lines] == [
        ("10.99.0.0/16", "10.244.0.0/16", "10.244.0.0/16")
    ]
    # What follows the pool says nothing more.
    await ensure_default_pool(world.pools, IpamSettings(ipam_default_pool_cidr=("10.99.0.0/16",)))
    assert len(log.lines) == 1
    # Mask sizes are fixed: another one cannot be what the operator wants.
    other = IpamSettings(ipam_default_pool_cidr=("10.99.0.0/16",), ipam_default_pool_mask_size=25)
    with pytest.raises(AlreadyExists):
        await ensure_default_pool(world.pools, other)
