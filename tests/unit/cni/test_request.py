"""Requests as the plugin writes them, and requests that it would never write."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.cni.errors import CniCode, CniError
from services.loader.cni.request import AddRequest, CniRequest, decode, parse_request, valid_ifname

_ABSENT = object()


def payload(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "protocol": 1,
        "startedNs": 1700000000000000000,
        "command": "ADD",
        "containerId": "c1",
        "ifname": "eth0",
        "netns": "/run/netns/x",
        "args": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "config": {"cniVersion": "1.0.0", "name": "fimbria"},
    } | changes
    return json.dumps({key: value for key, value in fields.items() if value is not _ABSENT}).encode()


def parsed(fd: int | None = 3, **changes: Any) -> CniRequest:
    return parse_request(decode(payload(**changes)), fd)


def code_of(fd: int | None = 3, **changes: Any) -> CniCode:
    with pytest.raises(CniError) as caught:
        parsed(fd, **changes)
    return caught.value.code


def test_an_add_arrives_whole() -> None:
    request = parsed()
    assert isinstance(request, AddRequest)
    assert request.key == ("c1", "eth0")
    assert (request.netns_fd, request.netns_path) == (3, "/run/netns/x")
    assert request.version == "1.0.0"
    assert request.started_ns == 1700000000000000000
    assert request.traceparent.startswith("00-")
    assert request.pod.name == "web"
    assert request.interface.rate == 0


def test_a_rate_arrives_with_the_add() -> None:
    config = {"cniVersion": "1.0.0", "runtimeConfig": {"bandwidth": {"egressRate": 8000}}}
    request = parsed(config=config)
    assert isinstance(request, AddRequest)
    assert request.interface.rate == 1000
    config["runtimeConfig"] = {"bandwidth": {"egressRate": -8}}
    assert code_of(config=config) is CniCode.INVALID_CONFIG
    assert not isinstance(parsed(command="DEL", config=config), AddRequest)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"protocol": 2}, CniCode.DECODE_FAILURE),
        ({"protocol": _ABSENT}, CniCode.DECODE_FAILURE),
        ({"command": "PING"}, CniCode.INVALID_ENVIRONMENT),
        ({"command": "GC"}, CniCode.INCOMPATIBLE_VERSION),
        ({"command": "STATUS"}, CniCode.INCOMPATIBLE_VERSION),
        ({"containerId": "../x"}, CniCode.INVALID_ENVIRONMENT),
        ({"containerId": "c1\n"}, CniCode.INVALID_ENVIRONMENT),
        ({"containerId": ""}, CniCode.INVALID_ENVIRONMENT),
        ({"containerId": "a" * 201}, CniCode.INVALID_ENVIRONMENT),
        ({"containerId": 7}, CniCode.DECODE_FAILURE),
        ({"ifname": "averyverylongname"}, CniCode.INVALID_ENVIRONMENT),
        ({"config": []}, CniCode.DECODE_FAILURE),
        ({"config": {"cniVersion": "0.2.0"}}, CniCode.INCOMPATIBLE_VERSION),
        ({"config": {}}, CniCode.INCOMPATIBLE_VERSION),
        ({"args": "x"}, CniCode.INVALID_ENVIRONMENT),
    ],
)
def test_what_is_wrong_has_its_code(changes: dict[str, Any], code: CniCode) -> None:
    assert code_of(**changes) is code


def test_only_a_del_goes_without_a_namespace() -> None:
    assert code_of(None) is CniCode.INVALID_ENVIRONMENT
    assert code_of(None, command="CHECK") is CniCode.INVALID_ENVIRONMENT
    assert parsed(None, command="DEL", netns="").netns_fd is None


def test_a_del_is_not_asked_about_its_pod() -> None:
    bad = {"cniVersion": "1.0.0", "args": {"cni": {"labels": "nonsense"}}, "ipam": {"type": "x"}}
    assert parsed(None, command="DEL", config=bad, args="nonsense").args == {}


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'"x"', b"\xff", b"null"])
def test_what_is_no_request_is_a_decode_failure(text: bytes) -> None:
    with pytest.raises(CniError) as caught:
        decode(text)
    assert caught.value.code is CniCode.DECODE_FAILURE


def test_an_error_is_told_in_the_version_asked_for_when_that_is_known() -> None:
    assert decode(payload(config={"cniVersion": "0.4.0"})).version == "0.4.0"
    assert decode(payload(config={"cniVersion": "9"})).version == "1.1.0"
    assert decode(payload(config={"cniVersion": ["0.4.0"]})).version == "1.1.0"
    assert decode(payload(config=_ABSENT)).version == "1.1.0"


@pytest.mark.parametrize("name", ["eth0", "net1", "a" * 15, "été0", "e-th_0.1@x"])
def test_interface_names_of_the_kernel_pass(name: str) -> None:
    assert valid_ifname(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a" * 16, "é" * 8, "a/b", "a:b", "a b", "a\tb", "a\x7f"])
def test_others_do_not(name: str) -> None:
    assert not valid_ifname(name)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 70000) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["cni", "labels", "ports", "key", "value", "name", "port", "protocol", "ips", "mac"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_configuration_gives_a_request_or_an_error_of_the_specification(value: Any) -> None:
    for key in ("args", "runtimeConfig", "ipam"):
        try:
            request = parsed(config={"cniVersion": "1.0.0", key: value})
        except CniError as exc:
            assert exc.code in (CniCode.INVALID_CONFIG, CniCode.UNSUPPORTED_FIELD)
        else:
            assert isinstance(request, AddRequest)
