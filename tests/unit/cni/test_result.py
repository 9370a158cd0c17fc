"""Results by version, what CHECK compares, and errors by kind."""

from __future__ import annotations

import copy
import json
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from services.chassis import errors as chassis
from services.loader.cni.errors import CniCode, CniError, cni_error, retryable
from services.loader.cni.result import CniResult, prev_result_problems

RESULT = CniResult.for_link(
    host_name="lxc0123456789ab",
    host_mac="02:00:00:00:00:01",
    ifname="eth0",
    pod_mac="02:00:00:00:00:02",
    netns_path="/run/netns/x",
    addresses=[(IPv4Address("10.244.0.7"), IPv4Address("10.244.0.1"))],
    dns={"nameservers": ["10.96.0.10"]},
)


def rendered(version: str = "1.0.0") -> dict[str, Any]:
    result: dict[str, Any] = json.loads(RESULT.render(version))
    return result


def test_a_result_of_1_0_0() -> None:
    assert rendered() == {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "lxc0123456789ab", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"},
        ],
        "ips": [{"interface": 1, "address": "10.244.0.7/32", "gateway": "10.244.0.1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}],
        "dns": {"nameservers": ["10.96.0.10"]},
    }


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
def test_older_results_tell_the_address_family(version: str) -> None:
    result = rendered(version)
    assert result["cniVersion"] == version
    assert result["ips"][0]["version"] == "4"


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_what_was_rendered_checks_out(version: str) -> None:
    assert prev_result_problems(rendered(version), RESULT) == []


def test_what_other_plugins_added_is_passed_over() -> None:
    prev = rendered()
    prev["interfaces"].append({"name": "ifb0"})
    prev["ips"].append({"address": "192.0.2.1/24", "interface": 2})
    prev["routes"].append({"dst": "192.0.2.0/24"})
    assert prev_result_problems(prev, RESULT) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("interfaces", 1, "name"), "eth9", "has no 'eth0'"),
        (("interfaces", 1, "mac"), "02:00:00:00:00:99", "mac"),
        (("interfaces", 1, "sandbox"), "/run/netns/y", "sandbox"),
        (("ips", 0, "address"), "10.244.0.8/32", "the address is 10.244.0.7/32"),
        (("ips", 0, "gateway"), "10.244.0.2", "gateway"),
        (("routes", 0, "gw"), "10.244.0.2", "no 0.0.0.0/0 via 10.244.0.1"),
    ],
)
def test_a_difference_is_told(path: tuple[Any, ...], value: str, told: str) -> None:
    prev = copy.deepcopy(rendered())
    at: Any = prev
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    problems = prev_result_problems(prev, RESULT)
    assert len(problems) == 1
    assert told in problems[0]


@pytest.mark.parametrize(
    "prev", [{}, {"interfaces": 3, "ips": "x", "routes": None}, {"interfaces": [1], "ips": [[]]}]
)
def test_a_senseless_prev_result_is_a_difference_not_a_crash(prev: dict[str, Any]) -> None:
    assert len(prev_result_problems(prev, RESULT)) == 4


