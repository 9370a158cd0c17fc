"""NodeService over a real socket: registration, pages, deletion, watches."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import TypeAlias

import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
)
from tests.service.ipam.conftest import Home, Place
from tests.service.processes import WATCH_SECONDS
from tests.service.refusals import refused
from tests.service.watches import next_events

Nodes: TypeAlias = "ipam_pb2_grpc.NodeServiceAsyncStub"
Pools: TypeAlias = "ipam_pb2_grpc.PoolServiceAsyncStub"
Addresses: TypeAlias = "ipam_pb2_grpc.AddressServiceAsyncStub"


def register(name: str, ipv4: str, pool: str = "") -> ipam_pb2.RegisterNodeRequest:
    return ipam_pb2.RegisterNodeRequest(name=name, ipv4=ipv4, pool=pool)


async def test_a_node_gets_a_cidr_and_its_router_address(home: Home, place: Place) -> None:
    cidr = IPv4Network(home.node.pod_cidrs[0])
    assert cidr == next(place.network.subnets(new_prefix=24))
    assert home.node.router_ipv4 == str(cidr[1])
    assert home.node.revision > 0
    assert home.node.create_time.seconds > 0


async def test_registering_again_changes_nothing(nodes: Nodes, home: Home, place: Place) -> None:
    again = await nodes.RegisterNode(register(home.node.name, place.underlay(1), home.pool))
    assert again == home.node


async def test_a_changed_underlay_address_is_taken_over(nodes: Nodes, home: Home, place: Place) -> None:
    moved = await nodes.RegisterNode(register(home.node.name, place.underlay(9), home.pool))
    assert moved.ipv4 == place.underlay(9)
    assert moved.pod_cidrs == home.node.pod_cidrs
    assert moved.revision > home.node.revision
    assert await nodes.GetNode(ipam_pb2.GetNodeRequest(name=home.node.name)) == moved


async def test_another_pool_is_a_conflict(nodes: Nodes, home: Home, place: Place) -> None:
    error = await refused(
        nodes.RegisterNode(register(home.node.name, place.underlay(1))),
        FailedPrecondition,
        "NODE_POOL_CONFLICT",
    )
    assert error.metadata == {"node": home.node.name, "pool": home.pool, "requested_pool": "default"}


async def test_two_nodes_cannot_have_one_underlay_address(nodes: Nodes, home: Home, place: Place) -> None:
    error = await refused(
        nodes.RegisterNode(register(f"{place.name}-b", place.underlay(1), home.pool)),
        FailedPrecondition,
        "ADDRESS_IN_USE",
    )
    assert error.metadata["node"] == home.node.name


async def test_an_unknown_pool_is_not_found(nodes: Nodes, place: Place) -> None:
    error = await refused(
        nodes.RegisterNode(register(place.name, place.underlay(1), "nowhere")), NotFound, "POOL_NOT_FOUND"
    )
    assert error.metadata == {"pool": "nowhere"}


async def test_an_exhausted_pool_says_so(nodes: Nodes, pools: Pools, place: Place) -> None:
    cidr = next(place.network.subnets(new_prefix=25))
    await pools.CreatePool(ipam_pb2.CreatePoolRequest(name=place.name, cidrs=[str(cidr)], node_mask_size=26))
    for host in (1, 2):
        await nodes.RegisterNode(register(f"{place.name}-{host}", place.underlay(host), place.name))
    error = await refused(
        nodes.RegisterNode(register(f"{place.name}-3", place.underlay(3), place.name)),
        ResourceExhausted,
        "POOL_EXHAUSTED",
    )
    assert error.metadata["pool"] == place.name
    assert error.metadata["capacity"] == "2"
    await nodes.DeleteNode(ipam_pb2.DeleteNodeRequest(name=f"{place.name}-1"))
    third = await nodes.RegisterNode(register(f"{place.name}-3", place.underlay(3), place.name))
    assert IPv4Network(third.pod_cidrs[0]).subnet_of(cidr)


@pytest.mark.parametrize(
    ("name", "ipv4", "field"),
    [
        ("", "172.31.250.1", "name"),
        ("Node_1", "172.31.250.1", "name"),
        ("node-x", "172.31.250", "ipv4"),
        ("node-x", "", "ipv4"),
    ],
)
async def test_bad_registrations_name_the_field(nodes: Nodes, name: str, ipv4: str, field: str) -> None:
    error = await refused(nodes.RegisterNode(register(name, ipv4)), InvalidArgument, "REQUEST_INVALID")
    assert field in {violation.field for violation in error.violations}


async def test_an_unknown_node_is_not_found(nodes: Nodes) -> None:
    error = await refused(nodes.GetNode(ipam_pb2.GetNodeRequest(name="ghost")), NotFound, "NODE_NOT_FOUND")
    assert error.metadata == {"node": "ghost"}


async def test_a_node_with_addresses_is_deleted_by_force_only(
    nodes: Nodes, addresses: Addresses, home: Home
) -> None:
    name = home.node.name
    await addresses.Allocate(ipam_pb2.AllocateRequest(node=name, owner="c/eth0"))
    error = await refused(
        nodes.DeleteNode(ipam_pb2.DeleteNodeRequest(name=name)), FailedPrecondition, "NODE_IN_USE"
    )
    assert error.metadata == {"node": name, "addresses": "1"}
    await nodes.DeleteNode(ipam_pb2.DeleteNodeRequest(name=name, force=True))
    await nodes.DeleteNode(ipam_pb2.DeleteNodeRequest(name=name))
    assert not (await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(node=name))).addresses
    await refused(nodes.GetNode(ipam_pb2.GetNodeRequest(name=name)), NotFound, "NODE_NOT_FOUND")


async def test_nodes_are_listed_in_pages_and_bad_tokens_refused(
    nodes: Nodes, home: Home, place: Place
) -> None:
    for host in (2, 3):
        await nodes.RegisterNode(register(f"{place.name}-n{host}", place.underlay(host), home.pool))
    seen: list[str] = []
    token = ""
    while True:
        page = await nodes.ListNodes(ipam_pb2.ListNodesRequest(page_size=1, page_token=token))
        seen += [node.name for node in page.nodes]
        assert page.revision > 0
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted(seen)
    assert {home.node.name, f"{place.name}-n2", f"{place.name}-n3"} <= set(seen)
    error = await refused(
        nodes.ListNodes(ipam_pb2.ListNodesRequest(page_token="forged")), InvalidArgument, "PAGE_INVALID"
    )
    assert error.violations[0].field == "page_token"


async def test_a_watch_gives_the_state_then_the_changes(nodes: Nodes, home: Home, place: Place) -> None:
    watch = nodes.WatchNodes(ipam_pb2.WatchNodesRequest(), timeout=WATCH_SECONDS)
    present: dict[str, ipam_pb2.Node] = {}
    async for message in watch:
        if message.snapshot_complete:
            break
        assert message.revision == 0, "an unfinished snapshot cannot be resumed"
        present.update((event.node.name, event.node) for event in message.events)
    assert present[home.node.name] == home.node

    moved = await nodes.RegisterNode(register(home.node.name, place.underlay(7), home.pool))
    await nodes.DeleteNode(ipam_pb2.DeleteNodeRequest(name=home.node.name))
    events: list[ipam_pb2.NodeEvent] = []
    while len(events) < 2:
        events += (await next_events(watch)).events
    assert [event.type for event in events] == [types_pb2.CHANGE_TYPE_PUT, types_pb2.CHANGE_TYPE_DELETE]
    assert events[0].node == moved
    assert events[1].node == ipam_pb2.Node(name=home.node.name)
    assert all(event.trace.traceparent.startswith("00-") for event in events)
    watch.cancel()


async def test_a_watch_resumes_after_the_revision_that_it_names(
    nodes: Nodes, home: Home, place: Place
) -> None:
    moved = await nodes.RegisterNode(register(home.node.name, place.underlay(8), home.pool))
    watch = nodes.WatchNodes(
        ipam_pb2.WatchNodesRequest(from_revision=home.node.revision), timeout=WATCH_SECONDS
    )
    message = await next_events(watch)
    assert not message.snapshot_complete
    assert [event.node for event in message.events] == [moved]
    assert message.revision == moved.revision
    watch.cancel()


async def test_a_revision_that_has_not_happened_is_out_of_range(nodes: Nodes) -> None:
    watch = nodes.WatchNodes(ipam_pb2.WatchNodesRequest(from_revision=1 << 40), timeout=WATCH_SECONDS)
    error = await refused(anext(aiter(watch)), OutOfRange, "REVISION_UNKNOWN")
    assert int(error.metadata["restart_revision"]) < 1 << 40
