"""What a configuration and a runtime say about an interface."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.cni.errors import CniCode, CniError
from services.loader.cni.interface_settings import (
    ANY,
    InterfaceSettings,
    parse_interface,
    parse_sysctls,
    sysctl_path,
)


def parsed(cni_args: dict[str, str] | None = None, /, **config: Any) -> InterfaceSettings:
    return parse_interface(config, cni_args or {}, "eth0")


def refused(cni_args: dict[str, str] | None = None, /, **config: Any) -> CniError:
    with pytest.raises(CniError) as caught:
        parsed(cni_args, **config)
    return caught.value


def test_nothing_said_is_the_nodes_choice() -> None:
    assert parsed() == ANY
    assert parsed(mtu=0, dns={}, sysctl={}, runtimeConfig={"mac": "", "dns": {}}) == ANY


def test_everything_said_arrives() -> None:
    settings = parsed(
        mtu=1400,
        isDefaultGateway=False,
        sysctl={"net.core.somaxconn": "512"},
        dns={"nameservers": ["10.96.0.10"], "domain": "shop"},
        runtimeConfig={"mac": "02-00-5E-10-00-01", "bandwidth": {"egressRate": 80}},
    )
    assert settings == InterfaceSettings(
        rate=10,
        mtu=1400,
        mac="02:00:5e:10:00:01",
        default_route=False,
        sysctls={"net/core/somaxconn": "512"},
        dns={"nameservers": ["10.96.0.10"], "domain": "shop"},
    )


def test_a_mac_address_comes_from_the_runtime_first() -> None:
    first, second, third = (f"02:00:00:00:00:0{number}" for number in (1, 2, 3))
    conventions = {"cni": {"mac": second}}
    assert parsed({"MAC": third}, args=conventions, runtimeConfig={"mac": first}).mac == first
    assert parsed({"MAC": third}, args=conventions).mac == second
    assert parsed({"MAC": third}).mac == third


def test_containerd_begins_the_names_of_its_dns_with_capitals() -> None:
    settings = parsed(runtimeConfig={"dns": {"Servers": ["192.0.2.2"], "Searches": ["a"], "Options": None}})
    assert settings.dns == {"nameservers": ["192.0.2.2"], "search": ["a"]}


def test_the_runtimes_dns_counts_before_the_configurations() -> None:
    settings = parsed(
        dns={"nameservers": ["192.0.2.1"], "search": ["a"], "domain": "d"},
        runtimeConfig={"dns": {"servers": ["192.0.2.2"], "searches": [], "options": ["ndots:5"]}},
    )
    assert settings.dns == {
        "nameservers": ["192.0.2.2"],
        "search": ["a"],
        "domain": "d",
        "options": ["ndots:5"],
    }


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"mtu": 575}, "mtu"),
        ({"mtu": 65536}, "mtu"),
        ({"mtu": "1400"}, "mtu"),
        ({"mtu": True}, "mtu"),
        ({"mtu": 1400.5}, "mtu"),
        ({"isDefaultGateway": "yes"}, "isDefaultGateway"),
        ({"isDefaultGateway": 1}, "isDefaultGateway"),
        ({"runtimeConfig": {"mac": "02:00:00:00:00"}}, "runtimeConfig.mac"),
        ({"runtimeConfig": {"mac": "02:00-00:00:00:01"}}, "runtimeConfig.mac"),
        ({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}, "runtimeConfig.mac"),
        ({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}, "runtimeConfig.mac"),
        ({"runtimeConfig": {"mac": 7}}, "runtimeConfig.mac"),
        ({"args": {"cni": {"mac": "x"}}}, "args.cni.mac"),
        ({"dns": []}, "dns"),
        ({"dns": {"nameservers": "192.0.2.1"}}, "dns.nameservers"),
        ({"dns": {"nameservers": ["dns.example"]}}, "dns.nameservers"),
        ({"dns": {"search": [1]}}, "dns.search"),
        ({"dns": {"domain": 1}}, "dns.domain"),
        ({"dns": {"options": ["x"] * 33}}, "dns.options"),
        ({"runtimeConfig": {"dns": {"servers": 3}}}, "runtimeConfig.dns.servers"),
        ({"sysctl": ["net.core.somaxconn"]}, "sysctl"),
        ({"sysctl": {"net.core.somaxconn": 512}}, "sysctl[net.core.somaxconn]"),
        ({"sysctl": {"net.core.somaxconn": ""}}, "sysctl[net.core.somaxconn]"),
        ({"sysctl": {"net.core.somaxconn": "1\n2"}}, "sysctl[net.core.somaxconn]"),
        ({"sysctl": {"net.core.somaxconn": "1" * 257}}, "sysctl[net.core.somaxconn]"),
        ({"sysctl": {f"net.core.x{number}": "1" for number in range(65)}}, "sysctl"),
        ({"sysctl": {"net.a.b": "1", "net/a/b": "2"}}, "sysctl[net/a/b]"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(config: dict[str, Any], field: str) -> None:
    error = refused(**config)
    assert error.code is CniCode.INVALID_CONFIG
    assert f" {field}: got " in error.msg
    assert "expected" in error.msg


def test_a_bad_mac_address_in_cni_args_is_an_environment_error() -> None:
    error = refused({"MAC": "nonsense"})
    assert error.code is CniCode.INVALID_ENVIRONMENT
    assert "'nonsense'" in error.msg


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.core.somaxconn", "net/core/somaxconn"),
        ("net/ipv4/tcp_syncookies", "net/ipv4/tcp_syncookies"),
        ("net.ipv4.conf.IFNAME.rp_filter", "net/ipv4/conf/eth0/rp_filter"),
        ("net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
    ],
)
def test_names_become_paths(name: str, path: str) -> None:
    assert sysctl_path(name, "eth0") == path


@pytest.mark.parametrize(
    "name",
    [
        "",
        "net",
        "net.core",
        "kernel.hostname",
        "network.core.x",
        "/net/core/x",
        "net..core",
        "net/core/../../kernel/hostname",
        "net/./core/x",
        "net.core/../x",
        "net.core.x\0",
        "net.core.x\n",
        "net.core.é",
        " net.core.x",
        "net/core/.hidden",
        "NET.core.x",
    ],
)
def test_other_names_do_not(name: str) -> None:
    with pytest.raises(CniError) as caught:
        sysctl_path(name, "eth0")
    assert caught.value.code is CniCode.INVALID_CONFIG
    assert repr(name) in caught.value.msg


@given(st.text(alphabet="net./corIFNAME\\\0~%x", max_size=40))
def test_no_name_leads_out_of_net(name: str) -> None:
    try:
        path = sysctl_path(name, "eth0")
    except CniError:
        return
    parts = path.split("/")
    assert parts[0] == "net"
    assert not {"", ".", ".."} & set(parts)


def test_the_same_setting_twice_with_one_value_is_one() -> None:
    assert parse_sysctls({"sysctl": {"net.a.b": "1", "net/a/b": "1"}}, "eth0") == {"net/a/b": "1"}