@pytest.mark.parametrize(
    ("exc", "command", "code"),
    [
        (chassis.Unavailable("x", reason="R"), "ADD", 11),
        (chassis.DeadlineExceeded("x", reason="R"), "ADD", 11),
        (chassis.Aborted("x", reason="R"), "ADD", 11),
        (chassis.ResourceExhausted("x", reason="CIDR_EXHAUSTED"), "ADD", 106),
        (
            chassis.ResourceExhausted("x", reason="POOL_EXHAUSTED", metadata={"transient": "false"}),
            "ADD",
            106,
        ),
        (chassis.ResourceExhausted("x", reason="ADDRESSES_ON_HOLD", retry_after=1), "ADD", 11),
        (chassis.ResourceExhausted("x", reason="OVERLOADED", retry_after=1), "ADD", 11),
        (chassis.ResourceExhausted("x", reason="IDENTITIES_EXHAUSTED", retry_after=1), "ADD", 11),
        (
            chassis.ResourceExhausted("x", reason="IDENTITIES_EXHAUSTED", metadata={"transient": "true"}),
            "ADD",
            11,
        ),
        (chassis.InvalidArgument("x", reason="R"), "ADD", 7),
        (chassis.InvalidArgument("x", reason="NETNS_INVALID"), "ADD", 4),
        (chassis.AlreadyExists("x", reason="INTERFACE_NAME_TAKEN"), "ADD", 4),
        (chassis.AlreadyExists("x", reason="R"), "ADD", 103),
        (chassis.NotFound("x", reason="R"), "CHECK", 3),
        (chassis.NotFound("x", reason="R"), "ADD", 102),
        (chassis.FailedPrecondition("x", reason="R"), "ADD", 101),
        (chassis.PermissionDenied("x", reason="R"), "ADD", 104),
        (chassis.Internal("x", reason="R"), "ADD", 100),
    ],
)
def test_a_services_error_has_a_cni_code(exc: chassis.FimbriaError, command: str, code: int) -> None:
    assert cni_error(exc, command).code == code
    assert retryable(exc) == (code == 11)


def test_what_would_help_is_said_last() -> None:
    exc = chassis.ResourceExhausted(
        "pool blue is exhausted",
        reason="POOL_EXHAUSTED",
        metadata={"pool": "blue", "transient": "false", "help": "fimbria pool extend blue CIDR"},
    )
    assert cni_error(exc, "ADD").details == (
        "POOL_EXHAUSTED; pool=blue; transient=false; fimbria pool extend blue CIDR"
    )


def test_details_name_reason_metadata_and_fields() -> None:
    exc = chassis.ResourceExhausted(
        'the CIDR "10.244.0.0/24" has no free address',
        reason="CIDR_EXHAUSTED",
        metadata={"cidr": "10.244.0.0/24"},
        violations=[chassis.FieldViolation("owner", "too many")],
    )
    error = json.loads(cni_error(exc, "ADD").render("0.4.0"))
    assert error == {
        "cniVersion": "0.4.0",
        "code": 106,
        "msg": 'the CIDR "10.244.0.0/24" has no free address',
        "details": "CIDR_EXHAUSTED; cidr=10.244.0.0/24; owner: too many",
    }


def test_an_unknown_version_is_answered_in_the_current_one() -> None:
    assert json.loads(CniError(CniCode.INTERNAL, "x").render("7"))["cniVersion"] == "1.1.0"


def test_both_families_are_told_and_compared() -> None:
    both = CniResult.for_link(
        host_name="lxc0123456789ab",
        host_mac="02:00:00:00:00:01",
        ifname="eth0",
        pod_mac="02:00:00:00:00:02",
        netns_path="/run/netns/x",
        addresses=[
            (IPv4Address("10.244.0.7"), IPv4Address("10.244.0.1")),
            (IPv6Address("fd00:10:244::7"), IPv6Address("fd00:10:244::1")),
        ],
    )
    told = json.loads(both.render("0.4.0"))
    assert told["ips"] == [
        {"version": "4", "interface": 1, "address": "10.244.0.7/32", "gateway": "10.244.0.1"},
        {"version": "6", "interface": 1, "address": "fd00:10:244::7/128", "gateway": "fd00:10:244::1"},
    ]
    assert told["routes"] == [
        {"dst": "0.0.0.0/0", "gw": "10.244.0.1"},
        {"dst": "::/0", "gw": "fd00:10:244::1"},
    ]
    assert prev_result_problems(told, both) == []
    del told["ips"][1], told["routes"][1]
    problems = prev_result_problems(told, both)
    assert any("fd00:10:244::7/128" in problem for problem in problems)
    assert any("::/0 via fd00:10:244::1" in problem for problem in problems)
