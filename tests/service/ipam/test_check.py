"""CheckAddresses over a real socket: what owners hold against the endpoints that a node is said to have."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeAlias

import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.errors import InvalidArgument, NotFound
from tests.service.ipam.conftest import Home, Place
from tests.service.refusals import refused

Addresses: TypeAlias = "ipam_pb2_grpc.AddressServiceAsyncStub"
Kind = ipam_pb2.AddressFinding.Kind


def asked(
    node: str, endpoints: Mapping[str, tuple[str, ...]], min_age: int = 0
) -> ipam_pb2.CheckAddressesRequest:
    request = ipam_pb2.CheckAddressesRequest(node=node, min_age_seconds=min_age)
    for owner, addresses in endpoints.items():
        request.endpoints.add(owner=owner, addresses=addresses)
    return request


async def allocate(addresses: Addresses, node: str, owner: str) -> ipam_pb2.Address:
    return await addresses.Allocate(ipam_pb2.AllocateRequest(node=node, owner=owner))


async def test_a_leak_is_told_with_what_releases_it(addresses: Addresses, home: Home) -> None:
    node = home.node.name
    live, dead = await asyncio.gather(*(allocate(addresses, node, f"{it}/eth0") for it in ("live", "dead")))
    request = asked(node, {"live/eth0": (live.address,)})
    answer = await addresses.CheckAddresses(request)
    (found,) = answer.findings
    assert answer.checked == 2
    assert (found.kind, found.address, found.holder) == (Kind.KIND_LEAKED, dead.address, "dead/eth0")
    assert (found.holder_node, found.create_time, list(found.users)) == (node, dead.create_time, [])

    batch = ipam_pb2.ReleaseBatchRequest(node=node)
    batch.holdings.add(owner=found.holder, if_create_time=found.create_time)
    released = await addresses.ReleaseBatch(batch)
    assert (released.released, released.absent, released.changed) == (1, 0, 0)
    answer = await addresses.CheckAddresses(request)
    assert (list(answer.findings), answer.checked) == ([], 1)


async def test_a_young_allocation_is_not_called_leaked(addresses: Addresses, home: Home) -> None:
    await allocate(addresses, home.node.name, "young/eth0")
    answer = await addresses.CheckAddresses(asked(home.node.name, {}, min_age=3600))
    assert (list(answer.findings), answer.checked) == ([], 1)


async def test_an_endpoint_that_is_being_made_is_no_leak(addresses: Addresses, home: Home) -> None:
    await allocate(addresses, home.node.name, "made/eth0")
    assert not (await addresses.CheckAddresses(asked(home.node.name, {"made/eth0": ()}))).findings


async def test_holders_on_other_nodes_are_found(
    addresses: Addresses, nodes: ipam_pb2_grpc.NodeServiceAsyncStub, home: Home, place: Place
) -> None:
    other = f"{place.name}-other"
    await nodes.RegisterNode(ipam_pb2.RegisterNodeRequest(name=other, ipv4=place.underlay(2), pool=home.pool))
    far = await allocate(addresses, other, "c/eth0")
    free = str(place.network[200])
    answer = await addresses.CheckAddresses(
        asked(home.node.name, {"c/eth0": (far.address,), "d/eth0": (free,), "e/eth0": (free, far.address)})
    )
    assert [(one.kind, one.address, one.holder, one.holder_node) for one in answer.findings] == [
        (Kind.KIND_NOT_HELD, free, "", ""),
        (Kind.KIND_HELD_BY_ANOTHER, far.address, "c/eth0", other),
        (Kind.KIND_USED_TWICE, free, "", ""),
        (Kind.KIND_USED_TWICE, far.address, "c/eth0", other),
    ]
    assert list(answer.findings[2].users) == ["d/eth0", "e/eth0"]
    assert answer.checked == 0


async def test_an_unknown_node_is_not_found(addresses: Addresses) -> None:
    error = await refused(addresses.CheckAddresses(asked("ghost", {})), NotFound, "NODE_NOT_FOUND")
    assert error.metadata == {"node": "ghost"}


@pytest.mark.parametrize(
    ("endpoints", "reason", "field"),
    [
        ([("a", ["10.0.0"])], "REQUEST_INVALID", "endpoints[0].addresses[0]"),
        ([("a", ["10.0.0.1", "10.0.0.2", "10.0.0.3"])], "REQUEST_INVALID", "endpoints[0].addresses"),
        ([("", [])], "REQUEST_INVALID", "endpoints[0].owner"),
        ([("a", []), ("a", [])], "OWNER_REPEATED", "endpoints[1].owner"),
    ],
)
async def test_bad_requests_name_the_field(
    addresses: Addresses, home: Home, endpoints: list[tuple[str, list[str]]], reason: str, field: str
) -> None:
    request = ipam_pb2.CheckAddressesRequest(node=home.node.name)
    for owner, used in endpoints:
        request.endpoints.add(owner=owner, addresses=used)
    error = await refused(addresses.CheckAddresses(request), InvalidArgument, reason)
    assert [violation.field for violation in error.violations] == [field]


async def test_ten_thousand_endpoints_are_compared(addresses: Addresses, home: Home) -> None:
    held = await allocate(addresses, home.node.name, "c1/eth0")
    endpoints = {f"c{number}/eth0": (f"203.{number >> 8}.{number & 255}.1",) for number in range(2, 10_002)}
    answer = await addresses.CheckAddresses(asked(home.node.name, {"c1/eth0": (held.address,), **endpoints}))
    assert len(answer.findings) == 10_000
    assert {one.kind for one in answer.findings} == {Kind.KIND_NOT_HELD}
