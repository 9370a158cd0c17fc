"""Endpoints of two families, or of IPv6 alone, with everything around them a fake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from services.loader.cni.errors import CniError
from services.loader.endpoints.endpoint import Endpoint, State
from services.loader.endpoints.records import StateDirectory
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.endpoints.restore import Restored
from services.loader.ipcache.table import Meaning
from services.loader.messages import endpoint_message
from tests.unit.loader.node_under_test import NodeUnderTest, add, only, request
from tests.unit.loader.test_records import record
from tests.unit.loader.waiting import until

BOTH = {"10.0.0.2/32", "fd00::2/128"}


@pytest.fixture
def node(node: NodeUnderTest) -> NodeUnderTest:
    node.services.families = (4, 6)
    return node


async def test_an_add_gives_both_families(node: NodeUnderTest) -> None:
    result = await node.cni.add(add())
    assert [(str(ip.address), str(ip.gateway)) for ip in result.ips] == [
        ("10.0.0.2/32", "10.0.0.1"),
        ("fd00::2/128", "fd00::1"),
    ]
    assert [(str(route.dst), str(route.gw)) for route in result.routes] == [
        ("0.0.0.0/0", "10.0.0.1"),
        ("::/0", "fd00::1"),
    ]
    endpoint = only(node)
    assert endpoint.status.state is State.READY
    assert (endpoint.record.ipv6, endpoint.record.router_ipv6) == ("fd00::2", "fd00::1")
    assert node.kernel.endpoints[endpoint.record.ifindex].addresses == ("10.0.0.2", "fd00::2")
    assert node.kernel.addresses == dict.fromkeys(BOTH, Meaning(256))
    assert node.services.published == dict.fromkeys(BOTH, 256)
    assert StateDirectory(node.directory).load_endpoints() == [endpoint.record]


async def test_both_prefixes_become_known_with_one_write(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    assert node.kernel.writes.count("write_ipcache") == 1


async def test_a_node_of_ipv6_alone(node: NodeUnderTest) -> None:
    node.services.families = (6,)
    result = await node.cni.add(add())
    assert [str(ip.address) for ip in result.ips] == ["fd00::2/128"]
    assert [str(route.dst) for route in result.routes] == ["::/0"]
    assert node.kernel.addresses == {"fd00::2/128": Meaning(256)}
    assert node.services.published == {"fd00::2/128": 256}
    await node.cni.delete(request("DEL"))
    await node.nothing_left()
    assert node.services.published == {}


async def test_a_delete_gives_both_back(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    await node.cni.delete(request("DEL"))
    await node.nothing_left()
    assert (node.services.owners, node.services.published) == ({}, {})


async def test_a_delete_without_services_withdraws_both_later(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    node.services.down = True
    await node.cni.delete(request("DEL"))
    await node.restart()
    node.services.down = False
    await node.releases.settle("c1/eth0")
    assert (node.services.owners, node.services.published) == ({}, {})


async def test_another_identity_is_that_of_both(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    await node.manager.update_labels(only(node).record.id, ["k8s:app=other"])
    assert node.kernel.addresses == dict.fromkeys(BOTH, Meaning(257))
    assert node.services.published == dict.fromkeys(BOTH, 257)


async def test_a_restart_takes_both_up_with_their_routes(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    before = only(node).record
    node.kernel.writes.clear()
    assert await node.restart() == Restored(1, 0, 0)
    assert only(node).record == before
    assert set(node.kernel.writes) == set()
    assert node.links.endpoint_routes == ["10.0.0.2", "fd00::2"]
    assert node.kernel.addresses == dict.fromkeys(BOTH, Meaning(256))


async def test_routes_that_cannot_be_restored_keep_nobody_from_starting(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    node.links.fail = {"sync_endpoint_routes"}
    assert await node.restart() == Restored(1, 0, 0)
    assert only(node).status.state is State.READY


async def test_an_endpoint_from_before_ipv6_stays_as_it_is(node: NodeUnderTest) -> None:
    node.services.families = (4,)
    await node.cni.add(add())
    node.services.families = (4, 6)
    assert await node.restart() == Restored(1, 0, 0)
    assert only(node).record.addresses == ("10.0.0.2",)
    assert [str(ip.address) for ip in (await node.cni.check(request("CHECK"))).ips] == ["10.0.0.2/32"]


async def test_a_check_compares_both_and_the_rate(node: NodeUnderTest) -> None:
    result = await node.cni.add(add(rate=1000))
    assert await node.cni.check(request("CHECK")) == result
    ifindex = only(node).record.ifindex
    row = node.kernel.endpoints[ifindex]
    node.kernel.endpoints[ifindex] = replace(row, ipv6="fd00::9")
    with pytest.raises(CniError, match=r"as 10\.0\.0\.2 and fd00::9"):
        await node.cni.check(request("CHECK"))
    node.kernel.endpoints[ifindex] = replace(row, rate=0)
    with pytest.raises(CniError, match="rate of 0"):
        await node.cni.check(request("CHECK"))


async def test_what_was_asked_for_reaches_the_datapath_and_the_disk(node: NodeUnderTest) -> None:
    await node.cni.add(add(rate=1_250_000))
    endpoint = only(node).record
    assert node.kernel.endpoints[endpoint.ifindex].rate == 1_250_000
    await node.restart()
    assert only(node).record.rate == 1_250_000


async def test_what_belongs_to_an_unknown_endpoint_goes_by_both_addresses(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    (node.directory / "endpoints" / f"{only(node).record.id}.json").write_text("{")
    await node.restart()
    await node.cni.delete(request("DEL"))
    assert (node.services.owners, node.services.published) == ({}, {})
    await until(lambda: node.kernel.addresses == {})


def test_an_endpoint_is_found_by_either_address(tmp_path: Path) -> None:
    registry = EndpointRegistry(StateDirectory(tmp_path))
    made = record()
    registry.take_up(made)
    for address in made.addresses:
        found = registry.by_address(address)
        assert found is not None and found.record == made
    registry.take_up(replace(made, ipv6="fd00::9"))
    assert registry.by_address("fd00:10:244::1:7") is None
    assert registry.by_address("fd00::9") is not None
    registry.remove(made.id)
    assert registry.by_address("fd00::9") is registry.by_address(made.ipv4) is None


def test_the_api_shows_both_addresses_and_the_rate() -> None:
    message = endpoint_message(Endpoint(record()), "node-1")
    assert (message.ipv4, message.ipv6) == ("10.244.1.7", "fd00:10:244::1:7")
    assert message.rate == 1_250_000
