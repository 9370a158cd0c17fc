"""Results of plugins before this one: taken in, merged, rendered in each version."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.cni.errors import CniCode, CniError
from services.loader.cni.prev_result import NOTHING, parse_prev_result
from services.loader.cni.result import CniResult, prev_result_problems

OWN = CniResult.for_link(
    host_name="lxc0123456789ab",
    host_mac="02:00:00:00:00:01",
    ifname="eth0",
    pod_mac="02:00:00:00:00:02",
    netns_path="/run/netns/x",
    addresses=[(IPv4Address("10.244.0.7"), IPv4Address("10.244.0.1"))],
    dns={"nameservers": ["10.96.0.10", "192.0.2.53"], "search": ["svc"], "domain": "ours"},
    mtu=1400,
)


def before(**members: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "br0", "mac": "02:00:00:00:00:10", "mtu": 1500},
            {"name": "net0", "mac": "02:00:00:00:00:11", "sandbox": "/run/netns/x", "socketPath": "/s"},
        ],
        "ips": [
            {"version": "4", "address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 1},
            {"address": "2001:db8::7/64"},
        ],
        "routes": [{"dst": "198.51.100.0/24", "mtu": 1300, "table": 7}, {"dst": "203.0.113.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"], "domain": "theirs", "options": ["ndots:5"]},
    } | members


def merged(version: str, prev: Any = None) -> dict[str, Any]:
    config = {"prevResult": before() if prev is None else prev}
    told: dict[str, Any] = json.loads(OWN.render(version, parse_prev_result(config, "eth0")))
    return told


def test_ours_come_after_and_point_to_our_interfaces() -> None:
    told = merged("1.1.0")
    assert [each["name"] for each in told["interfaces"]] == ["br0", "net0", "lxc0123456789ab", "eth0"]
    assert told["ips"] == [
        {"address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 1},
        {"address": "2001:db8::7/64"},
        {"interface": 3, "address": "10.244.0.7/32", "gateway": "10.244.0.1"},
    ]
    assert [route["dst"] for route in told["routes"]] == ["198.51.100.0/24", "203.0.113.0/24", "0.0.0.0/0"]
    assert told["dns"] == {
        "nameservers": ["192.0.2.53", "10.96.0.10"],
        "search": ["svc"],
        "options": ["ndots:5"],
        "domain": "theirs",
    }
    assert prev_result_problems(told, OWN) == []


def test_what_is_new_in_1_1_0_is_told_in_1_1_0_alone() -> None:
    new = merged("1.1.0")
    assert (new["interfaces"][0]["mtu"], new["interfaces"][1]["socketPath"]) == (1500, "/s")
    assert new["interfaces"][3]["mtu"] == 1400
    assert new["routes"][0] == {"dst": "198.51.100.0/24", "mtu": 1300, "table": 7}
    old = merged("1.0.0")
    assert not [each for each in old["interfaces"] if each.keys() & {"mtu", "socketPath", "pciID"}]
    assert old["routes"][0] == {"dst": "198.51.100.0/24"}


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
def test_before_1_0_0_every_address_tells_its_version(version: str) -> None:
    assert [ip["version"] for ip in merged(version)["ips"]] == ["4", "6", "4"]


@pytest.mark.parametrize("prev", [{}, {"cniVersion": "1.0.0", "interfaces": None, "ips": [], "dns": None}])
def test_a_result_with_nothing_in_it_adds_nothing(prev: dict[str, Any]) -> None:
    assert merged("1.0.0", prev) == json.loads(OWN.render("1.0.0"))


def test_no_result_is_nothing() -> None:
    assert parse_prev_result({}, "eth0") is NOTHING
    assert parse_prev_result({"prevResult": None}, "eth0") is NOTHING


def test_an_interface_of_our_name_in_the_container_is_refused() -> None:
    with pytest.raises(CniError) as caught:
        parse_prev_result({"prevResult": before()}, "net0")
    assert caught.value.code is CniCode.INVALID_ENVIRONMENT
    assert "CNI_IFNAME net0: prevResult.interfaces[1]" in caught.value.msg
    parse_prev_result({"prevResult": before()}, "br0")


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"interfaces": {}}, "prevResult.interfaces"),
        ({"interfaces": [1]}, "prevResult.interfaces"),
        ({"ips": "x"}, "prevResult.ips"),
        ({"ips": [{}]}, "prevResult.ips[0].address"),
        ({"ips": [{"address": "x"}]}, "prevResult.ips[0].address"),
        ({"ips": [{"address": "192.0.2.7/24", "interface": 2}]}, "prevResult.ips[0].interface"),
        ({"ips": [{"address": "192.0.2.7/24", "interface": -1}]}, "prevResult.ips[0].interface"),
        ({"ips": [{"address": "192.0.2.7/24", "interface": True}]}, "prevResult.ips[0].interface"),
        ({"routes": [None]}, "prevResult.routes"),
        ({"dns": []}, "prevResult.dns"),
        ({"dns": {"search": "x"}}, "prevResult.dns.search"),
        ({"dns": {"options": [[1]]}}, "prevResult.dns.options"),
    ],
)
def test_a_senseless_result_is_refused_by_name(members: dict[str, Any], field: str) -> None:
    with pytest.raises(CniError) as caught:
        parse_prev_result({"prevResult": before(**members)}, "eth0")
    assert caught.value.code is CniCode.INVALID_CONFIG
    assert f" {field}: got " in caught.value.msg


def test_a_result_that_is_no_object_is_refused() -> None:
    for prev in (3, "x", [1], True):
        with pytest.raises(CniError, match="prevResult: got"):
            parse_prev_result({"prevResult": prev}, "eth0")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-2, 4) | st.sampled_from(["eth0", "192.0.2.7/24", "x"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "interfaces",
                        "ips",
                        "routes",
                        "dns",
                        "name",
                        "sandbox",
                        "address",
                        "interface",
                        "search",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_result_is_merged_or_refused(prev: Any) -> None:
    try:
        parsed = parse_prev_result({"prevResult": prev}, "eth0")
    except CniError as exc:
        assert exc.code in (CniCode.INVALID_CONFIG, CniCode.INVALID_ENVIRONMENT)
        return
    for version in ("0.3.1", "1.1.0"):
        told = json.loads(OWN.render(version, parsed))
        assert told["interfaces"][-1]["name"] == "eth0"
        assert told["ips"][-1]["interface"] == len(told["interfaces"]) - 1
