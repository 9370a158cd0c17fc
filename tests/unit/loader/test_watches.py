"""Feeds are followed over breaks and compactions; nodes become routes and meanings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Generic, TypeAlias, TypeVar

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2
from fimbria.ipam.v1 import ipam_pb2
from fimbria.types.v1 import types_pb2

from services.chassis.errors import OutOfRange, rich_status
from services.loader.ipcache.nodes import Node, NodesSync, node_meanings
from services.loader.ipcache.sync import IpcacheSync
from services.loader.ipcache.table import Meaning
from services.loader.streams.watermark import Watermark
from tests.unit.loader.fakes import FakeKernel, FakeLinks
from tests.unit.loader.waiting import until

M = TypeVar("M")
Cluster: TypeAlias = "tuple[NodesSync, Feed[ipam_pb2.WatchNodesResponse], FakeLinks]"
OWN = Node("node-1", "172.31.1.1", ("10.244.1.0/24",), "10.244.1.1")


class Feed(Generic[M]):
    """A stream that says what it is told; an exception breaks it."""

    def __init__(self) -> None:
        self.opened: list[int] = []
        self._say: asyncio.Queue[M | Exception] = asyncio.Queue()

    async def open(self, revision: int) -> AsyncIterator[M]:
        self.opened.append(revision)
        while True:
            message = await self._say.get()
            if isinstance(message, Exception):
                raise message
            yield message

    def say(self, message: M | Exception) -> None:
        self._say.put_nowait(message)


def refusal(code: grpc.StatusCode, error: OutOfRange | None = None) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata()
    if error is not None:
        trailing.add("grpc-status-details-bin", rich_status(error).SerializeToString())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details="gone")


def put(
    address: str, identity: int, *, revision: int, since: int = 0, node: str = "node-2"
) -> identity_pb2.IpCacheEvent:
    return identity_pb2.IpCacheEvent(
        type=types_pb2.CHANGE_TYPE_PUT,
        entry=identity_pb2.IpCacheEntry(
            prefix=f"{address}/32",
            identity=identity,
            tunnel_endpoint="172.31.1.2" if node == "node-2" else "172.31.1.1",
            node=node,
            owner="shop/web",
            identity_revision=since,
            revision=revision,
        ),
    )


def gone(address: str) -> identity_pb2.IpCacheEvent:
    return identity_pb2.IpCacheEvent(
        type=types_pb2.CHANGE_TYPE_DELETE, entry=identity_pb2.IpCacheEntry(prefix=f"{address}/32")
    )


def batch(
    revision: int, *events: identity_pb2.IpCacheEvent, complete: bool = False
) -> identity_pb2.WatchIpCacheResponse:
    return identity_pb2.WatchIpCacheResponse(events=events, revision=revision, snapshot_complete=complete)


class Ipcache:
    """The ipcache's synchronisation over a fake kernel."""

    def __init__(self, kernel: FakeKernel, *, tunnel: bool = True) -> None:
        self.kernel = kernel
        self.feed: Feed[identity_pb2.WatchIpCacheResponse] = Feed()
        self.identities = Watermark()
        self.sync = IpcacheSync(
            node="node-1",
            kernel=kernel,
            open_stream=self.feed.open,
            identity_revision=self.identities,
            tunnel=tunnel,
        )


@pytest.fixture
async def ipcache() -> AsyncIterator[Ipcache]:
    made = Ipcache(FakeKernel())
    running = asyncio.create_task(made.sync.run())
    yield made
    running.cancel()
    await made.sync.close()
    with suppress(asyncio.CancelledError):
        await running


async def test_an_entry_waits_for_the_policy_maps_and_so_does_its_revision(ipcache: Ipcache) -> None:
    ipcache.feed.say(batch(1, complete=True))
    ipcache.feed.say(batch(2, put("10.244.2.7", 300, revision=2, since=5)))
    await until(lambda: ipcache.sync.applied.value == 1)
    waiting = asyncio.ensure_future(ipcache.sync.applied.wait(2, 5))
    await asyncio.sleep(0.01)
    assert ipcache.kernel.addresses == {}
    assert not waiting.done()
    ipcache.identities.set(5)
    assert await waiting
    assert ipcache.kernel.addresses == {"10.244.2.7/32": Meaning(300, "172.31.1.2")}
    assert ipcache.sync.owner("10.244.2.7") == "shop/web"


async def test_an_entry_of_this_node_is_reached_without_a_tunnel(ipcache: Ipcache) -> None:
    ipcache.feed.say(batch(1, put("10.244.1.7", 300, revision=1, node="node-1"), complete=True))
    await until(lambda: ipcache.sync.applied.value == 1)
    assert ipcache.kernel.addresses == {"10.244.1.7/32": Meaning(300)}


