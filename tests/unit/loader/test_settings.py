"""What the loader can be told, and how it refuses what makes no sense."""

from __future__ import annotations

import pytest

from services.chassis.settings import SettingsError, load_settings
from services.loader.settings import LoaderSettings
from services.loader.settings_types import FailsafePort, cidrs


def load(**variables: str) -> LoaderSettings:
    return load_settings(LoaderSettings, [], {f"FIMBRIA_{name}": value for name, value in variables.items()})


def test_nothing_said_is_the_tunnel_with_masquerading() -> None:
    settings = load()
    assert (settings.routing_mode, settings.endpoint_routes, settings.host_routing) == ("tunnel", False, True)
    assert (settings.masquerade, settings.masquerade_range) == (True, (61000, 65535))
    assert (settings.policy_enforcement, settings.policy_audit) == ("default", False)
    assert FailsafePort(True, 22, 6) in settings.failsafe_ports


def test_everything_said_arrives() -> None:
    settings = load(
        NODE_IPV6="2001:DB8:0::1",
        ROUTING_MODE="native",
        ENDPOINT_ROUTES="true",
        HOST_ROUTING="false",
        DEVICES="eth0, eth1,eth0",
        MASQUERADE="no",
        MASQUERADE_EXCLUDE="10.0.0.0/8, FD00::/8,192.0.2.1",
        MASQUERADE_PORTS="40000-49999",
        POLICY_ENFORCEMENT="always",
        POLICY_AUDIT="on",
        HOST_FAILSAFE_PORTS="ingress:2222/TCP,egress:53/UDP",
    )
    assert settings.underlay_ipv6() == "2001:db8::1"
    assert settings.routing_mode == "native"
    assert cidrs("X", settings.masquerade_exclude) == ("10.0.0.0/8", "fd00::/8", "192.0.2.1/32")
    assert settings.masquerade_range == (40000, 49999)
    assert settings.failsafe_ports == (FailsafePort(True, 2222, 6), FailsafePort(False, 53, 17))


def test_no_failsafe_port_can_be_asked_for() -> None:
    assert load(HOST_FAILSAFE_PORTS="").failsafe_ports == ()


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("ROUTING_MODE", "direct", "one of tunnel, native"),
        ("POLICY_ENFORCEMENT", "sometimes", "one of default, always, never"),
        ("POLICY_AUDIT", "perhaps", "true or false"),
        ("NODE_IPV6", "fe80::1", "not link-local"),
        ("NODE_IPV6", "192.0.2.1", "an IPv6 address"),
        ("NODE_IPV6", "ff02::1", "an IPv6 address"),
        ("DEVICES", "eth0,fimbria_host", "none of Fimbria's"),
        ("DEVICES", "lxc0123456789ab", "none of Fimbria's"),
        ("DEVICES", "a-name-that-is-too-long", "names of devices"),
        ("DEVICES", "eth/0", "names of devices"),
        ("MASQUERADE_EXCLUDE", "10.0.0.1/8", "without host bits"),
        ("MASQUERADE_EXCLUDE", "pods", "without host bits"),
        ("MASQUERADE_PORTS", "61000", "FIRST-LAST"),
        ("MASQUERADE_PORTS", "80-90", "1024 <= FIRST"),
        ("MASQUERADE_PORTS", "50000-40000", "FIRST <= LAST"),
        ("MASQUERADE_PORTS", "61000-65536", "LAST <= 65535"),
        ("HOST_FAILSAFE_PORTS", "22/TCP", "DIRECTION:PORT/PROTOCOL"),
        ("HOST_FAILSAFE_PORTS", "ingress:0/TCP", "1 to 65535"),
        ("HOST_FAILSAFE_PORTS", "ingress:65536/TCP", "1 to 65535"),
        ("HOST_FAILSAFE_PORTS", "ingress:22/ICMP", "TCP, UDP, SCTP"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(variable: str, value: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**{variable: value})
    assert caught.value.variable == f"FIMBRIA_{variable}"
    assert caught.value.value and caught.value.value in value
    assert expected in caught.value.expected


def test_pod_cidrs_are_canonical_and_disjoint() -> None:
    assert load(POD_CIDR="10.244.1.0/24,FD00:0::/112").pod_cidrs == ("10.244.1.0/24", "fd00::/112")
    assert load().pod_cidrs == ()


@pytest.mark.parametrize(
    "cidrs",
    [
        ("10.244.1.1/24",),
        ("10.244.1.0/31",),
        ("10.244.0.0/16", "10.244.1.0/24"),
        tuple(f"10.{n}.0.0/16" for n in range(17)),
    ],
)
def test_pod_cidrs_that_cannot_be_are_refused(cidrs: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="FIMBRIA_POD_CIDR"):
        load(POD_CIDR=",".join(cidrs))
