"""What a runtime says of a pod's bandwidth."""

from __future__ import annotations

from typing import Any

import pytest

from services.loader.cni.bandwidth import parse_rate
from services.loader.cni.errors import CniCode, CniError


def config(**members: Any) -> dict[str, Any]:
    return {"runtimeConfig": {"bandwidth": members}}


@pytest.mark.parametrize(
    ("conf", "rate"),
    [
        ({}, 0),
        ({"runtimeConfig": {}}, 0),
        ({"runtimeConfig": {"bandwidth": None}}, 0),
        (config(), 0),
        (config(egressRate=0, egressBurst=0, ingressRate=0, ingressBurst=0), 0),
        (config(egressRate=10_000_000, egressBurst=1_000_000), 1_250_000),
        (config(egressRate=10_000_000), 1_250_000),
        (config(IngressRate=0, IngressBurst=0, EgressRate=10_000_000, EgressBurst=4294967295), 1_250_000),
        (config(egressRate=1), 1),
        (config(egressRate=9), 2),
        (config(egressRate=10**14), 10**14 // 8),
    ],
)
def test_bits_become_bytes(conf: dict[str, Any], rate: int) -> None:
    assert parse_rate(conf) == rate


@pytest.mark.parametrize(
    ("conf", "field"),
    [
        (config(egressRate=-1), "egressRate"),
        (config(egressRate=10**14 + 1), "egressRate"),
        (config(egressRate="10M"), "egressRate"),
        (config(egressRate=1.5), "egressRate"),
        (config(egressRate=True), "egressRate"),
        (config(egressRate=8, egressBurst=-1), "egressBurst"),
        (config(egressBurst=8), "egressBurst"),
        (config(ingressRate=-5), "ingressRate"),
        (config(rate=5), "rate"),
        ({"runtimeConfig": {"bandwidth": 5}}, "bandwidth"),
        ({"runtimeConfig": {"bandwidth": [1]}}, "bandwidth"),
    ],
)
def test_what_is_no_rate_is_refused_by_name(conf: dict[str, Any], field: str) -> None:
    with pytest.raises(CniError) as caught:
        parse_rate(conf)
    assert caught.value.code is CniCode.INVALID_CONFIG
    assert field in caught.value.msg


@pytest.mark.parametrize("member", ["ingressRate", "ingressBurst"])
def test_a_limit_of_what_a_pod_receives_would_be_ignored_and_is_refused(member: str) -> None:
    with pytest.raises(CniError) as caught:
        parse_rate(config(**{member: 8}))
    assert caught.value.code is CniCode.UNSUPPORTED_FIELD
    assert member in caught.value.msg