async def test_ipv6_prefixes_are_taken_like_all_others(ipcache: Ipcache) -> None:
    event = put("10.244.2.7", 300, revision=2)
    event.entry.prefix = "fd00:10:244::2:7/128"
    ipcache.feed.say(batch(2, event, complete=True))
    await until(lambda: ipcache.sync.applied.value == 2)
    assert ipcache.kernel.addresses == {"fd00:10:244::2:7/128": Meaning(300, "172.31.1.2")}
    assert ipcache.sync.owner("fd00:10:244::2:7") == "shop/web"


async def test_without_a_tunnel_nobody_is_behind_one() -> None:
    made = Ipcache(FakeKernel(), tunnel=False)
    running = asyncio.create_task(made.sync.run())
    made.feed.say(batch(1, put("10.244.2.7", 300, revision=1), complete=True))
    await until(lambda: made.sync.applied.value == 1)
    assert made.kernel.addresses == {"10.244.2.7/32": Meaning(300)}
    # The pod was here before it was there: what is said of it there still holds.
    made.sync.put_local(["10.244.2.7"], 300, 0)
    made.sync.remove_local(["10.244.2.7"])
    assert made.kernel.addresses == {"10.244.2.7/32": Meaning(300)}
    running.cancel()


async def test_after_a_break_it_goes_on_where_it_was(ipcache: Ipcache) -> None:
    ipcache.feed.say(batch(3, put("10.244.2.7", 300, revision=3), complete=True))
    ipcache.feed.say(batch(4))
    ipcache.feed.say(refusal(grpc.StatusCode.UNAVAILABLE))
    await until(lambda: len(ipcache.feed.opened) == 2)
    assert ipcache.feed.opened == [0, 4]
    assert not ipcache.sync.state.connected
    assert ipcache.sync.state.error
    ipcache.feed.say(batch(5, gone("10.244.2.7")))
    await until(lambda: ipcache.sync.applied.value == 5)
    assert ipcache.kernel.addresses == {}
    assert ipcache.sync.state.connected


async def test_after_a_compaction_it_starts_over_and_removes_what_is_gone(ipcache: Ipcache) -> None:
    ipcache.feed.say(
        batch(3, put("10.244.2.7", 300, revision=3), put("10.244.2.8", 300, revision=3), complete=True)
    )
    ipcache.feed.say(
        refusal(grpc.StatusCode.OUT_OF_RANGE, OutOfRange("compacted", reason="REVISION_COMPACTED"))
    )
    await until(lambda: len(ipcache.feed.opened) == 2)
    assert ipcache.feed.opened == [0, 0]
    ipcache.feed.say(batch(90, put("10.244.2.8", 300, revision=3), complete=True))
    await until(lambda: ipcache.sync.applied.value == 90)
    assert ipcache.kernel.addresses.keys() == {"10.244.2.8/32"}


async def test_a_service_that_has_lost_its_past_is_heard_from_the_start(ipcache: Ipcache) -> None:
    told: list[int] = []
    ipcache.sync._started_over = lambda: told.append(ipcache.sync.applied.value)
    ipcache.feed.say(batch(50, complete=True))
    ipcache.feed.say(batch(2))
    await until(lambda: len(ipcache.feed.opened) == 2)
    assert ipcache.feed.opened == [0, 0]
    assert told == []
    ipcache.feed.say(batch(3, complete=True))
    await until(lambda: len(told) == 1)


async def test_a_watch_is_synchronized_with_its_first_full_state(ipcache: Ipcache) -> None:
    state = ipcache.sync.state
    ipcache.sync.put_local(["10.244.1.7"], 300, 0)
    assert (state.synchronized, state.sync_time) == (False, 0.0)
    ipcache.feed.say(batch(1, put("10.244.2.7", 300, revision=1)))
    await until(lambda: state.sync_time > 0)
    assert not state.synchronized
    ipcache.feed.say(batch(2, complete=True))
    await until(lambda: state.synchronized)
    # That there is nothing new is news too; what this node itself does is none.
    before = state.sync_time
    ipcache.sync.remove_local(["10.244.1.7"])
    assert state.sync_time == before
    ipcache.feed.say(batch(2))
    await until(lambda: state.sync_time > before)
    ipcache.feed.say(refusal(grpc.StatusCode.UNAVAILABLE))
    await until(lambda: not state.connected)
    assert state.synchronized


