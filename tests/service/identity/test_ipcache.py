"""IpCacheService over a real socket."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TypeAlias

import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.errors import InvalidArgument, NotFound
from tests.service.identity.conftest import Place
from tests.service.processes import WATCH_SECONDS
from tests.service.refusals import refused
from tests.service.watches import next_events

Identities: TypeAlias = "identity_pb2_grpc.IdentityServiceAsyncStub"
IpCache: TypeAlias = "identity_pb2_grpc.IpCacheServiceAsyncStub"
Entry: TypeAlias = "identity_pb2.IpCacheEntry"


@pytest.fixture
async def web(identities: Identities, place: Place) -> identity_pb2.Identity:
    return await identities.Resolve(identity_pb2.ResolveRequest(labels=place.labels("web")))


def entry(prefix: str, identity: int, owner: str = "shop/web") -> Entry:
    return identity_pb2.IpCacheEntry(
        prefix=prefix, identity=identity, tunnel_endpoint="172.31.0.1", owner=owner
    )


def publish(node: str, *entries: Entry, replace_node: bool = False) -> identity_pb2.PublishRequest:
    return identity_pb2.PublishRequest(node=node, entries=entries, replace_node=replace_node)


async def entries_of(ipcache: IpCache, node: str) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    token = ""
    while True:
        page = await ipcache.ListIpCacheEntries(
            identity_pb2.ListIpCacheEntriesRequest(node=node, page_size=2, page_token=token)
        )
        found.update((one.prefix, one) for one in page.entries)
        token = page.next_page_token
        if not token:
            return found


async def test_an_entry_carries_its_identitys_revision_and_its_own(
    ipcache: IpCache, place: Place, web: identity_pb2.Identity
) -> None:
    bare = place.prefix(7).removesuffix("/32")
    answer = await ipcache.Publish(publish(place.name, entry(bare, web.id)))
    assert await entries_of(ipcache, place.name) == {
        place.prefix(7): identity_pb2.IpCacheEntry(
            prefix=place.prefix(7),
            identity=web.id,
            tunnel_endpoint="172.31.0.1",
            node=place.name,
            owner="shop/web",
            identity_revision=web.revision,
            revision=answer.revision,
        )
    }


async def test_publishing_the_same_again_changes_nothing(
    ipcache: IpCache, place: Place, web: identity_pb2.Identity
) -> None:
    request = publish(place.name, entry(place.prefix(1), web.id))
    first = await ipcache.Publish(request)
    assert await ipcache.Publish(request) == first
    assert (await entries_of(ipcache, place.name))[place.prefix(1)].revision == first.revision


async def test_reserved_identities_have_revision_zero(ipcache: IpCache, place: Place) -> None:
    await ipcache.Publish(publish(place.name, entry(place.prefix(1), 6)))
    assert (await entries_of(ipcache, place.name))[place.prefix(1)].identity_revision == 0


async def test_an_unknown_identity_is_refused_and_nothing_published(
    ipcache: IpCache, place: Place, web: identity_pb2.Identity
) -> None:
    error = await refused(
        ipcache.Publish(publish(place.name, entry(place.prefix(1), web.id), entry(place.prefix(2), 60000))),
        NotFound,
        "IDENTITY_NOT_FOUND",
    )
    assert error.metadata == {"identity": "60000", "field": "entries[1].identity"}
    assert await entries_of(ipcache, place.name) == {}


@pytest.mark.parametrize(
    ("prefix", "number", "reason", "field"),
    [
        ("10.0.0.7/24", 1, "PREFIX_INVALID", "entries[0].prefix"),
        ("web", 1, "PREFIX_INVALID", "entries[0].prefix"),
        ("FD00::1", 1, "PREFIX_INVALID", "entries[0].prefix"),
        ("fd00::1/64", 1, "PREFIX_INVALID", "entries[0].prefix"),
        ("", 1, "REQUEST_INVALID", "entries[0].prefix"),
        ("10.0.0.7", 0, "REQUEST_INVALID", "entries[0].identity"),
    ],
)
async def test_bad_entries_name_the_field(
    ipcache: IpCache, place: Place, prefix: str, number: int, reason: str, field: str
) -> None:
    error = await refused(
        ipcache.Publish(publish(place.name, entry(prefix, number))), InvalidArgument, reason
    )
    assert error.violations[0].field == field


async def test_a_replacement_withdraws_what_it_does_not_name(
    ipcache: IpCache, place: Place, web: identity_pb2.Identity
) -> None:
    node, other = f"{place.name}-a", f"{place.name}-b"
    await ipcache.Publish(publish(node, *(entry(place.prefix(host), web.id) for host in (1, 2, 3))))
    await ipcache.Publish(publish(other, entry(place.prefix(9), web.id)))
    await ipcache.Publish(
        publish(node, entry(place.prefix(2), web.id), entry(place.prefix(4), web.id), replace_node=True)
    )
    assert set(await entries_of(ipcache, node)) == {place.prefix(2), place.prefix(4)}
    assert set(await entries_of(ipcache, other)) == {place.prefix(9)}
    await ipcache.Publish(publish(node, replace_node=True))
    assert await entries_of(ipcache, node) == {}


async def test_a_late_withdrawal_does_not_remove_the_new_publishers_entry(
    ipcache: IpCache, place: Place, web: identity_pb2.Identity
) -> None:
    old, new = f"{place.name}-old", f"{place.name}-new"
    withdraw = identity_pb2.WithdrawRequest(node=old, prefixes=[place.prefix(1)])
    await ipcache.Publish(publish(old, entry(place.prefix(1), web.id)))
    await ipcache.Publish(publish(new, entry(place.prefix(1), web.id, "shop/moved")))
    await ipcache.Withdraw(withdraw)
    assert (await entries_of(ipcache, new))[place.prefix(1)].owner == "shop/moved"
    await ipcache.Publish(publish(old, replace_node=True))
    assert set(await entries_of(ipcache, new)) == {place.prefix(1)}
    await ipcache.Withdraw(identity_pb2.WithdrawRequest(node=new, prefixes=[place.prefix(1)]))
    assert await entries_of(ipcache, new) == {}
    await ipcache.Withdraw(withdraw)


async def test_a_bad_prefix_in_a_withdrawal_is_named(ipcache: IpCache, place: Place) -> None:
    error = await refused(
        ipcache.Withdraw(identity_pb2.WithdrawRequest(node=place.name, prefixes=["10.0.0.1", "10.0.0.1/8"])),
        InvalidArgument,
        "PREFIX_INVALID",
    )
    assert error.violations[0].field == "prefixes[1]"


async def test_entries_are_listed_in_the_order_of_their_numbers(
    ipcache: IpCache, place: Place, web: identity_pb2.Identity
) -> None:
    hosts = [300, 2, 10, 9]
    await ipcache.Publish(publish(place.name, *(entry(place.prefix(host), web.id) for host in hosts)))
    wide = f"10.{place.number}.0.0/16"
    await ipcache.Publish(publish(place.name, entry(wide, web.id)))
    assert list(await entries_of(ipcache, place.name)) == [wide, *(place.prefix(h) for h in sorted(hosts))]


async def test_entries_of_both_families_are_listed_ipv4_first(
    ipcache: IpCache, place: Place, web: identity_pb2.Identity
) -> None:
    # As bytes, these prefixes of the two families sort among each other.
    number = place.number
    prefixes = [
        *(f"{first}.{number}.0.0/16" for first in (10, 172, 200)),
        f"172.{number}.0.7/32",
        "::/0",
        f"a00:{number:x}::/32",
        f"2001:db8:{number:x}::9/128",
        f"2001:db8:{number:x}::10/128",
        f"fd00:{number:x}::/48",
        f"fd00:{number:x}::/64",
    ]
    prefixes.sort(key=lambda text: (":" in text, ip_network(text).network_address.packed, text))
    answer = await ipcache.Publish(
        publish(place.name, *(entry(prefix, web.id) for prefix in reversed(prefixes)))
    )
    found = await entries_of(ipcache, place.name)
    assert list(found) == prefixes
    assert found["::/0"].tunnel_endpoint == "172.31.0.1"
    everything = await ipcache.ListIpCacheEntries(identity_pb2.ListIpCacheEntriesRequest(page_size=1000))
    listed = [one.prefix for one in everything.entries]
    assert [prefix for prefix in listed if prefix in prefixes] == prefixes
    assert [":" in prefix for prefix in listed] == sorted(":" in prefix for prefix in listed)

    watch = ipcache.WatchIpCache(
        identity_pb2.WatchIpCacheRequest(from_revision=answer.revision), timeout=WATCH_SECONDS
    )
    await ipcache.Withdraw(
        identity_pb2.WithdrawRequest(node=place.name, prefixes=["::/0", f"2001:db8:{number:x}::9"])
    )
    message = await next_events(watch)
    assert {event.entry.prefix for event in message.events} == {"::/0", f"2001:db8:{number:x}::9/128"}
    assert all(event.type == types_pb2.CHANGE_TYPE_DELETE for event in message.events)
    watch.cancel()
    await ipcache.Publish(publish(place.name, replace_node=True))
    assert await entries_of(ipcache, place.name) == {}


async def test_a_prefix_in_another_form_is_refused_with_the_right_one(ipcache: IpCache, place: Place) -> None:
    error = await refused(
        ipcache.Publish(publish(place.name, entry("2001:DB8:0::1", 1))), InvalidArgument, "PREFIX_INVALID"
    )
    assert error.metadata["expected"] == "2001:db8::1/128"
    error = await refused(
        ipcache.Withdraw(identity_pb2.WithdrawRequest(node=place.name, prefixes=["2001:db8::1/64"])),
        InvalidArgument,
        "PREFIX_INVALID",
    )
    assert error.metadata == {"field": "prefixes[0]", "value": "2001:db8::1/64", "expected": "2001:db8::/64"}


async def test_a_watcher_rebuilds_the_table(
    ipcache: IpCache, place: Place, web: identity_pb2.Identity
) -> None:
    await ipcache.Publish(publish(place.name, *(entry(place.prefix(host), web.id) for host in range(20))))
    watch = ipcache.WatchIpCache(identity_pb2.WatchIpCacheRequest(), timeout=WATCH_SECONDS)
    table: dict[str, Entry] = {}

    async def follow(until: int) -> None:
        async for message in watch:
            for event in message.events:
                if event.type == types_pb2.CHANGE_TYPE_DELETE:
                    assert event.entry == identity_pb2.IpCacheEntry(prefix=event.entry.prefix)
                    table.pop(event.entry.prefix)
                else:
                    table[event.entry.prefix] = event.entry
            if message.revision >= until and (message.events or message.snapshot_complete):
                return

    await follow(1)
    await ipcache.Withdraw(
        identity_pb2.WithdrawRequest(node=place.name, prefixes=[place.prefix(h) for h in range(5)])
    )
    answer = await ipcache.Publish(
        publish(place.name, *(entry(place.prefix(host), 6, "node") for host in range(10, 30)))
    )
    await follow(answer.revision)
    mine = {prefix: one for prefix, one in table.items() if one.node == place.name}
    assert mine == await entries_of(ipcache, place.name)
    assert len(mine) == 25
    watch.cancel()


async def test_a_watch_resumes_in_the_middle_of_one_publication(
    ipcache: IpCache, place: Place, web: identity_pb2.Identity
) -> None:
    answer = await ipcache.Publish(
        publish(place.name, *(entry(place.prefix(host), web.id) for host in range(10)))
    )
    watch = ipcache.WatchIpCache(
        identity_pb2.WatchIpCacheRequest(from_revision=answer.revision - 4), timeout=WATCH_SECONDS
    )
    message = await next_events(watch)
    assert [event.entry.prefix for event in message.events] == [place.prefix(h) for h in range(6, 10)]
    assert message.revision == answer.revision
    watch.cancel()
