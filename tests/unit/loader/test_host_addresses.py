"""The node's addresses in its ipcache: all that lead to it from anywhere, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from services.loader.host_addresses import HostAddresses
from tests.unit.loader.waiting import until

ALWAYS = {"255.255.255.255"}


class Ipcache:
    def __init__(self) -> None:
        self.held: set[str] = set()
        self.calls = 0

    def put_local(self, addresses: Iterable[str], identity: int, identity_revision: int) -> None:
        assert (identity, identity_revision) == (1, 0)
        self.calls += 1
        self.held |= set(addresses)

    def remove_local(self, addresses: Iterable[str]) -> None:
        self.calls += 1
        self.held -= set(addresses)


def follow(ipcache: Ipcache) -> HostAddresses:
    return HostAddresses(ipcache, ["10.244.1.0/24", "fd00:10:244:1::/112"], list)


def test_addresses_of_both_families_and_what_is_for_all_on_their_links() -> None:
    ipcache = Ipcache()
    follow(ipcache).take(["192.0.2.7/24", "198.51.100.1/32", "203.0.113.0/31", "2001:db8::7/64"])
    assert ipcache.held == ALWAYS | {
        "192.0.2.7",
        "192.0.2.255",
        "198.51.100.1",
        "203.0.113.0",
        "2001:db8::7",
    }


def test_what_means_something_on_a_link_alone_or_is_a_pods_is_left_out() -> None:
    ipcache = Ipcache()
    follow(ipcache).take(["127.0.0.1/8", "::1/128", "fe80::1/64", "169.254.1.1/16", "10.244.1.9/32"])
    assert ipcache.held == set()
    follow(ipcache).take(["fd00:10:244:1::9/128"])
    assert ipcache.held == set()


def test_only_what_changes_is_written() -> None:
    ipcache = Ipcache()
    addresses = follow(ipcache)
    addresses.take(["192.0.2.7/24"])
    addresses.take(["192.0.2.7/24"])
    assert ipcache.calls == 1
    addresses.take(["192.0.2.7/24", "192.0.2.8/24"])
    assert "192.0.2.8" in ipcache.held
    addresses.take(["192.0.2.8/24"])
    assert ipcache.held == ALWAYS | {"192.0.2.8", "192.0.2.255"}
    addresses.take([])
    assert ipcache.held == set()


async def test_it_goes_on_after_a_failure() -> None:
    ipcache = Ipcache()
    failures = [OSError("no netlink")]

    def read() -> list[str]:
        if failures:
            raise failures.pop()
        return ["192.0.2.7/24"]

    running = asyncio.create_task(HostAddresses(ipcache, [], read).run())
    await until(lambda: "192.0.2.7" in ipcache.held)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_addresses_of_a_new_pod_cidr_are_pods() -> None:
    ipcache = Ipcache()
    addresses = HostAddresses(ipcache, ["10.244.1.0/24"], lambda: ["10.245.0.1/32", "192.0.2.7/24"])
    running = asyncio.create_task(addresses.run())
    await until(lambda: "10.245.0.1" in ipcache.held)
    addresses.follow(["10.244.1.0/24", "10.245.0.0/24"])
    await until(lambda: "10.245.0.1" not in ipcache.held)
    addresses.follow(["10.244.1.0/24"])
    await until(lambda: "10.245.0.1" in ipcache.held)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