async def test_a_state_that_the_kernel_refused_is_not_in_force_yet(ipcache: Ipcache) -> None:
    state = ipcache.sync.state
    ipcache.kernel.fail = {"write_ipcache"}
    ipcache.feed.say(batch(3, put("10.244.2.7", 300, revision=3), complete=True))
    await until(lambda: "refused" in state.error)
    assert (state.synchronized, state.sync_time) == (False, 0.0)
    ipcache.kernel.fail = set()
    await until(lambda: state.synchronized)


async def test_a_refused_write_is_visible_and_made_up_for(ipcache: Ipcache) -> None:
    ipcache.kernel.fail = {"write_ipcache"}
    ipcache.feed.say(batch(3, put("10.244.2.7", 300, revision=3), complete=True))
    await until(lambda: "refused" in ipcache.sync.state.error)
    assert ipcache.sync.applied.value < 3
    ipcache.kernel.fail = set()
    assert await ipcache.sync.applied.wait(3, 5)
    assert ipcache.kernel.addresses.keys() == {"10.244.2.7/32"}
    await until(lambda: ipcache.sync.state.error == "")


def node(number: int) -> ipam_pb2.Node:
    return ipam_pb2.Node(
        name=f"node-{number}",
        ipv4=f"172.31.1.{number}",
        pod_cidrs=[f"10.244.{number}.0/24"],
        router_ipv4=f"10.244.{number}.1",
    )


def nodes(revision: int, *found: ipam_pb2.Node, complete: bool = False) -> ipam_pb2.WatchNodesResponse:
    events = [ipam_pb2.NodeEvent(type=types_pb2.CHANGE_TYPE_PUT, node=each) for each in found]
    return ipam_pb2.WatchNodesResponse(events=events, revision=revision, snapshot_complete=complete)


@pytest.fixture
async def cluster(
    ipcache: Ipcache,
) -> AsyncIterator[Cluster]:
    feed: Feed[ipam_pb2.WatchNodesResponse] = Feed()
    links = FakeLinks()
    sync = NodesSync(own=OWN, open_stream=feed.open, links=links, ipcache=ipcache.sync)
    running = asyncio.create_task(sync.run())
    yield sync, feed, links
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


HERE = {"172.31.1.1/32": Meaning(1), "10.244.1.1/32": Meaning(1)}


async def test_nodes_become_routes_and_meanings(cluster: Cluster, ipcache: Ipcache) -> None:
    sync, feed, links = cluster
    assert ipcache.kernel.addresses == HERE
    feed.say(nodes(2, node(1), node(2), complete=True))
    assert await sync.applied.wait(2, 5)
    assert links.routes == ["10.244.2.0/24"]
    assert ipcache.kernel.addresses == HERE | {
        "172.31.1.2/32": Meaning(6),
        "10.244.2.1/32": Meaning(6, "172.31.1.2"),
    }
    feed.say(
        ipam_pb2.WatchNodesResponse(
            events=[ipam_pb2.NodeEvent(type=types_pb2.CHANGE_TYPE_DELETE, node=ipam_pb2.Node(name="node-2"))],
            revision=3,
        )
    )
    assert await sync.applied.wait(3, 5)
    assert links.routes == []
    assert ipcache.kernel.addresses == HERE


def own(revision: int, *cidrs: str) -> ipam_pb2.Node:
    found = node(1)
    found.revision = revision
    found.pod_cidrs[:] = ["10.244.1.0/24", *cidrs]
    return found


async def test_the_nodes_own_cidrs_are_followed_both_ways(cluster: Cluster) -> None:
    sync, feed, links = cluster
    told: list[tuple[str, ...]] = []
    sync._own_changed = lambda changed: told.append(changed.pod_cidrs)
    feed.say(nodes(2, own(2), node(2), complete=True))
    assert await sync.applied.wait(2, 5)
    assert (len(links.own), told) == (0, []), "as it registered"
    feed.say(nodes(3, own(3, "10.245.0.0/24")))
    assert await sync.applied.wait(3, 5)
    assert list(links.own) == ["10.244.1.0/24", "10.245.0.0/24"]
    feed.say(nodes(4, own(4)))
    assert await sync.applied.wait(4, 5)
    assert list(links.own) == ["10.244.1.0/24"]
    assert told == [("10.244.1.0/24", "10.245.0.0/24"), ("10.244.1.0/24",)]


async def test_an_address_of_a_cidr_not_heard_of_yet_is_asked_about(cluster: Cluster) -> None:
    sync, feed, links = cluster
    asked = 0

    async def get_own() -> ipam_pb2.Node:
        nonlocal asked
        asked += 1
        return own(7, "10.245.0.0/24")

    sync._get_own = get_own
    await sync.cover(["10.244.1.9"])
    assert (asked, links.own) == (0, ())
    await sync.cover(["10.245.0.9"])
    assert (asked, links.own) == (1, ("10.244.1.0/24", "10.245.0.0/24"))
    # What the watch says late is older than that.
    feed.say(nodes(6, own(6), complete=True))
    assert await sync.applied.wait(6, 5)
    assert links.own == ("10.244.1.0/24", "10.245.0.0/24")


