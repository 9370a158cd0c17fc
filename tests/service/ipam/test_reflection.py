"""A stranger's client lists and calls every method of ipam by reflection, JSON in and out."""

from __future__ import annotations

from tests.service.curl import call, error_info, listed, refuse
from tests.service.ipam.conftest import Place
from tests.service.processes import ServiceProcess

NODES = "fimbria.ipam.v1.NodeService"
POOLS = "fimbria.ipam.v1.PoolService"
ADDRESSES = "fimbria.ipam.v1.AddressService"


def test_every_service_and_method_is_listed(ipam: ServiceProcess) -> None:
    assert {NODES, POOLS, ADDRESSES, "grpc.health.v1.Health"} <= listed(ipam.target, "--list-services")
    methods = listed(ipam.target, "--list-methods")
    assert {
        f"{NODES}/{name}" for name in ("RegisterNode", "GetNode", "ListNodes", "DeleteNode", "WatchNodes")
    } <= methods
    named: tuple[str, ...] = ("CreatePool", "GetPool", "ListPools", "UpdatePool", "DeletePool")
    assert {f"{POOLS}/{name}" for name in named} <= methods
    named = ("Allocate", "AllocateBatch", "Release", "ReleaseBatch", "CheckAddresses", "ListAddresses")
    assert {f"{ADDRESSES}/{name}" for name in named} <= methods


def test_a_whole_life_by_json(ipam: ServiceProcess, place: Place) -> None:
    target, name = ipam.target, place.name
    pool = {"name": name, "cidrs": [str(place.network)], "nodeMaskSize": 24}
    assert call(target, f"{POOLS}/CreatePool", pool)["nodeCidrsTotal"] == "256"
    assert call(target, f"{POOLS}/GetPool", {"name": name})["cidrs"] == [str(place.network)]
    assert call(target, f"{POOLS}/ListPools", {"pageSize": 1})["pools"]
    node = {"name": name, "ipv4": place.underlay(1), "pool": name}
    registered = call(target, f"{NODES}/RegisterNode", node)
    assert call(target, f"{NODES}/GetNode", {"name": name}) == registered
    assert call(target, f"{NODES}/ListNodes", {"pageSize": 1})["nodes"]
    granted = call(target, f"{ADDRESSES}/Allocate", {"node": name, "owner": "c/eth0"})
    held = call(target, f"{ADDRESSES}/ListAddresses", {"node": name})
    assert held["addresses"] == [granted]
    released = call(target, f"{ADDRESSES}/Release", {"node": name, "owner": "c/eth0"})
    assert released == {"address": granted["address"]}
    batch = call(target, f"{ADDRESSES}/AllocateBatch", {"node": name, "owners": ["a/eth0", "b/eth0"]})
    assert [address["owner"] for address in batch["addresses"]] == ["a/eth0", "b/eth0"]
    endpoint = {"owner": "a/eth0", "addresses": [batch["addresses"][0]["address"]]}
    check = call(target, f"{ADDRESSES}/CheckAddresses", {"node": name, "endpoints": [endpoint]})
    assert [(each["kind"], each["holder"]) for each in check["findings"]] == [("KIND_LEAKED", "b/eth0")]
    holdings = [
        {"owner": "a/eth0"},
        {"owner": "b/eth0", "ifCreateTime": check["findings"][0]["createTime"]},
        {"owner": "c/eth0"},
    ]
    done = call(target, f"{ADDRESSES}/ReleaseBatch", {"node": name, "holdings": holdings})
    assert done == {"released": 2, "absent": 1}
    wider = {"name": name, "cidrs": [str(place.network)], "excluded": [f"{place.network[5]}"]}
    assert call(target, f"{POOLS}/UpdatePool", wider)["excluded"] == wider["excluded"]
    assert call(target, f"{NODES}/DeleteNode", {"name": name}) == {}
    assert call(target, f"{POOLS}/DeletePool", {"name": name}) == {}


def test_an_error_says_code_reason_and_message(ipam: ServiceProcess) -> None:
    error = refuse(ipam.target, f"{NODES}/GetNode", {"name": "ghost"})
    assert error["code"] == "not_found"
    assert "'ghost'" in error["message"]
    assert error_info(error).reason == "NODE_NOT_FOUND"
    assert error_info(error).metadata == {"node": "ghost"}
