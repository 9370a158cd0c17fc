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
    assert {f"{POOLS}/{name}" for name in ("CreatePool", "GetPool", "ListPools", "DeletePool")} <= methods
    assert {f"{ADDRESSES}/{name}" for name in ("Allocate", "Release", "ListAddresses")} <= methods


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
    assert call(target, f"{NODES}/DeleteNode", {"name": name}) == {}
    assert call(target, f"{POOLS}/DeletePool", {"name": name}) == {}


def test_an_error_says_code_reason_and_message(ipam: ServiceProcess) -> None:
    error = refuse(ipam.target, f"{NODES}/GetNode", {"name": "ghost"})
    assert error["code"] == "not_found"
    assert "'ghost'" in error["message"]
    assert error_info(error).reason == "NODE_NOT_FOUND"
    assert error_info(error).metadata == {"node": "ghost"}