async def test_a_cidr_that_cannot_be_routed_keeps_no_pod_waiting(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, feed, links = cluster
    monkeypatch.setattr("services.loader.ipcache.nodes._COVER_SECONDS", 0.05)
    links.fail = {"set_own"}
    feed.say(nodes(3, own(3, "10.245.0.0/24"), complete=True))
    await until(lambda: "refused" in sync.state.error)
    await sync.cover(["10.245.0.9"])
    links.fail = set()
    assert await sync.applied.wait(3, 5)
    assert links.own == ("10.244.1.0/24", "10.245.0.0/24")


async def test_a_node_that_ipam_has_forgotten_says_so(cluster: Cluster) -> None:
    sync, feed, _ = cluster
    feed.say(nodes(2, node(2), complete=True))
    assert await sync.applied.wait(2, 5)
    assert "does not know this node" in sync.problem
    feed.say(nodes(3, own(3)))
    assert await sync.applied.wait(3, 5)
    assert sync.problem == ""


async def test_a_node_of_the_same_name_elsewhere_changes_nothing(cluster: Cluster) -> None:
    sync, feed, links = cluster
    other = own(2, "10.245.0.0/24")
    other.ipv4 = "172.31.1.9"
    feed.say(nodes(2, other, complete=True))
    assert await sync.applied.wait(2, 5)
    assert "172.31.1.9" in sync.problem
    assert links.own == ()


@pytest.mark.parametrize("tunnel", [True, False])
def test_what_the_nodes_addresses_of_both_families_mean(tunnel: bool) -> None:
    own = Node("node-1", "172.31.1.1", (), "10.244.1.1", "2001:db8::1", "fd00:10:244::1:1")
    other = Node("node-2", "172.31.1.2", (), "10.244.2.1", "2001:db8::2", "fd00:10:244::2:1")
    behind = Meaning(6, "172.31.1.2" if tunnel else "")
    assert node_meanings(own, [other], tunnel=tunnel) == {
        "172.31.1.1/32": Meaning(1),
        "10.244.1.1/32": Meaning(1),
        "2001:db8::1/128": Meaning(1),
        "fd00:10:244::1:1/128": Meaning(1),
        "172.31.1.2/32": Meaning(6),
        "2001:db8::2/128": Meaning(6),
        "10.244.2.1/32": behind,
        "fd00:10:244::2:1/128": behind,
    }


def test_a_node_without_ipv4_pods_has_no_ipv4_router() -> None:
    own = Node("node-1", "172.31.1.1", (), "", "", "fd00:10:244::1:1")
    assert node_meanings(own, []).keys() == {"172.31.1.1/32", "fd00:10:244::1:1/128"}


async def test_routes_that_fail_are_tried_again(
    cluster: Cluster,
) -> None:
    sync, feed, links = cluster
    links.fail = {"set_remote_nodes"}
    feed.say(nodes(2, node(2), complete=True))
    await until(lambda: "refused" in sync.state.error)
    links.fail = set()
    assert await sync.applied.wait(2, 5)
    assert links.routes == ["10.244.2.0/24"]


async def test_leftovers_of_a_former_run_go_when_both_feeds_have_told_all() -> None:
    kernel = FakeKernel()
    kernel.addresses = {"10.244.9.9/32": Meaning(300), "172.31.1.2/32": Meaning(6)}
    made = Ipcache(kernel)
    running = asyncio.create_task(made.sync.run())
    made.sync.set_nodes(HERE, complete=False)
    made.feed.say(batch(1, complete=True))
    await until(lambda: made.sync.applied.value == 1)
    assert kernel.addresses.keys() >= {"10.244.9.9/32", "172.31.1.2/32"}
    made.sync.set_nodes(HERE | {"172.31.1.2/32": Meaning(6)}, complete=True)
    assert kernel.addresses.keys() == {*HERE, "172.31.1.2/32"}
    running.cancel()


async def test_a_watermark_wakes_who_waits_for_less() -> None:
    mark = Watermark()
    near, far = asyncio.ensure_future(mark.wait(3, 5)), asyncio.ensure_future(mark.wait(9, 0.05))
    await asyncio.sleep(0)
    mark.set(4)
    assert await near
    assert not await far
    assert await mark.wait(4)
